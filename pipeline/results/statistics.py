"""Tell real differences between word error rates from chance: bootstrap intervals, p-values, Holm, matched pairs.

A *unit* is what is drawn with replacement: an utterance, or a speaker with everything they say. Utterances of one
speaker err alike, so an interval by utterance may be too narrow; one by speaker holds for other speakers as well.

An interval is the estimate plus or minus Student's t times the bootstrap's standard error, rather than percentiles of
the bootstrap, for two reasons. Where speakers are few and some say much more than others, percentiles are too near each
other: at the ten to fifteen speakers of a small corpus, "95 %" hold the truth in about 90 % of all corpora. Student's t
with the degrees of freedom of so many speakers *in effect* mends that (`python -m benchmarks.coverage` shows both). And
p-values do not end at one over the number of resamples: Holm's correction over many variants needs smaller ones.

Sources: Bisani and Ney, "Bootstrap estimates for confidence intervals in ASR performance evaluation", ICASSP 2004 (the
paired bootstrap of word error rates); Hesterberg, "What teachers should know about the bootstrap", The American
Statistician 69 (2015) (percentiles too near in small samples; t with the bootstrap's standard error); Carter, Schnepel
and Steigerwald, "Asymptotic behavior of a t test robust to cluster heterogeneity", Review of Economics and Statistics
99 (2017) (uneven clusters count as fewer), with Kish's number in effect ("Survey sampling", 1965); Gillick and Cox,
"Some statistical issues in the comparison of speech recognition algorithms", ICASSP 1989 (matched pairs).
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr, stdtr, stdtrit

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

LEVEL = 0.95
"""The share of corpora like this one whose interval holds the truth."""

SIGNIFICANT = 0.05
"""A difference is significant when its p-value, corrected, is below this: what LEVEL stands for."""

POWER = 0.8
"""The share of corpora like this one that show a difference as large as the smallest detectable one."""

UNITS = ("utterance", "speaker")
"""What can be drawn."""

MIN_SPEAKERS = 10
"""Speakers from which on they are the headline's unit: of fewer, the spread between them is itself hardly known."""

HIT = "="
"""A word that was understood, in an alignment; the others are S, D and I: substituted, deleted, inserted."""

WER = "wer"
"""The measure of a split: word errors in per cent of the words in its references."""

INSERTIONS = "insertions_per_minute"
"""The measure where the references hold no words: inserted words per minute of audio."""

PER_MINUTE = 600
"""What an event counts for its rate, in per cent of milliseconds, to be that per minute, which has 100 x 600 of them.

Milliseconds rather than minutes, as only sums of whole numbers are exact.
"""

_BLOCK = 64  # resamples held at a time: 64 x 2,939 units of float64 are 1.5 MB, which stay in the processor's cache


@dataclass(frozen=True)
class Estimate:
    """A rate in per cent, or a difference in points, with what the bootstrap tells of its certainty."""

    value: float
    error: float
    """Standard error; 0 where all resamples are the same."""
    units: int
    freedom: float
    """Degrees of freedom of the standard error."""

    def interval(self) -> tuple[float, float]:
        """Return the interval of a difference at LEVEL; without a standard error it is the estimate alone."""
        reach = self._reach()
        return self.value - reach, self.value + reach

    def rate_interval(self) -> tuple[float, float]:
        """Return the interval of a rate at LEVEL: as `interval`, but of the logarithm.

        A rate is never negative, and the larger it is the more it varies: on this scale it does not.
        """
        if not self.error:
            return self.value, self.value
        factor = math.exp(min(self._reach() / self.value, 100.0))  # beyond, it would only overflow
        return self.value / factor, self.value * factor

    def _reach(self) -> float:
        return self._t((1 + LEVEL) / 2) * self.error

    def _t(self, probability: float) -> float:
        return float(stdtrit(self.freedom, probability))

    def p_value(self) -> float:
        """Return the two-sided p-value of "it is zero": below SIGNIFICANT exactly where `interval` leaves out zero.

        Without a standard error all units show the same difference: what is left is the sign test, which tells how
        likely so many are to agree by chance.
        """
        if not self.value:
            return 1.0
        if not self.error:
            return 2.0 ** (1 - self.units)
        return float(2 * stdtr(self.freedom, -abs(self.value) / self.error))

    def detectable(self, tests: int) -> float:
        """Return the smallest true difference that a corpus like this would show with probability POWER, in points.

        To show is to be significant at SIGNIFICANT / tests, the level that Holm's correction asks of the clearest of
        `tests` differences; the standard error is this one's. Source: Bloom, "Minimum detectable effects", Evaluation
        Review 19 (1995).
        """
        return self.error * (self._t(1 - SIGNIFICANT / tests / 2) + self._t(POWER))


