"""A LibriSpeech tree that is already on this machine: each split becomes one tar, the same bytes on every run."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.core import files
from pipeline.core.errors import UserError, suggestion
from pipeline.speech.sources import layouts

if TYPE_CHECKING:
    from pipeline.core.params import Corpus


def download(name: str, corpus: "Corpus", splits: list[str], folder: Path) -> None:
    """Pack `<path>/<split>/` into `<folder>/<split>.tar` for each split; raise UserError for what is not there."""
    root = Path(str(corpus.path)).expanduser()
    if not root.is_dir():
        raise UserError(f"corpus {name!r}: the folder {root} does not exist; correct corpora.{name}.path")
    for split in splits:
        if not (root / split).is_dir():
            there = [path.name for path in root.iterdir() if path.is_dir()]
            raise UserError(f"corpus {name!r}: {root} has no split {split!r}{suggestion(split, there)}")
        with files.aside(folder / f"{split}.tar") as partial:
            layouts.pack(partial, members(root, split))


def members(root: Path, split: str) -> Iterator[tuple[str, bytes]]:
    """Yield name and bytes of the audio and transcripts of `root/split`, in order.

    Raises UserError for a link that leads out of `root`: what is scored would depend on files outside the corpus.
    """
    from tqdm import tqdm

    inside = root.resolve()
    paths = [path for path in (root / split).glob("*/*/*") if path.name.endswith((".flac", ".trans.txt"))]
    for path in tqdm(sorted(paths), desc=f"{split}.tar", unit=" files", mininterval=0.5, disable=None):
        if not path.resolve().is_relative_to(inside):
            raise UserError(f"{path} is a link to {path.resolve()}, outside of {root}; copy the file there instead")
        yield path.relative_to(root).as_posix(), path.read_bytes()
