"""Word errors of transcripts: counted per utterance, then summed up as rates with intervals per split."""

import json
import re
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jiwer
import numpy as np

from pipeline.core.errors import UserError
from pipeline.results import statistics

MAX_COMPRESSION_RATIO = 2.4
"""Whisper's own threshold, above which it decodes again: openai/whisper, transcribe.py, compression_ratio_threshold."""

MIN_REPEATS = 4
"""A phrase said this often in a row is a loop: people do say "no, no, no"."""

KINDS = {"equal": statistics.HIT, "substitute": "S", "delete": "D", "insert": "I"}
"""What jiwer calls the parts of an alignment, and the letter that stands for a word of it."""

COUNTS = ("hits", "substitutions", "deletions", "insertions")

Normalizer = Callable[[str], str]

Summary = dict[str, Any]
"""One split's counts and rates."""


@dataclass(frozen=True)
class Scored:
    """The errors of one utterance, with the normalized texts they were counted in."""

    id: str
    split: str
    speaker: str | None
    duration: float
    """Seconds of audio."""
    hits: int
    substitutions: int
    deletions: int
    insertions: int
    alignment: str
    """A letter for each word, in order: = hit, S substituted, D deleted, I inserted."""
    character_errors: int
    """Fewest edits of single characters, spaces included, from the reference to the hypothesis."""
    looping: bool
    reference: str
    hypothesis: str

    @property
    def words(self) -> int:
        """Words of the reference."""
        return self.hits + self.substitutions + self.deletions

    @property
    def errors(self) -> int:
        """Edits that turn the reference into the hypothesis."""
        return self.substitutions + self.deletions + self.insertions


def normalizer(name: str) -> Normalizer:
    """Return Whisper's English normalizer, its basic one (any language), or none: the text as it is."""
    # The package, a copy of openai/whisper's own without its dependencies, has no types: hence the ignores.
    normalize: Normalizer = str
    if name == "english":
        from whisper_normalizer.english import EnglishTextNormalizer  # type: ignore[import-untyped]

        normalize = EnglishTextNormalizer()
    elif name == "basic":
        from whisper_normalizer.basic import BasicTextNormalizer  # type: ignore[import-untyped]

        normalize = BasicTextNormalizer()
    return normalize


