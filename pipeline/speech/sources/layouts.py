"""Speech archives as streams (tar, wheel, Parquet): pack them, list their utterances, read the bytes of chosen ones.

Nothing is extracted to the disk, so no member's name can lead anywhere. What is missing, damaged or there twice is a
UserError.
"""

import io
import re
import tarfile
import unicodedata
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from pipeline.core import files
from pipeline.core.errors import UserError, suggestion
from pipeline.speech import corpus

T = TypeVar("T")

_AUDIO = r"(?i:\.flac|\.wav|\.mp3|\.ogg|\.opus)"


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
                for name, read in (_zip if zipfile.is_zipfile(archive) else _tar)(archive):
                    if not hidden(name):
                        yield name, read() if wanted(name) else None


def hidden(name: str) -> bool:
    """Tell whether a file or one of its folders begins with a dot: macOS leaves such files beside the real ones."""
    return any(part.startswith(".") for part in name.split("/"))


@contextmanager
def _reading(archive: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"{archive} is not here; run 'python -m pipeline.download' first") from None
    except files.DAMAGED as error:
        again = "delete it and run 'python -m pipeline.download' again"
        raise UserError(f"{archive} cannot be read ({error}); {again}") from error


def _tar(archive: Path) -> Iterator[tuple[str, Callable[[], bytes]]]:
    try:
        opened = tarfile.open(archive, "r|*")  # noqa: SIM115
    except TypeError:  # tarfile's own
        raise tarfile.ReadError("the header of its gzip is cut off") from None
    with opened as tar:
        while (member := tar.next()) is not None:
            tar.members.clear()  # type: ignore[attr-defined]  # or memory would grow with the archive
            if member.issparse():
                raise tarfile.ReadError(f"{member.name} is a sparse file")  # a few bytes may say that it has terabytes
            if member.isfile() or member.type not in tarfile.SUPPORTED_TYPES:
                file = tar.extractfile(member)
                assert file
                if member.isfile():
                    yield member.name.removeprefix("./"), file.read
                while file.read(1 << 20):  # tarfile would look for announced bytes beyond the archive's end, for ever
                    pass


def _zip(archive: Path) -> Iterator[tuple[str, Callable[[], bytes]]]:
    with zipfile.ZipFile(archive) as wheel:
        for name in wheel.namelist():
            yield name.removeprefix("./"), partial(wheel.read, name)


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
                if name in found:
                    place = f"{archive} of split {split!r}"
                    raise UserError(f"{where}: utterance {name!r} is there twice, the second time in {place}")
                found[name] = Recording(name, str(by), text or None, name)
    return dict(sorted(found.items()))


def placed(where: str, name: str) -> re.Match[str] | None:
    """Return split, speaker, chapter, stem and ending of a file in LibriSpeech's layout, None for files of other kinds.

    Raises UserError for audio or a transcript in another depth of folders: it would be left out silently.
    """
    file = name.rpartition("/")[2]
    if re.fullmatch(rf".+(?:{_AUDIO}|(?i:\.trans\.txt))", file) is None:
        return None
    folders = r"(?:LibriSpeech/)?+(?P<split>[^/]+)/(?P<speaker>[^/]+)/(?P<chapter>[^/]+)/"
    match = re.fullmatch(rf"{folders}(?P<stem>[^/]+?)(?P<kind>{_AUDIO}|(?i:\.trans\.txt))", name)
    if match is None:
        raise UserError(f"{where}: {name} is not where it should be, in <split>/<speaker>/<chapter>/")
    return match


def librispeech(where: str, archives: list[Path], split: str) -> dict[str, Recording]:
    """List one in LibriSpeech's layout: `<split>/<speaker>/<chapter>/<id>.flac`, `<speaker>-<chapter>.trans.txt`.

    Audio may also end in .wav, .mp3 or .ogg. A line of a transcript is an id, white space, and the text.
    """
    audio: dict[str, tuple[str, str]] = {}
    texts: dict[str, tuple[str, str]] = {}
    splits: set[str] = set()
    for name, data in members(archives, lambda name: name.lower().endswith(".trans.txt")):
        match = placed(where, name)
        if match is None:
            continue
        of, speaker, chapter, stem, _ = match.groups()
        splits.add(of)
        if of != split:
            continue
        if data is not None:
            for place, line in _lines(where, name, data):
                utterance, *text = line.split(maxsplit=1)
                _add(where, place, texts, utterance, "".join(text))
        else:
            if not stem.startswith(f"{speaker}-{chapter}-"):
                like = f"<speaker>-<chapter>-<number>{match['kind']} as its folder asks for"
                raise UserError(f"{where}: {name} is not named {like}")
            _add(where, name, audio, stem, speaker)
    _check_split(where, archives, split, splits)
    return _join(where, split, audio, texts)


