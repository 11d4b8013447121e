"""Tell real differences between word error rates from chance: intervals, p-values, Holm, matched pairs.

A *unit* is what is drawn or flipped: an utterance, or a speaker with all their utterances. Errors of one speaker are
correlated, so results by utterance may be too certain; those by speaker hold for new speakers too.

Intervals are the estimate plus or minus Student's t times the bootstrap's standard error, not bootstrap percentiles.
With the 10 to 15 uneven speakers of a small corpus, 95 % percentile intervals hold the truth in about 90 % of corpora;
t with the degrees of freedom of the *effective* number of speakers corrects that.

P-values flip signs: where a variant is no other than fp32, either could have made either's errors on a speaker, so that
every pattern of signs of the speakers' differences is as likely. That needs no normal distribution and no many units;
what it needs is that a difference be as likely as its opposite. `python -m benchmarks.coverage` shows how often either
errs.

Sources: Bisani and Ney, "Bootstrap estimates for confidence intervals in ASR performance evaluation", ICASSP 2004
(paired bootstrap of word error rates); Hesterberg, "What teachers should know about the bootstrap", The American
Statistician 69 (2015) (narrow percentiles in small samples; t with the bootstrap's standard error); Carter, Schnepel
and Steigerwald, "Asymptotic behavior of a t test robust to cluster heterogeneity", Review of Economics and Statistics
99 (2017) (uneven clusters count as fewer), with Kish's effective number ("Survey sampling", 1965); Fisher, "The design
of experiments", 1935, section 21 (sign flips); Phipson and Smyth, "Permutation p-values should never be zero", 2010;
Gillick and Cox, "Some statistical issues in the comparison of speech recognition algorithms", ICASSP 1989 (matched
pairs).
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from scipy.special import bdtr, ndtr, pdtr, stdtrit

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Numbers = Floats | Ints  # counts, or sums of what is no whole number
N = TypeVar("N", bound=Numbers)
Speakers = Sequence[str | None]  # of each utterance; None where not known

LEVEL = 0.95  # confidence level of intervals
SIGNIFICANT = 0.05  # something is shown when its corrected p-value is below this: 1 - LEVEL
ONE_SIDED = SIGNIFICANT / 2  # of a margin, as trials of non-inferiority have it (ICH E9, 1998): losses are skewed
MARGINS = (0.3, 0.5, 1.0)  # points of WER, or words a minute, that somebody may be ready to lose: chosen beforehand
POWER = 0.8  # probability of finding a difference as large as the smallest detectable one

UNITS = ("utterance", "speaker")  # what can be drawn
MIN_SPEAKERS = 10  # from so many on, speakers are the headline's unit: the spread of fewer is itself hardly known

WER = "wer"  # measure of a split: word errors in per cent of reference words
INSERTIONS = "insertions_per_minute"  # measure where references hold no words: inserted words per minute of audio
HIT = "="  # a correct word in an alignment; others are S (substituted), D (deleted) and I (inserted)

PER_MINUTE = 600
"""Weight of an inserted word: its rate in per cent of milliseconds is then one per minute, as 60,000 ms / 100 = 600.

