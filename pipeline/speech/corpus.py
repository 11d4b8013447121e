"""Read prepared speech: Parquet shards of FLAC audio, transcripts and ids, one utterance in memory at a time.

`datasets` opens the same shards; importing it takes half a second in each stage of each variant, pyarrow a tenth.
"""

import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.core.errors import UserError

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

    def identity(self) -> dict[str, str | float]:
        """Return what a line of a transcript says besides the texts."""
        return {"id": self.id, "split": self.split, "speaker": self.speaker, "duration": self.duration}


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

    try:
        yield from map(_utterance, rows(shard))
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise UserError(f"{shard} cannot be read ({error}); run 'python -m pipeline.prepare' again") from None


def rows(file: Path, columns: list[str] | None = None) -> Iterator[dict[str, Any]]:
    """Yield the rows of a Parquet file, 16 in memory at once; raise pyarrow's ArrowInvalid when it is damaged."""
    import pyarrow.parquet

    # Pre-buffering, the default, would hold the whole file; so it is a row group, 100 utterances in published corpora.
    with pyarrow.parquet.ParquetFile(file, pre_buffer=False) as parquet:
        for batch in parquet.iter_batches(batch_size=16, columns=columns):
            yield from batch.to_pylist()


def read(folder: Path) -> Iterator[Utterance]:
    """Yield the utterances of `folder`, sorted by split and id."""
    for shard in shards(folder):
        yield from read_shard(shard)


def some(folder: Path, number: int) -> list[Utterance]:
    """Return up to `number` utterances of `folder`, drawn at random, but the same ones each time.

    Reads the audio of the row groups that may hold them, and no other.
    """
    import pyarrow.dataset

    table = pyarrow.dataset.dataset([str(shard) for shard in shards(folder)])
    places = table.to_table(["split", "id"]).to_pylist()
    drawn = sorted(places, key=lambda place: hashlib.sha256(place["id"].encode()).digest())[:number]
    wanted = pyarrow.dataset.field("id").isin([place["id"] for place in drawn])
    found = table.to_table(filter=wanted, batch_readahead=1, fragment_readahead=1).to_pylist()
    utterances = {(row["split"], row["id"]): _utterance(row) for row in found}
    return [utterances[place["split"], place["id"]] for place in drawn]


def _utterance(row: dict[str, Any]) -> Utterance:
    audio = row.pop("audio")
    return Utterance(**row, flac=audio["bytes"])


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
