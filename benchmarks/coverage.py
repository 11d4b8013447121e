"""Check the intervals and the tests: how often do they hold the truth, err, or find what there is?

Some thousand corpora are simulated, of the sizes that studies have: the subset of LibriSpeech with 15 and 10 speakers,
some of whom say a single sentence, the studies' 40 and 15 speakers, and the whole test sets. Errors come in clumps, as
real ones do: each utterance has a difficulty of its own and, where the unit is the speaker, each speaker too, for
fp32's errors and for those that a variant adds. How much they vary is taken from Whisper tiny.en at fp32, int8, int4
and int3 on the subset: there, errors of one speaker make the variance of WER two times as large as independent
utterances would (here 1.6 to 1.9), and leave that of the difference to fp32 as it is (0.3 to 1.4 times; here 0.9 to
1.2).

Prints in per cent, for each corpus and true difference, how many 95 % intervals hold it: ours, those that sign flips
would give (all differences that they do not reject), and the plain percentiles of the bootstrap; how many intervals of
fp32's own WER hold that; and how often one variant is found worse (or better), and no worse than each margin. Of a true
difference of 0.0, "worse" and "better" are errors, and so is "no worse than" a margin that the truth reaches: each
should be 5 % at most. Else these columns are the power, of one variant: Holm's correction over many takes some
of it, and as much of the errors. By chance alone a figure of 5 varies by 0.5 (standard error) where there are 2,000
corpora, by 1.0 where there are 500. Ends with status 1 where our intervals hold less than 92 or more than 98 %, or an
error is more frequent than 5 %. What nothing can find is not tried: where one utterance in a
thousand loops, a corpus without a loop knows nothing of the words that loops would add.

Usage: python -m benchmarks.coverage [--trials 1000]
"""

import argparse
import multiprocessing
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np

from pipeline.scoring import statistics
from pipeline.scoring.statistics import Floats, Ints

RESAMPLES = 1000
"""As few as params.yaml allows: the more, the better."""

FLIPS = 2000
"""Patterns of signs, where not all are tried: a fiftieth of what `compare` draws, for time."""

WORDS = (3.5, 17.0)
"""Shape and mean of the gamma distribution of words in an utterance."""

REPLACED = 0.15
"""The share of fp32's errors that a variant does not make, while it makes as many others elsewhere."""

SPEAKERS_VARY = 0.5
"""Standard deviation, between speakers, of the logarithm of their error rate."""

DIFFERENCES_VARY = 0.3
"""The same of the errors that a variant adds."""


@dataclass(frozen=True)
class Corpus:
    """A corpus to simulate so many times: each speaker's number of utterances, fp32's WER, the differences to try."""

    name: str
    utterances: tuple[int, ...]
    wer: float
    differences: tuple[float, ...]
    trials: int
    replaced: float = REPLACED


def uneven(speakers: int, utterances: int) -> tuple[int, ...]:
    """Share utterances out so that the last speaker has four times as many as the first."""
    bounds = np.cumsum(np.linspace(0.4, 1.6, speakers)) * utterances / speakers
    return tuple(int(n) for n in np.diff(np.round(bounds), prepend=0))


CORPORA = (
    Corpus("subset, clean", (14, 11, 11, 10, 10, 5, 2, 2, 1, 1, 1, 1, 1, 1, 1), 4.0, (0.0, 0.3, 1.0, 2.0, 6.0), 2000),
    Corpus("subset, other", (12, 12, 10, 10, 10, 10, 1, 1, 1, 1), 11.0, (0.0, 0.3, 1.0, 2.0, 6.0), 2000),
    Corpus("study, clean", (8,) * 40, 5.0, (0.0, 0.3, 0.5, 1.0, 2.0), 2000),
    Corpus("study, other", uneven(15, 324), 11.0, (0.0, 0.3, 0.5, 1.0, 2.0), 2000),
    Corpus("near fp32", (8,) * 40, 5.0, (0.3, 0.5, 1.0), 2000, replaced=0.0),
    Corpus("whole, clean", uneven(40, 2620), 5.0, (0.0, 0.3, 1.0), 500),
    Corpus("whole, other", uneven(33, 2939), 11.0, (0.0, 0.3, 1.0), 500),
)


