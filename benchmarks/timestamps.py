"""Measure whether variants keep fp32's times: the first word's start and the last one's end, in each utterance.

Prints for each variant the share of utterances in which either moves by more than 0.2 s against fp32, of those that
both write something of.

Usage: python -m benchmarks.timestamps SPLIT [--corpus NAME] [--utterances 45] [--variant NAME ...]
Needs `dvc repro` of the variants' quantize stages.
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from benchmarks.foretell import MODELS, speech
from pipeline import backends
from pipeline.core import manifest, params, stage
from pipeline.speech import corpus
from pipeline.whisper import longform
from pipeline.whisper.inference import decoding

MOVED = 0.2
"""Seconds beyond which a reader of subtitles may see it."""

Times = list[tuple[float, float] | None]


def times(variant: str, utterances: Sequence[corpus.Utterance], how: params.Decoding) -> Times:
    """Return the start of the first segment and the end of the last of each utterance; None where nothing is said."""
    folder = MODELS / variant
    model = backends.load(manifest.verify(folder)["variant"]["backend"], folder, "cpu")
    vocabulary = decoding.Vocabulary.read(folder, how.language, how.task, how.suppress_non_speech, timestamps=True)
    found: Times = []
    for each in tqdm(utterances, unit="utt", desc=variant, disable=None):
        heard = longform.transcribe(model, each, vocabulary, how.language, how.max_new_tokens, how.batch_size)
        found.append((heard.segments[0].start, heard.segments[-1].end) if heard.segments else None)
    return found


def moved(before: Times, after: Times) -> list[tuple[bool, bool]]:
    """Tell of each utterance that both write something of whether its start moves, and whether its end."""
    pairs = [(one, other) for one, other in zip(before, after, strict=True) if one and other]
    return [(abs(one[0] - other[0]) > MOVED, abs(one[1] - other[1]) > MOVED) for one, other in pairs]


def main(name: str, split: str, number: int, variants: Sequence[str]) -> None:
    """Print a line for each variant."""
    settings = params.read()
    with tempfile.TemporaryDirectory() as temporary:
        speech(Path(temporary), settings, name, split, number)
        utterances = list(corpus.read(Path(temporary)))
        fp32 = times(params.BASELINE, utterances, settings.decoding)
        for variant in variants or settings.names:
            found = moved(fp32, times(variant, utterances, settings.decoding))
            starts, ends, either = sum(s for s, _ in found), sum(e for _, e in found), sum(s or e for s, e in found)
            share = f"{100 * either / len(found):5.1f} % move" if found else "nothing is said"
            print(f"{variant:26} {share}: {starts} starts and {ends} ends, of {len(found)}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.timestamps", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("split", help="a split of the corpus, such as train-clean-100-texts")
    parser.add_argument("--corpus", help="a key of `corpora` in catalog.yaml; default: that of the calibration")
    parser.add_argument("--utterances", type=int, default=45, help="at most so many, evenly by speaker")
    parser.add_argument("--variant", action="append", default=[], help="default: all; may be repeated")
    given = parser.parse_args()
    with stage.guarded("timestamps"):
        main(given.corpus or params.read().calibration.corpus, given.split, given.utterances, given.variant)
