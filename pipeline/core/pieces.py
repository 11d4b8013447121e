"""Finished pieces of a long stage's output, kept beside it: a crash costs one piece.

They are no outs, which DVC removes before it runs a stage, so the next run finds them. They stay when the output is
written, as DVC may still fail to record it; `compare`, which runs when all is recorded, removes them.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pipeline.core import files, machine

if TYPE_CHECKING:
    from tqdm import tqdm

T = TypeVar("T")

_LIBRARIES = ("numpy", "pyarrow", "safetensors", "soundfile", "tokenizers")
"""Those that have a part in the text of an utterance, besides the ones that `machine.describe` lists."""

_FINISHED = "finished"
"""A file that is among the pieces when what they are pieces of is written."""

_ROOT = Path(__file__).parents[2]


def key(stage: str, backend: str, device: str, inputs: Iterable[Path], **facts: Any) -> dict[str, Any]:
    """Return what decides the output of a stage, in JSON: pieces of another key are of no use.

    `inputs` are the files that it reads, `facts` its settings and whatever else decides.
    """
    import importlib.metadata

    return {
        **facts,
        "inputs": _digest(inputs, Path()),
        "code": _digest(code(stage, backend), _ROOT),
        "device": device,
        "libraries": {library: importlib.metadata.version(library) for library in _LIBRARIES},
        **{name: value for name, value in machine.describe(device).items() if name != "jobs"},
    }


def code(stage: str, backend: str) -> list[Path]:
    """Return the code on which dvc.yaml makes a stage depend: what makes DVC run it again makes its pieces useless."""
    from ruamel.yaml import YAML

    entry = YAML(typ="safe").load(_ROOT / "dvc.yaml")["stages"][stage]
    named = [_ROOT / dep.replace("${item.backend}", backend) for dep in entry.get("do", entry)["deps"]]
    code = [path for path in named if path.is_relative_to(_ROOT / "pipeline")]
    return sorted({file for path in code for file in (path.rglob("*.py") if path.is_dir() else [path])})


class Pieces:
    """JSON values by name, in the folder `.<output>.pieces`; all of one key, so that no output is made of two."""

    def __init__(self, output: Path, key: dict[str, Any]) -> None:
        """Find what an interrupted run has left for `output`, and remove what is of another key."""
        self._folder = output.with_name(f".{output.name}.pieces")
        found = _read(self._folder / "key.json")
        again = output.exists() and (self._folder / _FINISHED).exists()  # somebody wants it once more, without DVC
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

    def each(self, title: str, sizes: Mapping[str, int], make: "Callable[[str, tqdm[Any]], T]") -> list[T]:
        """Return all pieces in the order of `sizes`, which maps their names to their numbers of utterances.

        Those that are here are not made again. `make` gets a name, and the bar that shows `title` and counts the
        utterances, kept ones among them.
        """
        from tqdm import tqdm

        pieces: dict[str, T | None] = {name: _read(self._file(name)) for name in sizes}
        kept = sum(sizes[name] for name, piece in pieces.items() if piece is not None)
        if kept:
            print(f"{title}: kept {kept:,} utterances of an interrupted run")
        with tqdm(total=sum(sizes.values()), initial=kept, unit="utt", desc=title, disable=None) as progress:
            return [
                self.once(name, partial(make, name, progress)) if piece is None else piece
                for name, piece in pieces.items()
            ]

    def finish(self) -> None:
        """Note that the output is written."""
        (self._folder / _FINISHED).touch()

    def _file(self, name: str) -> Path:
        return self._folder / f"piece-{name}.json"


def remove_finished(folder: Path) -> None:
    """Remove the pieces, anywhere in `folder`, of outputs that are written."""
    for finished in list(folder.rglob(f".*.pieces/{_FINISHED}")):
        files.remove(finished.parent)


def _digest(paths: Iterable[Path], root: Path) -> str:
    digests = "".join(f"{path.relative_to(root)} {files.sha256(path)}\n" for path in paths)
    return hashlib.sha256(digests.encode()).hexdigest()


def _read(file: Path) -> Any:
    """Return what a file holds; None where there is none, or what there is was cut short by a power failure."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
