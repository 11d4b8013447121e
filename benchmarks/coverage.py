"""Check the 95 % intervals: how many of some thousand simulated corpora have one that holds the true difference?

The corpora are of the sizes that studies have: the subset of LibriSpeech with 15 and 10 speakers, some of whom say a
single sentence, and the whole test sets. Errors come in clumps, as real ones do: each utterance has a difficulty of its
own and, where the interval is by speaker, each speaker too, for fp32's errors and for those that a variant adds. How
much they vary is taken from Whisper tiny.en at fp32, int8, int4 and int3 on the subset: there, errors of one speaker
make the variance of WER two times as large as independent utterances would (here 1.6 to 1.9), and leave that of the
difference to fp32 as it is (0.3 to 1.4 times; here 0.9 to 1.2).

Prints in per cent, for each corpus and true difference, how many intervals hold it: ours, and the plain percentiles of
the same bootstrap; and how many intervals of fp32's own WER hold that. By chance alone a figure varies by 0.3 (standard
error) where there are 4,000 corpora, by 0.7 where there are 1,000. Ends with status 1 where ours are outside 93 to 97.
What no interval can do is not tried: where one utterance in a thousand loops, a corpus without a loop knows nothing of
the words that loops would add.

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


def uneven(speakers: int, utterances: int) -> tuple[int, ...]:
    """Share utterances out so that the last speaker has four times as many as the first."""
    bounds = np.cumsum(np.linspace(0.4, 1.6, speakers)) * utterances / speakers
    return tuple(int(n) for n in np.diff(np.round(bounds), prepend=0))


CORPORA = (
    Corpus("subset, clean", (14, 11, 11, 10, 10, 5, 2, 2, 1, 1, 1, 1, 1, 1, 1), 4.0, (0.0, 0.3, 2.0, 6.0), 4000),
    Corpus("subset, other", (12, 12, 10, 10, 10, 10, 1, 1, 1, 1), 11.0, (0.0, 0.3, 2.0, 6.0), 4000),
    Corpus("whole, clean", uneven(40, 2620), 3.5, (0.3, 2.0), 1000),
    Corpus("whole, other", uneven(33, 2939), 8.0, (0.3, 2.0), 1000),
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
    common = rng.poisson(expected * (1 - REPLACED))
    fp32 = common + rng.poisson(expected * REPLACED)
    added = words * difference / 100 * difficulty(DIFFERENCES_VARY)
    variant = common + rng.poisson(expected * REPLACED + added)
    return np.array([fp32, variant]), words[None], [f"s{speaker:02}" for speaker in speakers]


def trial(corpus: Corpus, difference: float, unit: str, seed: int) -> tuple[bool, bool, bool]:
    """Return whether the truth is inside, for one corpus: our interval, the percentiles, the interval of fp32's WER."""
    rng = np.random.default_rng([1, seed])  # not the bootstrap's own stream, which `seed` alone gives
    errors, words, speakers = simulate(corpus, difference, unit, rng)
    if unit == "speaker":
        errors, words = statistics.per_group(errors, speakers), statistics.per_group(words, speakers)
    sampled = statistics.bootstrap(errors, words, RESAMPLES, seed)
    of_fp32 = statistics.estimates(errors, words, sampled)[0].rate_interval()
    ours = statistics.estimates(errors, words, sampled, base=0)[1].interval()
    percentiles = np.percentile(sampled[1] - sampled[0], [2.5, 97.5])
    return _holds(ours, difference), _holds(percentiles, difference), _holds(of_fp32, corpus.wer)


def _holds(interval: tuple[float, float] | Floats, truth: float) -> bool:
    return bool(interval[0] <= truth <= interval[1])


def main(trials: int | None) -> bool:
    """Print the coverage for every corpus, unit and difference; return whether all of ours are within 93 to 97 %."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the processes share the cores already
    start = time.monotonic()
    good = True
    print(f"intervals of 95 % that hold the truth, % of simulated corpora ({RESAMPLES} resamples each)")
    print(f"{'by':9}  {'corpus':13}  {'utterances':>10}  {'speakers':>8}  {'simulated':>9}", end="")
    print(f"  {'true difference':>15}  {'ours':>5}  {'percentiles':>11}  {'fp32 WER':>8}")
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        for unit in statistics.UNITS:
            for corpus in CORPORA:
                count = trials or corpus.trials
                for difference in corpus.differences:
                    done = pool.map(partial(trial, corpus, difference, unit), range(count), chunksize=25)
                    ours, percentiles, of_fp32 = 100 * np.mean(list(done), axis=0)
                    good &= bool(93 <= ours <= 97)
                    print(f"{unit:9}  {corpus.name:13}  {sum(corpus.utterances):10,}", end="")
                    print(f"  {len(corpus.utterances):8}  {count:9,}  {difference:+15.1f}", end="")
                    print(f"  {ours:5.1f}  {percentiles:11.1f}  {of_fp32:8.1f}", flush=True)
    print(f"{'all' if good else 'NOT all'} of ours are within 93 to 97 %; {time.monotonic() - start:.0f} s")
    return good


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.coverage", description="Check the 95 % intervals.")
    parser.add_argument("--trials", type=int, help="corpora for each line (default: 4000 small and 1000 large ones)")
    sys.exit(not main(parser.parse_args().trials))