def sphinx(where: str, archives: list[Path], folder: str, split: str) -> dict[str, Recording]:
    """List a split laid out as CMU Sphinx does: `<folder>/<split>/[*.]fileids`, `[*.]transcription` and `<id>.wav`.

    Lines of the transcription are `<s> text </s> (id)`. The speaker is what precedes the last hyphen or underscore
    of the id, else the split's name. Audio may also end in .flac, .mp3, .ogg or .opus.
    """
    inside = rf"(?:[^/]+\.)?(?P<kind>fileids|transcription)|(?P<stem>[^/]+){_AUDIO}"
    pattern = re.compile(rf"{re.escape(folder.strip('/'))}/(?P<split>[^/]+)/(?:{inside})")
    ids: dict[str, tuple[None, str]] = {}
    waves: dict[str, tuple[None, str]] = {}
    texts: dict[str, tuple[str, str]] = {}
    splits: set[str] = set()
    for name, data in members(archives, lambda name: name.endswith(("fileids", "transcription"))):
        match = pattern.fullmatch(name)
        if match is None:
            continue
        splits |= {match["split"]} if match["kind"] == "fileids" else set()
        if match["split"] != split:
            continue
        if data is None:
            _add(where, name, waves, match["stem"], None)
        elif match["kind"] == "fileids":
            for place, line in _lines(where, name, data):
                _add(where, place, ids, line, None)
        else:
            for place, line in _lines(where, name, data):
                _add(where, place, texts, *_sphinx_line(where, name, line))
    _check_split(where, archives, split, splits)
    audio: dict[str, tuple[str, str]] = {}
    for utterance in ids:
        if utterance not in waves:
            raise UserError(f"{where}: utterance {utterance!r} of split {split!r} is listed, but its .wav is not there")
        speaker = utterance[: max(utterance.rfind("-"), utterance.rfind("_"), 0)] or split
        audio[utterance] = speaker, waves[utterance][1]
    return _join(where, split, audio, texts)


def _sphinx_line(where: str, name: str, line: str) -> tuple[str, str]:
    # Not a regular expression: it takes the square of a long line's length.
    text, bracket, rest = line.rpartition("(")
    utterance = rest.removesuffix(")")
    if not bracket or utterance in ("", rest) or ")" in utterance:
        raise UserError(f"{where}: {name} has the line {line[:200]!r}, but lines look like '<s> text </s> (id)'")
    return utterance, text.strip().removeprefix("<s>").removesuffix("</s>").strip()


def _lines(where: str, name: str, data: bytes) -> Iterator[tuple[str, str]]:
    """Yield each line's place and text, but blank ones; other separators than a line feed belong to the text."""
    try:
        lines = data.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError:
        raise UserError(f"{where}: {name} is not UTF-8 text") from None
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield f"{name}:{number}", line.strip()


def _add(where: str, place: str, known: dict[str, tuple[T, str]], utterance: str, value: T) -> None:
    """Remember an utterance's value and the place that it was found in."""
    utterance = unicodedata.normalize("NFC", utterance)  # macOS names files in another form than editors write
    if not utterance.isprintable():
        raise UserError(f"{where}: the id {utterance!r} in {place!r} has a character that is not printable")
    if utterance in known:
        raise UserError(f"{where}: utterance {utterance!r} is there twice, in {known[utterance][1]} and in {place}")
    known[utterance] = value, place


def _check_split(where: str, archives: list[Path], split: str, splits: set[str]) -> None:
    names = ", ".join(map(str, archives))
    if not splits:
        raise UserError(f"{where}: no utterances are where they should be in {names}; correct the corpus's path")
    if split not in splits:
        raise UserError(f"{where}: no split {split!r} in {names}{suggestion(split, splits)}")


def _join(
    where: str, split: str, audio: dict[str, tuple[str, str]], texts: dict[str, tuple[str, str]]
) -> dict[str, Recording]:
    for utterance in texts:
        if utterance not in audio:
            raise UserError(f"{where}: utterance {utterance!r} of split {split!r} has a transcript, but no audio")
    return {
        utterance: Recording(utterance, speaker, texts[utterance][0] if utterance in texts else None, member)
        for utterance, (speaker, member) in sorted(audio.items())
    }
