"""Score fp32 under other decoding protocols and normalizers: how much of its error rate is the protocol's doing."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.core import files, params, stage
from pipeline.results import tables
from pipeline.scoring import normalizers, statistics, wer

TRANSCRIPTS = Path("reports/protocols.jsonl")

NORMALIZERS = ("english", "basic")
"""Whisper's two; without any, LibriSpeech's capitals alone would make every word an error."""

SUMMED = (
    *("utterances", "words", "substitutions", "deletions", "insertions", "looping"),
    *("wer", "wer_without_loops", "insertions_per_minute"),
)
"""What protocol.csv has of `wer.summarize`."""


def rows(lines: Sequence[dict[str, Any]], settings: params.Params) -> list[dict[str, Any]]:
    """Return a row per split and protocol: the study's own, then others of decoding, then other normalizers (pure).

    Differences are to the first, by the paired bootstrap; None for the first, and where references hold no words.
    """
    scoring = settings.scoring
    own = settings.decoding.suppress_non_speech, settings.decoding.max_new_tokens
    decodings = {(line["suppress_non_speech"], line["max_new_tokens"]) for line in lines}
    usual: str = scoring.normalizer
    tried = [(way, usual) for way in (own, *sorted(decodings - {own}, reverse=True))]
    written_in_english = settings.decoding.language == "en" or settings.decoding.task == "translate"
    others = NORMALIZERS if written_in_english else ("basic",)
    tried += [(own, name) for name in others if name != usual]
    table = []
    for split in sorted({line["split"] for line in lines}):
        first: list[wer.Scored] = []
        for way, normalizer in tried:
            protocol = dict(zip(("split", "suppress_non_speech", "max_new_tokens"), (split, *way), strict=True))
            chosen = [line for line in lines if line.items() >= protocol.items()]
            utterances = wer.score(chosen, normalizers.get(normalizer))
            summary = wer.summarize(utterances, scoring.resamples, scoring.seed)
            delta = _difference(first, utterances, scoring) if first and summary["words"] else (None,) * 3
            first = first or utterances
            row = protocol | {"normalizer": normalizer} | {column: summary[column] for column in SUMMED}
            row |= dict(zip(("wer_delta", "wer_delta_low", "wer_delta_high"), delta, strict=True))
            table.append(tables.rounded(row | {"interval_unit": summary["interval_unit"]}))
    return table


def _difference(first: list[wer.Scored], other: list[wer.Scored], scoring: params.Scoring) -> tuple[float, ...]:
    # A normalizer may split words differently, hence each one's own number of words.
    wrong = np.array([[u.errors for u in each] for each in (first, other)])
    words = np.array([[u.words for u in each] for each in (first, other)])
    speakers = [u.speaker for u in first]
    found = statistics.by_unit(wrong, words, speakers, scoring.resamples, scoring.seed, base=0)
    difference = found[statistics.headline_unit(speakers)][1]
    return difference.value, *difference.interval()


def main() -> None:
    """Read reports/protocols.jsonl, write reports/protocol.csv."""
    table = rows(wer.read(TRANSCRIPTS), params.read())
    files.write_text(tables.PROTOCOL, tables.to_csv(table))
    for row in table:
        rate = f"{row['insertions_per_minute']:.2f} words/min" if row["wer"] is None else f"WER {row['wer']:.2f} %"
        ways = f"{'with' if row['suppress_non_speech'] else 'without'} suppression, {row['max_new_tokens']} tokens"
        print(f"fp32, {row['split']}: {rate} {ways}, normalizer {row['normalizer']}")


if __name__ == "__main__":
    stage.run(main)
