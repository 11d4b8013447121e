"""Finished pieces of a long stage's output, kept beside it: a crash costs one piece.

DVC removes the outs of a stage before it runs the stage; the pieces are none of them, so the next run finds them. They
stay when the output is written, as DVC may still fail to record it; `compare`, which runs when all is recorded, removes
them.
"""

import dataclasses
import hashlib
import importlib.metadata
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pipeline import corpus, files, machine
from pipeline.params import Decoding, Latency

if TYPE_CHECKING:
    from tqdm import tqdm

T = TypeVar("T")

_LIBRARIES = ("numpy", "pyarrow", "safetensors", "soundfile", "tokenizers")
"""Those that have a part in the text of an utterance, besides the ones that `machine.describe` lists."""


class Pieces:
    """JSON values by name, in the folder `.<output>.pieces`.

    They are valid for one checkpoint, corpus, device, machine and version of code, libraries and settings. Pieces of
    another are removed, so that no output is ever put together from two.
    """

    def __init__(self, output: Path, checkpoint: dict[str, Any], device: str, *settings: Decoding | Latency) -> None:
        """Find what an interrupted run has left for `output`; `checkpoint` is the manifest, with its files' digests."""
        package = Path(__file__).parent
        key = {
            "checkpoint": checkpoint,
            "corpus": _digest(corpus.shards(corpus.CORPUS), corpus.CORPUS),
            "device": device,
            "settings": [dataclasses.asdict(setting) for setting in settings],
            "code": _digest(sorted(package.rglob("*.py")), package),
            "libraries": {library: importlib.metadata.version(library) for library in _LIBRARIES},
            **{name: value for name, value in machine.describe(device).items() if name != "jobs"},
        }
        self._folder = files.pieces(output)
        found = _read(self._folder / "key.json")
        again = output.exists() and files.finished(self._folder).exists()  # somebody wants it once more, without DVC
        if found != key or again:
            if isinstance(found, dict) and not again:
                other = ", ".join(name for name in key if found.get(name) != key[name])
                print(f"{output}: what an interrupted run has left is dropped, as it is of other {other}")
            files.remove(self._folder)
            files.write_json(self._folder / "key.json", key)

    def once(self, name: str, make: Callable[[], T]) -> T:
        """Return the piece `name` if it is here, else make and keep it; it holds what JSON holds, and is not None."""
        found: T | None = _read(self._file(name))
        if found is None:
            found = make()
            files.write_json(self._file(name), found)
        return found

    def of_shards(self, title: str, shards: dict[str, Path], make: "Callable[[str, tqdm[Any]], T]") -> list[T]:
        """Return the piece of each of `shards`, by their names, in their order; those that are here are not made again.

        `make` gets a name, and the bar that shows `title` and counts the shards' utterances, kept ones among them.
        """
        from tqdm import tqdm

        pieces: dict[str, T | None] = {name: _read(self._file(name)) for name in shards}
        kept = corpus.count(shards[name] for name, piece in pieces.items() if piece is not None)
        if kept:
            print(f"{title}: kept {kept:,} utterances that an interrupted run has transcribed")
        total = corpus.count(shards.values())
        with tqdm(total=total, initial=kept, unit="utt", desc=title, disable=None) as progress:
            return [
                self.once(name, partial(make, name, progress)) if piece is None else piece
                for name, piece in pieces.items()
            ]

    def finish(self) -> None:
        """Note that the output is written."""
        files.finished(self._folder).touch()

    def _file(self, name: str) -> Path:
        return self._folder / f"piece-{name}.json"


def name(shard: Path) -> str:
    """Name the piece that a shard of the corpus becomes."""
    return shard.relative_to(corpus.CORPUS).with_suffix("").as_posix().replace("/", "-")


def _digest(paths: list[Path], root: Path) -> str:
    digests = "".join(f"{path.relative_to(root)} {files.sha256(path)}\n" for path in paths)
    return hashlib.sha256(digests.encode()).hexdigest()


def _read(file: Path) -> Any:
    """Return what a file holds; None where there is none, or what there is was cut short by a power failure."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
