"""A folder that lists its files: the list is written last, and compared with them before anything else is read."""

from pathlib import Path
from typing import Any

from pipeline.core import files
from pipeline.core.errors import UserError

NAME = "checkpoint.json"


def write(folder: Path, facts: dict[str, Any]) -> dict[str, Any]:
    """Write what is known of the folder, and the SHA-256 of each of its files; return both."""
    manifest = facts | {"files": {file.name: files.sha256(file) for file in sorted(folder.iterdir())}}
    files.write_json(folder / NAME, manifest)
    return manifest


def verify(folder: Path) -> dict[str, Any]:
    """Return what `write` wrote; raise UserError when a file is missing, cut short or edited since."""
    again = "run 'dvc repro' to restore it"
    try:
        manifest: dict[str, Any] = files.parse_json((folder / NAME).read_bytes())
        digests = manifest["files"].items()
        if not isinstance(manifest["variant"]["backend"], str):
            raise TypeError
        there = {path.name for path in folder.iterdir() if path.is_file()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):  # another file of that name, too
        raise UserError(f"{folder} has no readable {NAME}, so it is no checkpoint of this project; {again}") from None
    for name, digest in digests:
        if name not in there:
            raise UserError(f"{folder} lacks {name}; {again}")
        if files.sha256(folder / name) != digest:
            raise UserError(f"{folder}/{name} is not the file that was saved: it is cut short or edited; {again}")
    return manifest
