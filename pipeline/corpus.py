"""Read prepared speech: Parquet shards of FLAC audio, transcripts and ids, one utterance in memory at a time."""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

CORPUS = Path("data/corpus")
CALIBRATION = Path("data/calibration")


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
        with pyarrow.parquet.ParquetFile(shard) as file:
            for batch in file.iter_batches(batch_size=16):
                for row in batch.to_pylist():
                    audio = row.pop("audio")
                    yield Utterance(**row, flac=audio["bytes"])
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise UserError(f"{shard} cannot be read ({error}); run 'python -m pipeline.prepare' again") from None


def read(folder: Path) -> Iterator[Utterance]:
    """Yield the utterances of `folder`, sorted by split and id."""
    for shard in shards(folder):
        yield from read_shard(shard)


def count(folder: Path) -> int:
    """Count the utterances of `folder` without reading their audio."""
    import pyarrow.parquet

    return sum(pyarrow.parquet.read_metadata(shard).num_rows for shard in shards(folder))
