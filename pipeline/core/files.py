"""Files that are either whole or absent: write aside, then rename; and their digests."""

import contextlib
import hashlib
import json
import lzma
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

DAMAGED = (
    tarfile.TarError,
    zipfile.BadZipFile,
    lzma.LZMAError,
    zlib.error,
    EOFError,
    OSError,
    RuntimeError,
    ValueError,
)
"""What reading a broken archive raises: RuntimeError where it says that it is encrypted or of an unknown method."""


@contextlib.contextmanager
def aside(path: Path) -> Iterator[Path]:
    """Yield a place beside `path` to write a file or a folder to; it becomes `path` only when the block succeeds.

    The name is fixed (`.<name>.partial`), so what a killed run left behind is removed by the next one.
    """
    partial = path.with_name(f".{path.name}.partial")
    remove(partial)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with naming(path):
            yield partial
        if partial.is_dir():
            remove(path)
        partial.replace(path)
    finally:
        remove(partial)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Say which file it was where a write fails: the error of a full disk does not tell."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


def remove(path: Path) -> None:
    """Remove a file or a whole folder, if there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, whole or not at all."""
    with aside(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON that reads well and diffs well."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def parse_json(text: str | bytes) -> Any:
    """Return what a text says in JSON; raise ValueError when it is none, nested too deeply, or could not be written."""
    try:
        value = json.loads(text)
        json.dumps(value, ensure_ascii=False).encode()  # "\\ud800" is JSON, but half a character
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    return value


def write_json_lines(path: Path, values: Iterable[Any]) -> None:
    """Write each of `values` as a line of JSON."""
    write_text(path, "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values))


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
