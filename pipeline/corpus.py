"""Read prepared speech: Parquet shards of FLAC audio, transcripts and ids, one utterance in memory at a time."""

import hashlib
import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

CORPUS = Path("data/corpus")
CALIBRATION = Path("data/calibration")

SPLIT_UTTERANCES = "split_utterances"
"""Key of a shard's metadata: how many utterances its own were chosen from."""


@dataclass(frozen=True)
class Utterance:
    """One prepared utterance; `duration` in seconds, `text` the raw reference ("" where there is none)."""

    id: str
    split: str
    speaker: str
    duration: float
    text: str
    flac: bytes


def samples(utterance: Utterance) -> "NDArray[np.float32]":
    """Decode the audio: a vector of samples in [-1, 1), 16,000 a second."""
    import soundfile

    decoded, _ = soundfile.read(io.BytesIO(utterance.flac), dtype="float32")
    return decoded  # type: ignore[no-any-return]


def shards(folder: Path) -> list[Path]:
    """List the shards of `folder`, sorted: split by split; raise UserError when there are none."""
    found = sorted(folder.rglob("*.parquet"))
    if not found:
        raise UserError(f"{folder} holds no prepared speech; run 'python -m pipeline.prepare' first")
    return found


def read_shard(shard: Path) -> Iterator[Utterance]:
    """Yield the utterances of one shard, sorted by id; raise UserError when it is damaged."""
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(shard, pre_buffer=False) as file:
            for batch in file.iter_batches(batch_size=16):
                for row in batch.to_pylist():
                    yield _utterance(row)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise UserError(f"{shard} cannot be read ({error}); run 'python -m pipeline.prepare' again") from None


def read(folder: Path) -> Iterator[Utterance]:
    """Yield the utterances of `folder`, sorted by split and id."""
    for shard in shards(folder):
        yield from read_shard(shard)


def some(folder: Path, number: int) -> list[Utterance]:
    """Return up to `number` utterances of `folder`, drawn at random, but the same ones each time.

    Reads the audio of the row groups that hold them, and no other.
    """
    import pyarrow.parquet

    ids = {shard: pyarrow.parquet.read_table(shard, columns=["id"])["id"].to_pylist() for shard in shards(folder)}
    drawn = sorted(
        ((shard, utterance) for shard, listed in ids.items() for utterance in listed),
        key=lambda place: hashlib.sha256(place[1].encode()).digest(),
    )[:number]
    found: dict[tuple[Path, str], Utterance] = {}
    for shard in ids:
        wanted = {utterance for of, utterance in drawn if of == shard}
        with pyarrow.parquet.ParquetFile(shard) as file:
            start = 0
            for group in range(file.num_row_groups):
                end = start + file.metadata.row_group(group).num_rows
                if wanted.intersection(ids[shard][start:end]):
                    rows = file.read_row_group(group).to_pylist()
                    found |= {(shard, row["id"]): _utterance(row) for row in rows if row["id"] in wanted}
                start = end
    return [found[place] for place in drawn]


def _utterance(row: dict[str, Any]) -> Utterance:
    audio = row.pop("audio")
    return Utterance(**row, flac=audio["bytes"])


def count(shards: Iterable[Path]) -> int:
    """Count the utterances of shards without reading their audio."""
    import pyarrow.parquet

    return sum(pyarrow.parquet.read_metadata(shard).num_rows for shard in shards)


def split_utterances(folder: Path) -> dict[str, int]:
    """Tell how many utterances those of each split were chosen from."""
    import pyarrow.parquet

    metadata = {shard.parent.name: pyarrow.parquet.read_schema(shard).metadata for shard in shards(folder)}
    return {split: int(entries[SPLIT_UTTERANCES.encode()]) for split, entries in metadata.items()}
