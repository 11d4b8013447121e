"""Prepare the corpus: selected utterances with checked audio and transcripts, in Parquet shards.

What to select stands in params.yaml (corpus, calibration) and catalog.yaml (corpora).
"""

import hashlib
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.core import files, stage
from pipeline.core.errors import UserError
from pipeline.speech import corpus, sources
from pipeline.speech.sources import audio, layouts

if TYPE_CHECKING:
    import pyarrow

    from pipeline.core import params

Row = dict[str, Any]

SHARD_SECONDS = 15 * 60
ROW_GROUP = 16  # utterances; what a reader holds in memory at once


def select(speakers: Mapping[str, str], limit: int | None, seed: int) -> list[str]:
    """Choose up to `limit` of the ids (keys of `speakers`), as many of each speaker as can be; return them sorted.

    Hashes of seed and name give the order: the same everywhere, and a larger limit only adds utterances.
    """

    def shuffled(names: Iterable[str]) -> list[str]:
        return sorted(names, key=lambda name: hashlib.sha256(f"{seed}/{name}".encode()).digest())

    of = {speaker: [each for each, by in speakers.items() if by == speaker] for speaker in {*speakers.values()}}
    rounds = chain.from_iterable(zip_longest(*(shuffled(of[speaker]) for speaker in shuffled(of))))
    return sorted([utterance for utterance in rounds if utterance is not None][:limit])


@dataclass(frozen=True)
class Chosen:
    """The recordings whose ids `select` chose, sorted by id, and how many it chose from."""

    recordings: list[layouts.Recording]
    of: int


def choose(recordings: Mapping[str, layouts.Recording], limit: int | None, seed: int) -> Chosen:
    """Choose up to `limit` recordings, as many of each speaker as can be."""
    speakers = {utterance: recording.speaker for utterance, recording in recordings.items()}
    return Chosen([recordings[utterance] for utterance in select(speakers, limit, seed)], len(recordings))


def scored(name: str, entry: "params.Corpus", split: str) -> Chosen:
    """Choose the recordings of a split that is scored; raise UserError where a transcript is missing.

    In generated sound nothing is said, so that its transcripts are known to be empty.
    """
    recordings = sources.recordings(name, entry, split)
    if not recordings:
        raise UserError(f"corpus {name!r}: split {split!r} holds no utterances")
    bare = [recording.id for recording in recordings.values() if not recording.text]
    if bare and entry.source != "generated":
        raise UserError(
            f"corpus {name!r}: utterance {bare[0]!r} of split {split!r} has audio, but no transcript "
            f"({len(bare):,} of {len(recordings):,} have none); a split without transcripts cannot be scored"
        )
    return choose(recordings, entry.limit, seed=0)


def calibrating(settings: "params.Calibration", entry: "params.Corpus") -> Chosen:
    """Choose the recordings that calibrate; raise UserError when there are fewer than asked for."""
    recordings = sources.recordings(settings.corpus, entry, settings.split)
    if len(recordings) < settings.utterances:
        raise UserError(
            f"calibration: {settings.utterances:,} utterances are asked for, but split {settings.split!r} of corpus "
            f"{settings.corpus!r} has {len(recordings):,}; lower calibration.utterances"
        )
    return choose(recordings, settings.utterances, settings.seed)


def rows(folder: Path, archives: list[Path], split: str, recordings: list[layouts.Recording]) -> Iterator[Row]:
    """Yield the table's rows in the order of `recordings`, with checked audio; raise UserError for a broken one.

    Beside the columns of `schema`, a row tells whether its audio was `resampled` and whether it was `mixed_down`.

    Archives have another order, so the audio waits in a temporary file in `folder`, and not in memory.
    """
    from tqdm import tqdm

    by_member = {recording.member: recording for recording in recordings}
    places: dict[str, tuple[int, int, audio.Audio]] = {}  # id -> offset and bytes in the temporary file, what is there
    with (
        tempfile.TemporaryFile(dir=folder) as spool,
        tqdm(total=len(recordings), desc=f"prepare {split}", unit=" utterances", mininterval=0.5, disable=None) as bar,
    ):
        for member, data in layouts.members(archives, by_member.__contains__):
            if data is not None:
                utterance = by_member[member].id
                checked = audio.check(f"utterance {utterance!r} ({member})", data)
                places[utterance] = (spool.tell(), len(checked.flac), replace(checked, flac=b""))
                spool.write(checked.flac)
                bar.update()
        for recording in recordings:
            start, size, checked = places[recording.id]
            spool.seek(start)
            yield {
                "id": recording.id,
                "split": split,
                "speaker": recording.speaker,
                "duration": checked.samples / audio.RATE,
                "text": recording.text or "",
                "audio": {"bytes": spool.read(size), "path": f"{recording.id}.flac"},
                "resampled": checked.resampled,
                "mixed_down": checked.mixed_down,
            }


