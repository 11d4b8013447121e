"""Read prepared speech: Parquet shards of FLAC audio, transcripts and ids, one utterance in memory at a time.

`datasets` opens the same shards; importing it takes half a second in each stage of each variant, pyarrow a tenth.
"""

import hashlib
import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.core.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    import pyarrow
    from numpy.typing import NDArray

CORPUS = Path("data/corpus")
CALIBRATION = Path("data/calibration")

SPLIT_UTTERANCES = "split_utterances"
"""Key of a shard's metadata: how many utterances its own were chosen from."""

CONVERSIONS = ("resampled", "mixed_down")
"""Keys of a shard's metadata: of how many utterances the rate was converted, and of how many the channels averaged."""


@dataclass(frozen=True)
class Utterance:
    """One prepared utterance; `duration` in seconds, `text` the raw reference ("" where there is none).

    The FLAC bytes are those that Parquet has read, without a copy.
    """

    id: str
    split: str
    speaker: str
    duration: float
    text: str
    flac: "bytes | pyarrow.Buffer"

    def identity(self) -> dict[str, str | float]:
        """Return what a line of a transcript says besides the texts."""
        return {"id": self.id, "split": self.split, "speaker": self.speaker, "duration": self.duration}


class Sound:
    """The audio of an utterance, decoded where it is read: an hour of it is not held in memory."""

    def __init__(self, utterance: Utterance) -> None:
        import pyarrow
        import soundfile

        self._file = soundfile.SoundFile(pyarrow.BufferReader(utterance.flac))

    def __len__(self) -> int:
        """Count the samples, 16,000 a second."""
        return int(self._file.frames)

    def read(self, start: int, end: int) -> "NDArray[np.float32]":
        """Return samples in [-1, 1) from `start` up to `end`."""
        self._file.seek(start)
        return self._file.read(end - start, dtype="float32")  # type: ignore[no-any-return]


def samples(utterance: Utterance) -> "NDArray[np.float32]":
    """Return all samples of an utterance, in [-1, 1), 16,000 a second."""
    sound = Sound(utterance)
    return sound.read(0, len(sound))


def shards(folder: Path) -> list[Path]:
    """List the shards of `folder`, sorted: split by split; raise UserError when there are none."""
    found = sorted(folder.rglob("*.parquet"))
    if not found:
        raise UserError(f"{folder} holds no prepared speech; run 'python -m pipeline.prepare' first")
    return found


def read_shard(shard: Path) -> Iterator[Utterance]:
    """Yield the utterances of one shard, sorted by id; raise UserError when it is damaged."""
    import pyarrow

    try:
        for batch in _batches(shard):
            yield from map(_utterance, range(len(batch)), itertools.repeat(batch))
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise UserError(f"{shard} cannot be read ({error}); run 'python -m pipeline.prepare' again") from None


def rows(file: Path, columns: list[str]) -> Iterator[dict[str, Any]]:
    """Yield the rows of a Parquet file, 16 in memory at once; raise pyarrow's ArrowInvalid when it is damaged."""
    for batch in _batches(file, columns):
        yield from batch.to_pylist()


def _batches(file: Path, columns: list[str] | None = None) -> "Iterator[pyarrow.RecordBatch]":
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")  # pyarrow's own keeps what a long recording took
    import pyarrow.parquet

    # Without a buffer of its own for reading, a recording is in memory once more; by default, pre-buffering would hold
    # the whole file. So it is a row group, 100 utterances in published corpora.
    with pyarrow.parquet.ParquetFile(
        file, pre_buffer=False, buffer_size=1 << 20, page_checksum_verification=True
    ) as parquet:
        yield from parquet.iter_batches(batch_size=16, columns=columns)


def read(folder: Path) -> Iterator[Utterance]:
    """Yield the utterances of `folder`, sorted by split and id."""
    for shard in shards(folder):
        yield from read_shard(shard)


def some(folder: Path, number: int) -> list[Utterance]:
    """Return up to `number` utterances of `folder`, drawn at random, but the same ones each time.

    Reads the audio of the shards that hold them, and no other.
    """
    places = [
        (hashlib.sha256(row["id"].encode()).digest(), row["split"], row["id"], shard)
        for shard in shards(folder)
        for row in rows(shard, ["split", "id"])
    ]
    drawn = sorted(places, key=lambda place: place[0])[:number]
    wanted = {(split, name) for _, split, name, _ in drawn}
    found = {
        (utterance.split, utterance.id): replace(utterance, flac=bytes(utterance.flac))  # or its neighbours would stay
        for shard in dict.fromkeys(shard for *_, shard in drawn)
        for utterance in read_shard(shard)
        if (utterance.split, utterance.id) in wanted
    }
    return [found[split, name] for _, split, name, _ in drawn]


def _utterance(row: int, batch: "pyarrow.RecordBatch") -> Utterance:
    plain = {column: batch.column(column)[row].as_py() for column in ("id", "split", "speaker", "duration", "text")}
    return Utterance(**plain, flac=batch.column("audio")[row]["bytes"].as_buffer())


def name(shard: Path) -> str:
    """Name a shard of the corpus by its split and number."""
    return f"{shard.parent.name}-{shard.stem}"


def count(shard: Path) -> int:
    """Count a shard's utterances without reading their audio."""
    import pyarrow.parquet

    return int(pyarrow.parquet.read_metadata(shard).num_rows)


def split_utterances(folder: Path) -> dict[str, int]:
    """Tell how many utterances those of each split were chosen from."""
    import pyarrow.parquet

    metadata = {shard.parent.name: pyarrow.parquet.read_schema(shard).metadata for shard in shards(folder)}
    return {split: int(entries[SPLIT_UTTERANCES.encode()]) for split, entries in metadata.items()}


def conversions(folder: Path) -> dict[str, dict[str, int]]:
    """Count each split's utterances that were `resampled` to 16 kHz, and that were `mixed_down` to one channel."""
    import pyarrow.parquet

    counts: dict[str, dict[str, int]] = {}
    for shard in shards(folder):
        metadata = pyarrow.parquet.read_schema(shard).metadata
        split = counts.setdefault(shard.parent.name, dict.fromkeys(CONVERSIONS, 0))
        for key in CONVERSIONS:
            split[key] += int(metadata[key.encode()])
    return counts