def simulate(corpus: Corpus, difference: float, unit: str, rng: np.random.Generator) -> tuple[Ints, Ints, list[str]]:
    """Return errors (fp32's and a variant's, utterances), words (1, utterances) and speakers of one corpus.

    Speakers differ only where `unit` is `speaker`. The truth is `corpus.wer` and, on average over speakers and
    utterances, `difference`.
    """
    speakers = np.repeat(np.arange(len(corpus.utterances)), corpus.utterances)
    shape, mean = WORDS
    words = np.maximum(1, rng.gamma(shape, mean / shape, len(speakers)).round()).astype(np.int64)

    def difficulty(vary: float) -> Floats:
        vary = vary if unit == "speaker" else 0.0
        of_speaker = np.exp(rng.normal(-(vary**2) / 2, vary, len(corpus.utterances)))[speakers]
        return np.asarray(of_speaker * rng.exponential(size=len(speakers)))  # both have a mean of 1

    expected = words * corpus.wer / 100 * difficulty(SPEAKERS_VARY)
    common = rng.poisson(expected * (1 - corpus.replaced))
    fp32 = common + rng.poisson(expected * corpus.replaced)
    added = words * difference / 100 * difficulty(DIFFERENCES_VARY)
    variant = common + rng.poisson(expected * corpus.replaced + added)
    return np.array([fp32, variant]), words[None], [f"s{speaker:02}" for speaker in speakers]


COLUMNS = ("ours", "by signs", "percentiles", "fp32 WER", "worse", "better", *(f"<{m}" for m in statistics.MARGINS))


def trial(corpus: Corpus, difference: float, unit: str, seed: int) -> list[bool]:
    """Return COLUMNS for one corpus: which intervals hold the truth, and what is found."""
    rng = np.random.default_rng([1, seed])  # not the bootstrap's own stream, which `seed` alone gives
    errors, words, speakers = simulate(corpus, difference, unit, rng)
    rare = [statistics.as_few_new(errors[1:] - errors[0], words.sum(), margin) for margin in statistics.MARGINS]
    if unit == "speaker":
        errors, words = statistics.per_group(errors, speakers), statistics.per_group(words, speakers)
    sampled = statistics.bootstrap(errors, words, RESAMPLES, seed)
    of_fp32 = statistics.estimates(errors, words, sampled)[0].rate_interval()
    ours = statistics.estimates(errors, words, sampled, base=0)[1]
    percentiles = np.percentile(sampled[1] - sampled[0], [2.5, 97.5])
    statistics.FLIPS = FLIPS
    changes = errors[1] - errors[0]
    both, low = statistics.sign_flips(
        np.array([changes - points / 100 * words[0] for points in (difference, 0.0, *statistics.MARGINS)]), seed
    )
    found = both[1] < statistics.SIGNIFICANT
    return [
        _holds(ours.interval(), difference),
        bool(both[0] >= statistics.SIGNIFICANT),
        _holds(percentiles, difference),
        _holds(of_fp32, corpus.wer),
        bool(found and ours.value > 0),
        bool(found and ours.value < 0),
        *(np.maximum(low[2:], np.ravel(rare)) < statistics.ONE_SIDED).tolist(),
    ]


def _holds(interval: tuple[float, float] | Floats, truth: float) -> bool:
    return bool(interval[0] <= truth <= interval[1])


def main(trials: int | None) -> bool:
    """Print the table; return whether our intervals hold 92 to 98 %, and no error is more frequent than 5 %."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the processes share the cores already
    start = time.monotonic()
    good = True
    print("% of simulated corpora: 95 % intervals that hold the true difference, and verdicts on one variant")
    heads = ("by", "corpus", "utterances", "speakers", "simulated", "difference", *COLUMNS)
    widths = [max(len(head), 14 if head in ("by", "corpus") else 5) + 2 for head in heads]
    print("".join(f"{head:>{width}}" for head, width in zip(heads, widths, strict=True)))
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        for unit in statistics.UNITS:
            for corpus in CORPORA:
                count = trials or corpus.trials
                for difference in corpus.differences:
                    done = pool.map(partial(trial, corpus, difference, unit), range(count), chunksize=25)
                    found = dict(zip(COLUMNS, 100 * np.mean(list(done), axis=0), strict=True))
                    errs = [found["worse"], found["better"]] if difference == 0 else []
                    errs += [found[f"<{margin}"] for margin in statistics.MARGINS if margin <= difference]
                    good &= bool(92 <= found["ours"] <= 98 and max(errs, default=0) <= 5)
                    of = (unit, corpus.name, sum(corpus.utterances), len(corpus.utterances), count, difference)
                    cells = (*of, *(f"{value:.1f}" for value in found.values()))
                    print("".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True)), flush=True)
    print(f"{'good' if good else 'NOT good'}; {time.monotonic() - start:.0f} s")
    return good


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.coverage", description="Check the intervals and the tests."
    )
    parser.add_argument("--trials", type=int, help="corpora for each line (default: 2000 small and 500 large ones)")
    sys.exit(not main(parser.parse_args().trials))