def is_loop(text: str) -> bool:
    """Tell whether a text says the same thing over and over.

    Either it compresses better than Whisper itself accepts, or it holds a phrase, of any length, MIN_REPEATS times in a
    row (case and punctuation aside), which finds loops too short to compress well.
    """
    raw = text.strip().encode()
    if raw and len(raw) / len(zlib.compress(raw)) > MAX_COMPRESSION_RATIO:
        return True
    words = re.sub(r"[^\w\s']", "", text.lower()).split()
    for length in range(1, len(words) // MIN_REPEATS + 1):
        run = 0  # words in a row that equal the word one phrase earlier
        for earlier, word in zip(words, words[length:], strict=False):
            run = run + 1 if word == earlier else 0
            if run == length * (MIN_REPEATS - 1):
                return True
    return False


def score(lines: Iterable[dict[str, Any]], normalize: Normalizer) -> list[Scored]:
    """Count the word errors of each line of a transcript, in the same order.

    A line holds id, split, speaker, duration, text and pred_text. Words are aligned with the fewest edits (jiwer). A
    prediction that loops where the reference does too is speech that repeats itself, and not counted as looping. An
    empty reference makes every word of its hypothesis an insertion.
    """
    return [_score(line, normalize(line["text"]).strip(), normalize(line["pred_text"]).strip()) for line in lines]


def _score(line: dict[str, Any], reference: str, hypothesis: str) -> Scored:
    counts = jiwer.process_words(reference, hypothesis)
    characters = jiwer.process_characters(reference, hypothesis)
    return Scored(
        id=line["id"],
        split=line["split"],
        speaker=line.get("speaker"),
        duration=line["duration"],
        **{kind: getattr(counts, kind) for kind in COUNTS},
        alignment="".join(
            KINDS[part.type] * max(part.ref_end_idx - part.ref_start_idx, part.hyp_end_idx - part.hyp_start_idx)
            for part in counts.alignments[0]
        ),
        character_errors=characters.substitutions + characters.deletions + characters.insertions,
        looping=is_loop(line["pred_text"]) and not is_loop(line["text"]),
        reference=reference,
        hypothesis=hypothesis,
    )


def summarize(utterances: Sequence[Scored], resamples: int, seed: int) -> Summary:
    """Return one split's counts, and its error rates with their 95 % intervals, as `tables.COLUMNS` documents them.

    `measure` names the rate that leads: WER or, where the references hold no words, insertions per minute; there WER
    and CER are None. Intervals are by `interval_unit`, that of the leading rate also by utterance and by speaker (None
    where speakers are not known, or only one).
    """
    one = statistics.PER_MINUTE
    wrong = np.array([[u.errors, u.character_errors, u.errors > 0, one * u.insertions] for u in utterances]).T
    whole = np.array([[u.words, len(u.reference), 1, round(1000 * u.duration)] for u in utterances]).T
    words, characters = int(whole[0].sum()), int(whole[1].sum())
    measure = statistics.WER if words else statistics.INSERTIONS
    speakers = [utterance.speaker for utterance in utterances]
    unit = statistics.headline_unit(speakers)
    found = {
        by: dict(zip((statistics.WER, "cer", "uer", statistics.INSERTIONS), estimates, strict=True))
        for by, estimates in statistics.by_unit(wrong, whole, speakers, resamples, seed).items()
    }
    kept = [utterance for utterance in utterances if not utterance.looping]
    kept_words = sum(utterance.words for utterance in kept)
    summary: Summary = {
        "utterances": len(utterances),
        "speakers": len(set(speakers)) if None not in speakers else None,
        "minutes": sum(utterance.duration for utterance in utterances) / 60,
        "words": words,
        **{kind: sum(getattr(utterance, kind) for utterance in utterances) for kind in COUNTS},
        "characters": characters,
        "character_errors": int(wrong[1].sum()),
        "wrong_utterances": int(wrong[2].sum()),
        "measure": measure,
        "interval_unit": unit,
    }
    for name, estimate in found[unit].items():
        known = words or name not in (statistics.WER, "cer")
        low, high = estimate.rate_interval() if known else (None, None)
        summary |= {name: estimate.value if known else None, f"{name}_low": low, f"{name}_high": high}
    summary["uer_high"] = min(summary["uer_high"], 100.0)
    for by in statistics.UNITS:
        low, high = found[by][measure].rate_interval() if by in found else (None, None)
        summary |= {f"{measure}_low_{by}": low, f"{measure}_high_{by}": high}
    return summary | {
        "looping": len(utterances) - len(kept),
        "looping_ids": [utterance.id for utterance in utterances if utterance.looping],
        "wer_without_loops": 100 * sum(utterance.errors for utterance in kept) / kept_words if kept_words else None,
    }


def read(path: Path) -> list[dict[str, Any]]:
    """Read a transcript, one JSON object a line, sorted by split and id; raise UserError for what is not one."""
    again = f"run 'python -m pipeline.transcribe {path.stem}' first"
    try:
        lines = path.read_text(encoding="utf-8").strip().split("\n")  # splitlines would cut at U+2028 inside a text
    except FileNotFoundError:
        raise UserError(f"{path} is not here; {again}") from None
    if lines == [""]:
        raise UserError(f"{path} holds no transcripts; {again}")
    transcripts = []
    for number, line in enumerate(lines, start=1):
        try:
            transcript = json.loads(line)
            texts = [transcript[key] for key in ("split", "id", "text", "pred_text")]
            if not (all(isinstance(text, str) for text in texts) and isinstance(transcript["duration"], int | float)):
                raise TypeError
        except (ValueError, KeyError, TypeError):
            raise UserError(
                f"{path}, line {number}: an object with the texts split, id, text and pred_text and the number "
                f"duration is needed; {again}"
            ) from None
        transcripts.append(transcript)
    return sorted(transcripts, key=lambda transcript: (transcript["split"], transcript["id"]))


def described(counts: Summary) -> str:
    """Return the measure of a split, with its interval, in a line."""
    rate, low, high = (f"{counts[counts['measure'] + bound]:.2f}" for bound in ("", "_low", "_high"))
    interval = f"[{low}, {high}] by {counts['interval_unit']}"
    if counts["measure"] == statistics.WER:
        return f"WER {rate} % {interval}, of {counts['words']} words"
    return f"{rate} inserted words per minute {interval}, in {counts['minutes']:.1f} minutes"
