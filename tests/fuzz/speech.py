"""Speech: transcripts, archives, Parquet and audio, through `download` and `prepare`."""

import contextlib
import gzip
import io
import tarfile
from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from pipeline import download, prepare
from pipeline.speech import corpus
from pipeline.speech.sources import audio, layouts
from tests.conftest import encode, noise
from tests.fuzz.project import SOUNDS, SPEECH, settings, whole, write
from tests.fuzz.spoil import VALUES, garble, odd, zips

TREE = {f"test/1/2/1-2-{n}.{kind.lower()}": data for n, (kind, data) in enumerate(SOUNDS.items())}
TREE["test/1/2/1-2.trans.txt"] = b"1-2-0 HE MIGHT EVEN\n1-2-1 HAVE BEEN\n1-2-2 MADE AMIABLE\n1-2-3 HIMSELF\n"
SPHINX = {
    "pkg-1.0/data/test/fileids": b"a-1\nb-2\n",
    "pkg-1.0/data/test/transcription": b"<s> he might even </s> (a-1)\nhave been (b-2)\n",
    "pkg-1.0/data/test/a-1.wav": SOUNDS["WAV"],
    "pkg-1.0/data/test/b-2.flac": SOUNDS["FLAC"],
}
STEREO = np.stack([noise(0.1, 1), noise(0.1, 2)], axis=1)
RECORDED = [
    *SOUNDS.values(),
    encode(STEREO, "WAV", 44_100),
    encode(STEREO, "WAVEX", 8_000, "PCM_24"),
    encode(STEREO / 2.0**15, "WAV", 16_000, "FLOAT"),
    encode(STEREO, "FLAC", 48_000, "PCM_24"),
    encode(STEREO, "OGG", 48_000, "OPUS"),
    encode(STEREO, "MP3", 22_050, "MPEG_LAYER_III"),
]
"""Audio as recorders and the web have it."""

PACKAGE = {"source": "package", "path": "pkg-1.0/data", "splits": ["test"]}


def prepared(entry: Mapping[str, Any], raw: Mapping[str, bytes]) -> None:
    """Prepare a corpus of these downloaded files, and read what comes out."""
    settings(entry)
    layouts.pack(_made(Path("data/raw/other/train.tar")), [("train/3/4/3-4-0.flac", SOUNDS["FLAC"])])
    write({f"data/raw/speech/{name}": data for name, data in raw.items()})
    with whole(corpus.CORPUS, corpus.CALIBRATION):
        prepare.main()
    utterances = list(corpus.read(corpus.CORPUS))
    assert utterances
    for utterance in utterances:
        assert utterance.text.strip() == utterance.text != ""
        assert len(corpus.samples(utterance)) == round(utterance.duration * audio.RATE) > 0