Audio is counted in milliseconds because only sums of whole numbers are exact.
"""

EXACT, FLIPS = 20, 100_000  # units up to which all patterns of signs are tried; how many are drawn beyond

_BLOCK = 64  # resamples held at a time: 64 x 2,939 units of float64 are 1.5 MB, which stay in the processor's cache
_PATTERNS = 500  # patterns of signs held at a time: in float64 as much as 12 MB


@dataclass(frozen=True)
class Estimate:
    """A rate in per cent, or a difference in points, with its uncertainty by the bootstrap."""

    value: float
    error: float  # standard error; 0 where all resamples are the same
    units: int
    freedom: float  # degrees of freedom of the standard error

    def interval(self) -> tuple[float, float]:
        """Return the interval of a difference at LEVEL; without a standard error, both ends are the estimate."""
        reach = self.error * self._t((1 + LEVEL) / 2)
        return self.value - reach, self.value + reach

    def rate_interval(self) -> tuple[float, float]:
        """Return the interval of a rate at LEVEL, symmetric in its logarithm.

        A rate is never negative and varies more the larger it is; its logarithm varies evenly.
        """
        if not self.error:
            return self.value, self.value
        reach = self._t((1 + LEVEL) / 2) * self.error / self.value
        factor = math.exp(min(reach, 100.0))  # larger exponents would only overflow
        return self.value / factor, self.value * factor

    def detectable(self, tests: int) -> float:
        """Return the smallest true difference, in points, that such a corpus shows with probability POWER.

        It must be significant at SIGNIFICANT / tests, Holm's level for the clearest of `tests` differences. Source:
        Bloom, "Minimum detectable effects", Evaluation Review 19 (1995).
        """
        return self.error * (self._t(1 - SIGNIFICANT / tests / 2) + self._t(POWER))

    def to_decide(self, tests: int) -> float:
        """Return how many times as many such units would decide, with probability POWER, among `tests` variants.

        That is, show the estimate to be another than none, or smaller than the widest of MARGINS, whichever takes
        fewer. An estimate of its own: it takes this one for the truth.
        """
        far = max(abs(self.value), MARGINS[-1] - self.value)
        return ((self._t(1 - SIGNIFICANT / tests / 2) + self._t(POWER)) * self.error / far) ** 2

    def _t(self, probability: float) -> float:
        return float(stdtrit(self.freedom, probability))


def fewest_to_show(tests: int) -> int:
    """Return how many units must differ, all to the same side, for significance among `tests` by the sign test.

    From 2^(1 - n) <= SIGNIFICANT / tests. It bounds the smallest detectable difference where hardly anything differed,
    for a standard error promises too much there.
    """
    return math.ceil(1 + math.log2(tests / SIGNIFICANT))


def rate(errors: Numbers, words: Numbers) -> Floats:
    """Return errors in per cent of reference words; if no words were drawn, divide by one."""
    return 100.0 * np.asarray(errors, dtype=np.float64) / np.maximum(words, 1)


def deciding_unit(speakers: Speakers, tests: int) -> str:
    """Return the unit whose signs decide: as `headline_unit`, and `utterance` where speakers are too few to decide.

    So few that not even differences to one side in all of them would be significant among `tests`.
    """
    return headline_unit(speakers) if len(set(speakers)) >= fewest_to_show(tests) else "utterance"


def headline_unit(speakers: Speakers) -> str:
    """Return the unit of the leading estimates: `speaker` where MIN_SPEAKERS are known, else `utterance`."""
    return "speaker" if None not in speakers and len(set(speakers)) >= MIN_SPEAKERS else "utterance"


def by_unit(
    errors: Numbers, words: Ints, speakers: Speakers, resamples: int, seed: int, base: int | None = None
) -> dict[str, list[Estimate]]:
    """Return `estimates` by `utterance` and, where all speakers are known and more than one, by `speaker`."""
    units: dict[str, tuple[Numbers, Numbers]] = {"utterance": (errors, words)}
    if (sums := by_speaker(errors, speakers)) is not None and (whole := by_speaker(words, speakers)) is not None:
        units["speaker"] = sums, whole
    return {unit: estimates(*counts, bootstrap(*counts, resamples, seed), base) for unit, counts in units.items()}


def by_speaker(values: N, speakers: Speakers) -> N | None:
    """Return the sums over what each speaker has said; None unless all are known, and several."""
    names = [speaker for speaker in speakers if speaker is not None]
    return per_group(values, names) if len(names) == len(speakers) and len(set(names)) > 1 else None


def per_group(values: N, groups: Sequence[str]) -> N:
    """Return the sums of values (rows, units) over each group's units, groups in alphabetical order."""
    names, numbers = np.unique(np.asarray(groups), return_inverse=True)
    return np.array([np.bincount(numbers, row, len(names)) for row in values]).astype(values.dtype)  # type: ignore[return-value]


def estimates(errors: Numbers, words: Numbers, sampled: Floats, base: int | None = None) -> list[Estimate]:
    """Return each system's error rate or, with `base`, its difference to that system's.

    `errors` has shape (systems, units), `words` the same or (1, units); `sampled` are the rates by `bootstrap`. All
    systems share every draw, so differences are *paired*: far more certain than two separate intervals suggest, and
    exactly zero between equal errors.
    """
    rates = rate(errors.sum(axis=1), words.sum(axis=1))
    if base is not None:
        rates, sampled = rates - rates[base], sampled - sampled[base]
    units = errors.shape[1]
    spread = sampled.std(axis=1) * math.sqrt(units / max(units - 1, 1))
    spread[spread < 1e-9] = 0.0  # rounding errors of resamples that are all the same: far below one word
    each = zip(rates.tolist(), spread.tolist(), np.broadcast_to(freedom(words), rates.shape).tolist(), strict=True)
    return [Estimate(value, error, units, degrees) for value, error, degrees in each]


def bootstrap(errors: Numbers, words: Numbers, resamples: int, seed: int) -> Floats:
    """Return the rates, in per cent, of each resample of the units: shape (systems, resamples)."""
    # Sums of whole numbers below 2**53 are exact in float64, whatever the order of summation, threads or machine.
    both = np.vstack([errors, words]).astype(np.float64).T
    sums = np.concatenate([block @ both for block in draws(len(both), resamples, seed)]).T
    return rate(sums[: len(errors)], sums[len(errors) :])


def draws(units: int, resamples: int, seed: int) -> Iterator[Floats]:
    """Yield blocks of shape (at most 64, units): how often each resample draws each unit.

    Equal arguments give equal draws, so that any two calls can be compared in pairs. The counts are floats because only
    float matrices are multiplied fast.
    """
    rng = np.random.default_rng(seed)
    for start in range(0, resamples, _BLOCK):
        rows = min(_BLOCK, resamples - start)
        drawn = rng.integers(units, size=(rows, units)) + units * np.arange(rows)[:, None]
        yield np.bincount(drawn.ravel(), minlength=rows * units).reshape(rows, units).astype(np.float64)