def fewest_to_show(tests: int) -> int:
    """Return how many units must differ by an error, all to the same side, to be significant among `tests`.

    By the sign test, 2^(1 - n) <= SIGNIFICANT / tests: what a corpus could have shown where nothing or next to nothing
    differed, and a standard error therefore promises too much.
    """
    return math.ceil(1 + math.log2(tests / SIGNIFICANT))


def rate(errors: Floats | Ints, words: Floats | Ints) -> Floats:
    """Return word errors in per cent of reference words; where no words were drawn, the errors count as if over one."""
    return 100.0 * np.asarray(errors, dtype=np.float64) / np.maximum(words, 1)


def headline_unit(speakers: Sequence[str | None]) -> str:
    """Return whose estimates lead: `speaker` where MIN_SPEAKERS are known, else `utterance`."""
    return "speaker" if None not in speakers and len(set(speakers)) >= MIN_SPEAKERS else "utterance"


def by_unit(
    errors: Ints, words: Ints, speakers: Sequence[str | None], resamples: int, seed: int, base: int | None = None
) -> dict[str, list[Estimate]]:
    """Return `estimates` by `utterance` and, where every speaker is known and there are two, by `speaker`."""
    found = {"utterance": estimates(errors, words, resamples, seed, base)}
    names = [speaker for speaker in speakers if speaker is not None]
    if len(names) == len(speakers) and len(set(names)) > 1:
        found["speaker"] = estimates(per_group(errors, names), per_group(words, names), resamples, seed, base)
    return found


def per_group(values: Ints, groups: Sequence[str]) -> Ints:
    """Return the sums of values (rows, units) over the units of each group, groups in alphabetical order."""
    names, numbers = np.unique(np.asarray(groups), return_inverse=True)
    return np.array([np.bincount(numbers, row, len(names)) for row in values]).astype(np.int64)


def estimates(errors: Ints, words: Ints, resamples: int, seed: int, base: int | None = None) -> list[Estimate]:
    """Return each system's error rate or, with `base`, its difference to that one's, from a bootstrap over the units.

    `errors` has shape (systems, units), `words` the same or (1, units).
    """
    return from_samples(errors, words, bootstrap(errors, words, resamples, seed), base)


def from_samples(errors: Ints, words: Ints, sampled: Floats, base: int | None = None) -> list[Estimate]:
    """Return the same from rates that `bootstrap` gave.

    All systems share every draw: a difference is therefore *paired*, far more certain than two intervals side by side
    suggest, and exactly zero where both make equal errors.
    """
    rates = rate(errors.sum(axis=1), words.sum(axis=1))
    if base is not None:
        rates, sampled = rates - rates[base], sampled - sampled[base]
    units = errors.shape[1]
    spread = sampled.std(axis=1) * math.sqrt(units / max(units - 1, 1))
    spread[spread < 1e-9] = 0.0  # far below one word: what rounding makes of resamples that are all the same
    free = np.broadcast_to(freedom(words), rates.shape)
    return [
        Estimate(float(value), float(error), units, float(degrees))
        for value, error, degrees in zip(rates, spread, free, strict=True)
    ]


