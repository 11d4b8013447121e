"""Folders outside the project that models and corpora are taken from: where they are, and how DVC sees them change.

dvc.yaml cannot name a folder that catalog.yaml does. So the stages depend on links in data/outside/, which git tracks:
what reads such a folder points its link there, and DVC hashes what it leads to.
"""

import os
from pathlib import Path

LINKS = Path("data/outside")
NOTHING = "nothing"
"""The file that a link leads to where no folder is read."""


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


def watch(name: str, folder: Path | None) -> None:
    """Let the link `name` lead to the folder, or to nothing."""
    LINKS.mkdir(parents=True, exist_ok=True)
    (LINKS / NOTHING).write_text("Links lead here where no folder outside the project is read.\n", encoding="utf-8")
    partial = LINKS / f".{name}.partial"
    partial.unlink(missing_ok=True)
    partial.symlink_to(NOTHING if folder is None else folder)
    partial.replace(LINKS / name)
