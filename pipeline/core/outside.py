"""Folders outside the project that models and corpora are taken from: where they are, and how DVC sees them change.

dvc.yaml cannot name a folder that catalog.yaml does. So the stages that read one depend on a file in outside/, in which
its state is noted; and while they read one, outside/watch.yaml makes DVC run a stage first that brings the note up to
date. Git tracks these files; with neither model nor corpus of one's own, nothing is watched.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.core import files
from pipeline.core.errors import UserError

if TYPE_CHECKING:
    from pipeline.core.params import Params

NOTES = Path("outside")
NAMES = ("model", "corpus", "calibration")
"""What may be taken from a folder: what params.yaml calls so."""


def locate(path: str) -> Path:
    """Return the folder that a path in catalog.yaml means; a relative one is seen from the project's own folder.

    `dvc exp run --temp` and `--queue` run in a copy of the project in its .dvc/tmp.
    """
    here = Path.cwd()
    copies = [folder for folder in here.parents if folder.parts[-2:] == (".dvc", "tmp")]
    project = copies[0].parents[1] if copies else here
    return Path(os.path.normpath(project / os.path.expanduser(path)))  # noqa: PTH111 (pathlib's raises for ~nobody)


def there(folder: Path) -> bool:
    """Tell whether a folder is there; one with a name that is too long for any is not."""
    try:
        return folder.is_dir()
    except OSError:
        return False


def read(settings: "Params", name: str) -> list[Path]:
    """Return the folders that are read for one of NAMES; none where it has another source.

    Of a model, only the folder's own files are read, of a corpus all below its splits.
    """
    calibration, entry = settings.calibration, settings.models[settings.model]
    if name == "model":
        return [locate(str(entry.path))] if entry.source == "directory" else []
    corpus = settings.corpora[settings.corpus if name == "corpus" else calibration.corpus]
    splits = corpus.splits if name == "corpus" else [calibration.split]
    return [locate(str(corpus.path)) / split for split in splits] if corpus.source == "directory" else []


def state(name: str, folders: list[Path]) -> str | None:
    """Return a digest of names, sizes and times of all files that may be read there; None where there is no folder.

    Raises UserError where they cannot be read.
    """
    if not folders:
        return None
    digest = hashlib.sha256()
    try:
        for folder in folders:
            for path in sorted(folder.iterdir() if name == "model" else folder.rglob("*")):
                if path.is_file():
                    facts = path.stat()
                    digest.update(os.fsencode(path.relative_to(folder)))
                    digest.update(f"\0{facts.st_size}\0{facts.st_mtime_ns}\n".encode())
    except OSError as error:
        raise UserError(f"{error.filename} cannot be read ({error.strerror})") from None
    return digest.hexdigest()


def changed(settings: "Params") -> list[str]:
    """Name those whose folders are on this machine, and not as they were noted."""
    folders = {name: read(settings, name) for name in NAMES}
    return [name for name, found in folders.items() if all(map(there, found)) and state(name, found) != _noted(name)]


def note(name: str, state: str | None) -> None:
    """Note a state, and that it is to be watched; or that there is no folder."""
    files.write_json(NOTES / f"{name}.json", state)
    files.write_text(NOTES / "watch.yaml", f"watch: [{', '.join(filter(_noted, NAMES))}]\n")


def _noted(name: str) -> str | None:
    file = NOTES / f"{name}.json"
    return json.loads(file.read_text()) if file.exists() else None
