"""Word errors of transcripts: counted per utterance, then summed up as rates with intervals per split."""

import re
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jiwer
import numpy as np

from pipeline.core import files
from pipeline.core.errors import UserError
from pipeline.scoring import statistics
from pipeline.scoring.normalizers import Normalizer, is_mark

MAX_COMPRESSION_RATIO = 2.4
"""Whisper's own threshold, above which it decodes again: openai/whisper, transcribe.py, compression_ratio_threshold."""

LOOP = re.compile(r"(?<!\S)(\S+(?: \S+){0,110}?)(?: \1){3}(?!\S)")
"""A phrase four times in a row: people do say "no, no, no". The 448 tokens of a piece hold no longer one four times."""

KINDS = {"equal": statistics.HIT, "substitute": "S", "delete": "D", "insert": "I"}
"""jiwer's names for the parts of an alignment, and the letter for each word of them."""

COUNTS = ("hits", "substitutions", "deletions", "insertions")

_MOST_SECONDS = 10**9
"""More than any recording; counted in milliseconds it still is a number of 64 bits."""

Line = dict[str, Any]  # one utterance of a transcript
Summary = dict[str, Any]  # one split's counts and rates


@dataclass(frozen=True)
class Scored:
    """The errors of one utterance, with the normalized texts they were counted in."""

    id: str
    split: str
    speaker: str | None
    duration: float  # seconds of audio
    hits: int
    substitutions: int
    deletions: int
    insertions: int
    alignment: str  # a letter for each word, in order: = hit, S substituted, D deleted, I inserted
    character_errors: int  # fewest edits of single characters, spaces included, from the reference to the hypothesis
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


def read(path: Path) -> list[Line]:
    """Read a transcript, one JSON object a line, sorted by split and id; raise UserError for what is not one."""
    again = f"run 'python -m pipeline.transcribe{'_protocols' if path.stem == 'protocols' else f' {path.stem}'}' first"
    try:
        lines = path.read_text(encoding="utf-8").strip().split("\n")  # splitlines would cut at U+2028 inside a text
    except FileNotFoundError:
        raise UserError(f"{path} is not here; {again}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not a text in UTF-8; {again}") from None
    if lines == [""]:
        raise UserError(f"{path} holds no transcripts; {again}")
    transcripts = []
    needed = {"split": str, "id": str, "text": str, "pred_text": str, "duration": int | float}
    for number, line in enumerate(lines, start=1):
        try:
            transcripts.append(found := files.parse_json(line))
            valid = all(isinstance(found[key], kind) for key, kind in needed.items())
            valid = valid and 0 <= found["duration"] < _MOST_SECONDS and isinstance(found.get("speaker"), str | None)
        except (ValueError, LookupError, TypeError, AttributeError):
            valid = False
        if not valid:
            wanted = (
                "an object with the texts split, id, text and pred_text and the number duration, in seconds, is needed"
            )
            raise UserError(f"{path}, line {number}: {wanted}; {again}")
    return sorted(transcripts, key=lambda line: (line["split"], line["id"]))


def is_loop(text: str) -> bool:
    """Tell whether a text says the same thing over and over.

    Either it compresses better than Whisper itself accepts, or it holds LOOP (case and punctuation aside), which finds
    loops too short to compress well.
    """
    raw = text.strip().encode()
    compresses = len(raw) / len(zlib.compress(raw)) > MAX_COMPRESSION_RATIO
    words = re.sub(r"[^\w\s']", lambda sign: sign[0] if is_mark(sign[0]) else "", text.lower()).split()
    return compresses or LOOP.search(" ".join(words)) is not None