def bootstrap(errors: Ints, words: Ints, resamples: int, seed: int) -> Floats:
    """Return the rates, in per cent, that each resample of the units gives: shape (systems, resamples)."""
    # Sums of whole numbers below 2**53 are exact in float64: the result depends on no order of summation, thread count
    # or machine.
    both = np.vstack([errors, words]).astype(np.float64).T
    sums = np.concatenate([block @ both for block in draws(len(both), resamples, seed)]).T
    return rate(sums[: len(errors)], sums[len(errors) :])


def draws(units: int, resamples: int, seed: int) -> Iterator[Floats]:
    """Yield blocks of shape (at most 64, units): how often each resample draws each unit.

    The same units, resamples and seed give the same draws, so any two calls can be compared in pairs. They are whole
    numbers, kept as floats because only float matrices are multiplied fast.
    """
    rng = np.random.default_rng(seed)
    for start in range(0, resamples, _BLOCK):
        rows = min(_BLOCK, resamples - start)
        drawn = rng.integers(units, size=(rows, units)) + units * np.arange(rows)[:, None]
        yield np.bincount(drawn.ravel(), minlength=rows * units).reshape(rows, units).astype(np.float64)


def freedom(words: Ints) -> Floats:
    """Return the degrees of freedom of a bootstrap over units of so many words, for each row of (rows, units).

    They are the units in effect less one, and at least one. Units in effect are (sum w)^2 / sum w^2: ten speakers who
    say equally much are ten, but if six of them say nearly all they are hardly more than six.
    """
    w = words.astype(np.float64)
    in_effect: Floats = w.sum(axis=1) ** 2 / np.maximum((w**2).sum(axis=1), 1.0)
    return np.maximum(1.0, in_effect - 1.0)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for testing all of them, in the order given.

    Holm, "A simple sequentially rejective multiple test procedure", 1979: the smallest is multiplied by their number,
    the next by one less, and so on; none may fall below one that was smaller before.
    """
    order = np.argsort(p_values, kind="stable")
    multiplied = np.asarray(p_values)[order] * np.arange(len(order), 0, -1)
    corrected = np.empty(len(order))
    corrected[order] = np.maximum.accumulate(np.minimum(multiplied, 1.0))
    return corrected.tolist()


def mapsswe(alignments: Sequence[str], base: Sequence[str]) -> tuple[float, float]:
    """Return z (positive where there are more errors than in `base`) and the two-sided p-value of matched pairs.

    Both hold one alignment to the same reference for each utterance, as HIT, S, D and I. This is NIST's sctk `mapsswe`
    after Gillick and Cox: stretches with errors of either system are one segment until two words in a row are right in
    both, or the utterance ends; z is the mean difference of errors over its standard error, p the normal law's, which
    supposes independent segments and many of them (Gillick and Cox: 50). Where all segments differ alike sctk says
    z = 0; here the spread is then taken about zero.
    """
    one, other = (_errors((HIT * 2).join(each)) for each in (alignments, base))
    wrong = np.flatnonzero(one + other)
    if not wrong.size:
        return 0.0, 1.0
    right_between = wrong[1:] // 2 - (wrong[:-1] + 1) // 2
    segments = np.concatenate([[0], np.cumsum(right_between >= 2)])
    differences = np.bincount(segments, (one - other)[wrong])
    count, mean = len(differences), float(differences.mean())
    spread = float(differences.std(ddof=1)) if count > 1 else 0.0
    z = mean / ((spread or abs(mean)) / math.sqrt(count)) if mean else 0.0
    return z, float(2 * ndtr(-abs(z)))


def _errors(alignment: str) -> Floats:
    """Return the errors before, at and after each word of the reference: the n-th (from 0) is at 2 n + 1."""
    kinds = np.frombuffer(alignment.encode("ascii"), dtype=np.uint8)
    word = kinds != ord("I")
    places = 2 * np.cumsum(word) - word
    return np.bincount(places, kinds != ord(HIT), 2 * int(word.sum()) + 1).astype(np.float64)