def _made(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def transcript(draw: Random) -> None:
    """LibriSpeech's transcripts, in a folder of one's own."""
    name, data = "test/1/2/1-2.trans.txt", TREE["test/1/2/1-2.trans.txt"]
    files = TREE | {name: garble(draw, data) if draw.random() < 0.8 else data}
    if draw.random() < 0.3:
        sign, ending = (
            draw.choice(("\n", "\x1b[31m", "\udcff", " ", "é", ".")),
            draw.choice((".flac", ".WAV", ".Ogg", "")),
        )
        place = draw.choice(("test/1/2/", "test/1/", "test/1/2/3/", f"test/1{sign}/2/"))
        files[f"{place}{sign}1-2-0{ending}"] = files.pop("test/1/2/1-2-0.flac")
    write({f"speech/{of}": content for of, content in files.items()} | {"other/train/3/4/3-4-0.flac": SOUNDS["FLAC"]})
    settings()
    with whole(Path("data/raw/speech")):
        download.main()
    prepared(SPEECH, {})


def sphinx(draw: Random) -> None:
    """CMU Sphinx's lists of ids and transcripts, in an sdist."""
    name = draw.choice(list(SPHINX)[:2])
    prepared(
        PACKAGE | {"files": {"pkg-1.0.tar.gz": None}},
        {"pkg-1.0.tar.gz": tar(draw, SPHINX | {name: garble(draw, SPHINX[name])})},
    )


def tar(draw: Random, files: Mapping[str, bytes], strange: float = 0.0) -> bytes:
    """Return a tar.gz, some of whose members may have strange names, kinds and sizes."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w"):
        for name, data in files.items():
            member = tarfile.TarInfo(odd(draw, name) if draw.random() < strange else name)
            member.size = len(data)
            if draw.random() < strange:
                member.type = draw.choice((*tarfile.SUPPORTED_TYPES, b"?"))
                member.linkname = draw.choice((*files, "/etc/passwd", name))
            if draw.random() < strange:
                member.size = draw.choice((0, 1, 2**40, 2**62, len(data) + 1))
                member.pax_headers = {"size": str(draw.choice((-1, 2**70, "x")))} if draw.random() < 0.5 else {}
            file.write(member.tobuf(tarfile.PAX_FORMAT) + data + bytes(-len(data) % 512))
    return file.getvalue()


def tars(draw: Random) -> None:
    """Archives as LibriSpeech and sdists are."""
    entry = {"source": "openslr", "url": "http://localhost:1", "splits": ["test"], "files": {"test.tar.gz": "0"}}
    data = tar(draw, {f"LibriSpeech/{name}": data for name, data in TREE.items()}, draw.choice((0, 0.1, 0.5)))
    data = garble(draw, data, tar(draw, SPHINX)) if draw.random() < 0.5 else data
    data = gzip.compress(data, 1) if draw.random() < 0.8 else data
    prepared(entry, {"test.tar.gz": garble(draw, data) if draw.random() < 0.5 else data})


def wheel(draw: Random) -> None:
    """Speech in a wheel."""
    name = "pkg-1.0-py3-none-any.whl"
    prepared(PACKAGE | {"files": {name: None}}, {name: zips(draw, SPHINX)})


def parquet(draw: Random) -> None:
    """Speech as the hub keeps it."""
    import pyarrow
    import pyarrow.parquet

    rows = [
        {"id": f"1-{n}", "text": "A", "speaker_id": 1, "audio": {"bytes": SOUNDS["FLAC"], "path": "x"}}
        for n in range(3)
    ]
    if draw.random() < 0.4:
        key, value = draw.choice(list(rows[0])), draw.choice((*VALUES[:-3], b"bytes", {"bytes": None}, {"bytes": b""}))
        changed = rows if draw.random() < 0.5 else rows[1:2]
        for row in changed:
            row[key] = value
    try:
        table = pyarrow.Table.from_pylist(rows)
    except (pyarrow.ArrowException, OverflowError, UnicodeEncodeError):  # not even Parquet can hold them
        table = pyarrow.Table.from_pylist([]) if draw.random() < 0.5 else pyarrow.table({"id": ["a"]})
    if draw.random() < 0.3:
        column = draw.randrange(len(table.columns)) if table.columns else 0
        kind = draw.choice(
            (pyarrow.large_string(), pyarrow.binary(), pyarrow.timestamp("s"), pyarrow.null(), pyarrow.float16())
        )
        with contextlib.suppress(pyarrow.ArrowException, IndexError):
            table = table.set_column(column, table.field(column).name, table.column(column).cast(kind))
        with contextlib.suppress(pyarrow.ArrowException, IndexError):
            table = table.set_column(column, table.field(column).name, table.column(column).dictionary_encode())
    file = io.BytesIO()
    with contextlib.suppress(pyarrow.ArrowNotImplementedError):
        pyarrow.parquet.write_table(table, file, compression=draw.choice(("none", "snappy", "gzip", "zstd")))
    data = garble(draw, file.getvalue()) if draw.random() < 0.7 else file.getvalue()
    entry = {"source": "hub", "repo": "a/b", "revision": "0", "splits": ["test"], "files": {"test/0.parquet": None}}
    prepared(entry, {"test/0.parquet": data})


def sound(draw: Random) -> None:
    """Audio in each of the four formats."""
    data, other = draw.choice(RECORDED), draw.choice(RECORDED)
    data = garble(draw, data, other)
    checked = audio.check("utterance 'a'", data)
    assert 0 < checked.samples < 100_000
    utterance = corpus.Utterance("a", "test", "a", checked.samples / audio.RATE, "A", checked.flac)
    samples = corpus.samples(utterance)
    assert len(samples) == checked.samples
    assert np.isfinite(samples).all()