def score(lines: Iterable[Line], normalize: Normalizer) -> list[Scored]:
    """Count the word errors of each line of a transcript, in the same order.

    A line holds id, split, speaker, duration, text and pred_text. Words are aligned with the fewest edits (jiwer). A
    prediction that loops where the reference does too is speech that repeats itself, and not counted as looping. An
    empty reference makes every word of its hypothesis an insertion.
    """
    found = []
    for line in lines:
        reference, hypothesis = (" ".join(normalize(line[key]).split()) for key in ("text", "pred_text"))
        words, characters = jiwer.process_words(reference, hypothesis), jiwer.process_characters(reference, hypothesis)
        aligned = [
            KINDS[part.type] * max(part.ref_end_idx - part.ref_start_idx, part.hyp_end_idx - part.hyp_start_idx)
            for part in words.alignments[0]
        ]
        scored = Scored(
            id=line["id"],
            split=line["split"],
            speaker=line.get("speaker"),
            duration=line["duration"],
            **{kind: getattr(words, kind) for kind in COUNTS},
            alignment="".join(aligned),
            character_errors=characters.substitutions + characters.deletions + characters.insertions,
            looping=is_loop(line["pred_text"]) and not is_loop(line["text"]),
            reference=reference,
            hypothesis=hypothesis,
        )
        found.append(scored)
    return found


def summarize(utterances: Sequence[Scored], resamples: int, seed: int) -> Summary:
    """Return one split's counts, and its error rates with their 95 % intervals, as `tables.COLUMNS` documents them.

    `measure` names the leading rate: WER or, where the references hold no words, insertions per minute; WER and CER are
    then None. Intervals are by `interval_unit`, that of the leading rate also by utterance and by speaker (None unless
    every speaker is known and there are several).
    """
    rates = (statistics.WER, "cer", "uer", statistics.INSERTIONS)
    one = statistics.PER_MINUTE
    wrong = np.array([[u.errors, u.character_errors, u.errors > 0, one * u.insertions] for u in utterances]).T
    whole = np.array([[u.words, len(u.reference), 1, round(1000 * u.duration)] for u in utterances]).T
    words, characters, *_ = whole.sum(axis=1).tolist()
    speakers = [u.speaker for u in utterances]
    unit = statistics.headline_unit(speakers)
    found = statistics.by_unit(wrong, whole, speakers, resamples, seed)
    kept = [u for u in utterances if not u.looping]
    kept_words = sum(u.words for u in kept)
    measure = statistics.WER if words else statistics.INSERTIONS
    summary: Summary = {
        "utterances": len(utterances),
        "speakers": len(set(speakers)) if None not in speakers else None,
        "minutes": sum(u.duration for u in utterances) / 60,
        "words": words,
        **{kind: sum(getattr(u, kind) for u in utterances) for kind in COUNTS},
        "characters": characters,
        "character_errors": int(wrong[1].sum()),
        "wrong_utterances": int(wrong[2].sum()),
        "measure": measure,
        "interval_unit": unit,
    }
    for name, estimate in zip(rates, found[unit], strict=True):
        known = words or name not in (statistics.WER, "cer")
        low, high = estimate.rate_interval() if known else (None, None)
        summary |= {name: estimate.value if known else None, f"{name}_low": low, f"{name}_high": high}
    summary["uer_high"] = min(summary["uer_high"], 100.0)
    for by in statistics.UNITS:
        low, high = found[by][rates.index(measure)].rate_interval() if by in found else (None, None)
        summary |= {f"{measure}_low_{by}": low, f"{measure}_high_{by}": high}
    return summary | {
        "looping": len(utterances) - len(kept),
        "looping_ids": [u.id for u in utterances if u.looping],
        "wer_without_loops": 100 * sum(u.errors for u in kept) / kept_words if kept_words else None,
    }


def described(counts: Summary) -> str:
    """Return the measure of a split, with its interval, in a line."""
    rate, low, high = (f"{counts[counts['measure'] + bound]:.2f}" for bound in ("", "_low", "_high"))
    interval = f"[{low}, {high}] by {counts['interval_unit']}"
    if counts["measure"] == statistics.WER:
        return f"WER {rate} % {interval}, of {counts['words']} words"
    return f"{rate} inserted words per minute {interval}, in {counts['minutes']:.1f} minutes"
