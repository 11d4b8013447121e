"""Score one variant's transcripts: count word errors per utterance, then rates and intervals per split."""

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

from pipeline.core import files, params, stage
from pipeline.core.errors import UserError
from pipeline.results import wer

TRANSCRIPTS = Path("reports/transcripts")
SCORES = Path("reports/scores")


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


def main(variant: str) -> None:
    """Read the transcripts of `variant`, write its counts and rates to reports/scores/<variant>.json."""
    settings = params.read()
    settings.variant(variant)
    scoring = settings.scoring
    utterances = wer.score(read(TRANSCRIPTS / f"{variant}.jsonl"), wer.normalizer(scoring.normalizer))
    splits = {
        split: wer.summarize(list(group), scoring.resamples, scoring.seed)
        for split, group in itertools.groupby(utterances, key=lambda utterance: utterance.split)
    }
    files.write_json(
        SCORES / f"{variant}.json",
        {
            "variant": variant,
            "scoring": dataclasses.asdict(scoring),
            "splits": splits,
            "utterances": [dataclasses.asdict(utterance) for utterance in utterances],
        },
    )
    for split, counts in splits.items():
        print(f"{variant}, {split}: {wer.described(counts)}")


if __name__ == "__main__":
    stage.run(main)