def freedom(words: Numbers) -> Floats:
    """Return the degrees of freedom of a bootstrap over units of so many words, for each row of (rows, units).

    They are Kish's effective number of units, (sum w)^2 / sum w^2, less one, and at least one. Ten speakers with
    equally many words count as ten; if six of them say nearly all, as hardly more than six.
    """
    w = words.astype(np.float64)
    effective: Floats = w.sum(axis=1) ** 2 / np.maximum((w**2).sum(axis=1), 1.0)
    return np.maximum(1.0, effective - 1.0)


def sign_flips(differences: Numbers, seed: int) -> tuple[Floats, Floats]:
    """Return two p-values for each row of (systems, units): of sums as far from zero, and of sums as low (pure).

    They are the share of the patterns of signs whose sum is as extreme as that of the row as it stands: of all patterns
    up to EXACT units that are not zero, else of FLIPS drawn ones and the one that was found.
    """
    values = np.asarray(differences, dtype=np.float64)
    both, low = np.ones(len(values)), np.ones(len(values))
    many = []
    for row, of in enumerate(values):
        units = of[of != 0]
        if len(units) > EXACT:
            many.append(row)
        elif len(units):
            both[row], low[row] = _all_signs(units)
    if many:
        both[many], low[many] = _drawn_signs(values[many], seed)
    return both, low


def as_few_new(changes: Numbers, words: float, points: float) -> Floats:
    """Return, for each row of (systems, utterances), how likely so few new errors are if it loses so many points.

    `changes` are errors more than fp32's, in `words` altogether. Such a loss adds so many errors, and as many as went
    away besides; new ones come by Poisson. Where hardly anything differs, sign flips err, as rare errors are no coins.
    It holds the rule of three: no error in n words is fewer than three in n (Hanley and Lippman-Hand, "If nothing goes
    wrong, is everything all right?", JAMA 249, 1983).
    """
    added, removed = (np.maximum(sign * changes, 0).sum(axis=1) for sign in (1, -1))
    return np.asarray(pdtr(added, points / 100 * words + removed))


_SLACK = 1e-9
"""By which part of the largest possible sum two sums may differ and yet count as equal: they are rounded."""


def _all_signs(units: Floats) -> tuple[float, float]:
    sums = np.zeros(1)
    for value in units[1:]:  # the first keeps its sign: its other half of the patterns is the mirror image
        sums = np.concatenate([sums + value, sums - value])
    sums, found, slack = sums + units[0], units.sum(), _SLACK * np.abs(units).sum()
    both = np.mean(np.abs(sums) >= abs(found) - slack)
    return float(both), float((np.mean(sums <= found + slack) + np.mean(-sums <= found + slack)) / 2)


def _drawn_signs(values: Floats, seed: int) -> tuple[Floats, Floats]:
    rng = np.random.default_rng(seed)
    found, slack = values.sum(axis=1), _SLACK * np.abs(values).sum(axis=1)
    both, low = np.ones(len(values)), np.ones(len(values))  # the pattern that was found
    for start in range(0, FLIPS, _PATTERNS):
        drawn = rng.integers(2, size=(min(_PATTERNS, FLIPS - start), values.shape[1]), dtype=np.int8)
        sums = (2.0 * drawn - 1.0) @ values.T
        both += (np.abs(sums) >= np.abs(found) - slack).sum(axis=0)
        low += (sums <= found + slack).sum(axis=0)
    return both / (FLIPS + 1), low / (FLIPS + 1)


def sign_test(one: int, other: int) -> float:
    """Return the exact two-sided p-value of a fair coin that falls so often to one side, and to the other."""
    return float(min(1.0, 2 * bdtr(min(one, other), one + other, 0.5)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for testing all of them, in the order given.

    The smallest is multiplied by their number, the next by one less, and so on; none may fall below a smaller one's.
    Source: Holm, "A simple sequentially rejective multiple test procedure", 1979.
    """
    order = np.argsort(p_values, kind="stable")
    multiplied = np.asarray(p_values)[order] * np.arange(len(order), 0, -1)
    corrected = np.empty(len(order))
    corrected[order] = np.maximum.accumulate(np.minimum(multiplied, 1.0))
    return corrected.tolist()


def mapsswe(alignments: Sequence[str], base: Sequence[str]) -> tuple[float, float]:
    """Return z (positive where there are more errors than in `base`) and its two-sided p-value, by matched pairs.

    Both arguments hold one alignment per utterance, to the same references, in letters HIT, S, D and I. This is
    `mapsswe` of NIST's sctk, after Gillick and Cox. A segment is a stretch with errors of either system, until both
    have two words in a row right or the utterance ends. z is the mean difference of errors over its standard error; p
    assumes many independent segments (Gillick and Cox: 50). Where all segments differ alike, sctk says z = 0; here the
    spread is then taken about zero.
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
