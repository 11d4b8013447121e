"""Score one variant's transcripts: count word errors per utterance, then rates and intervals per split."""

import itertools
from pathlib import Path

from pipeline.core import files, params, stage
from pipeline.scoring import normalizers, wer

TRANSCRIPTS = Path("reports/transcripts")
SCORES = Path("reports/scores")


def main(variant: str) -> None:
    """Read the transcripts of `variant`, write its counts and rates to reports/scores/<variant>.json."""
    settings = params.read()
    settings.variant(variant)
    scoring = settings.scoring
    utterances = wer.score(wer.read(TRANSCRIPTS / f"{variant}.jsonl"), normalizers.get(scoring.normalizer))
    splits = {
        split: wer.summarize(list(group), scoring.resamples, scoring.seed)
        for split, group in itertools.groupby(utterances, key=lambda utterance: utterance.split)
    }
    found = {
        "variant": variant,
        "scoring": vars(scoring),
        "normalizer_version": normalizers.version(scoring.normalizer),
        "splits": splits,
        "utterances": [*map(vars, utterances)],
    }
    files.write_json(SCORES / f"{variant}.json", found)
    for split, counts in splits.items():
        print(f"{variant}, {split}: {wer.described(counts)}")


if __name__ == "__main__":
    stage.run(main)