def shards(table: Iterable[Row]) -> Iterator[list[Row]]:
    """Cut the table into runs of about 15 minutes of audio, the piece of work that later stages hand out."""
    shard: list[Row] = []
    seconds = 0.0
    for row in table:
        if shard and seconds + row["duration"] > SHARD_SECONDS:
            yield shard
            shard, seconds = [], 0.0
        shard.append(row)
        seconds += row["duration"]
    if shard:
        yield shard


def schema(split_utterances: int, resampled: int = 0, mixed_down: int = 0) -> "pyarrow.Schema":
    """Return the shards' schema, as `datasets` describes columns: it opens them with the audio decoded.

    `split_utterances` is what the shards' utterances were chosen from; how many of them were resampled and mixed down
    stands beside it.
    """
    from datasets import Audio, Features, Value  # half a second: nothing else imports it (see `corpus`)

    text, sound = Value("string"), Audio(sampling_rate=audio.RATE)
    columns = {"id": text, "split": text, "speaker": text, "duration": Value("float64"), "text": text, "audio": sound}
    described = Features(columns).arrow_schema
    counts = {corpus.SPLIT_UTTERANCES: split_utterances, "resampled": resampled, "mixed_down": mixed_down}
    return described.with_metadata({**described.metadata, **{key: str(count) for key, count in counts.items()}})


def write(folder: Path, name: str, entry: "params.Corpus", split: str, chosen: Chosen) -> None:
    """Write the chosen recordings to `folder` as 00000.parquet, 00001.parquet, ..."""
    import pyarrow
    import pyarrow.parquet

    folder.mkdir(parents=True)
    table = rows(folder, sources.archives(name, entry, split), split, chosen.recordings)
    for number, shard in enumerate(shards(table)):
        converted = {key: sum(row[key] for row in shard) for key in corpus.CONVERSIONS}
        pyarrow.parquet.write_table(
            pyarrow.Table.from_pylist(shard, schema=schema(chosen.of, **converted)),
            folder / f"{number:05}.parquet",
            row_group_size=ROW_GROUP,
            compression="none",  # the audio, nearly all of it, is compressed already
            use_dictionary=False,
        )


def main() -> None:
    """Write what is scored to data/corpus/<split>/ and what calibrates to data/calibration/."""
    from pipeline.core import params

    settings = params.read()
    name, entry = settings.corpus, settings.corpora[settings.corpus]
    calibration, calibration_entry = settings.calibration, settings.corpora[settings.calibration.corpus]
    # List everything first: a wrong setting is told before the minutes of decoding.
    splits = {split: scored(name, entry, split) for split in entry.splits}
    calibrate = calibrating(calibration, calibration_entry)
    tested = {recording.id for chosen in splits.values() for recording in chosen.recordings}
    both = sorted(recording.id for recording in calibrate.recordings if recording.id in tested)
    if both:  # the same speech by another name
        raise UserError(
            f"calibration: utterance {both[0]!r} is one that is scored; calibrate on another split, "
            "or the scores would be tuned on their own audio"
        )
    with files.aside(corpus.CORPUS) as partial:
        for split, chosen in splits.items():
            write(partial / split, name, entry, split, chosen)
    with files.aside(corpus.CALIBRATION) as partial:
        write(partial, calibration.corpus, calibration_entry, calibration.split, calibrate)
    converted = {split: _told(counts) for split, counts in corpus.conversions(corpus.CORPUS).items()}
    for split, chosen in splits.items():
        of = f" of {chosen.of:,}, evenly by speaker" if len(chosen.recordings) < chosen.of else ""
        print(f"{corpus.CORPUS / split}: {len(chosen.recordings):,} utterances{of}{converted[split]}")
    (counts,) = corpus.conversions(corpus.CALIBRATION).values()
    print(f"{corpus.CALIBRATION}: {len(calibrate.recordings):,} utterances{_told(counts)}")


def _told(converted: Mapping[str, int]) -> str:
    resampled, mixed_down = converted["resampled"], converted["mixed_down"]
    told = f", {resampled:,} resampled to {audio.RATE // 1000} kHz" if resampled else ""
    return told + (f", {mixed_down:,} mixed down" if mixed_down else "")


if __name__ == "__main__":
    stage.run(main)
