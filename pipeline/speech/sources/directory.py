"""A LibriSpeech tree that is already on this machine: each split becomes one tar, the same bytes on every run."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.core import files, outside
from pipeline.core.errors import UserError, suggestion
from pipeline.speech.sources import layouts

if TYPE_CHECKING:
    from pipeline.core.params import Corpus


def download(name: str, corpus: "Corpus", splits: list[str], folder: Path) -> None:
    """Pack `<path>/<split>/` into `<folder>/<split>.tar` for each split; raise UserError for what is not there."""
    root = outside.locate(str(corpus.path))
    if not outside.there(root):
        raise UserError(f"corpus {name!r}: the folder {root} does not exist; correct corpora.{name}.path")
    for split in splits:
        if not outside.there(root / split):
            there = [path.name for path in root.iterdir() if path.is_dir()]
            raise UserError(f"corpus {name!r}: {root} has no split {split!r}{suggestion(split, there)}")
        with files.aside(folder / f"{split}.tar") as partial:
            layouts.pack(partial, members(f"corpus {name!r}", root, split))


def members(where: str, root: Path, split: str) -> Iterator[tuple[str, bytes]]:
    """Yield name and bytes of the audio and transcripts of `root/split`, in order.

    Raises UserError for a link that leads out of `root`, as what is scored would depend on files outside the corpus;
    for audio or a transcript in the wrong depth of folders; and for what cannot be read.
    """
    from tqdm import tqdm

    inside = root.resolve()
    names = {path: path.relative_to(root).as_posix() for path in _files(root / split)}
    paths = [path for path in sorted(names) if layouts.placed(where, names[path])]
    for path in tqdm(paths, desc=f"{split}.tar", unit=" files", mininterval=0.5, disable=None):
        if not path.resolve().is_relative_to(inside):
            raise UserError(f"{path} is a link to {path.resolve()}, outside of {root}; copy the file there instead")
        try:
            data = path.read_bytes()
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror})") from None
        yield names[path], data


def _files(folder: Path) -> set[Path]:
    """Return the files below `folder`, but hidden ones; only the second pattern follows links to folders."""
    found = {*folder.rglob("*"), *folder.glob("*/*/*")}
    return {path for path in found if not path.is_dir() and not layouts.hidden(path.relative_to(folder).as_posix())}
