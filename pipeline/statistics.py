"""Tell real differences between word error rates from chance: bootstrap intervals, paired p-values, Holm's correction.

A *unit* is what is drawn with replacement: an utterance. Every function takes errors and words summed per unit, so
drawing whole speakers instead is only a matter of summing over each speaker's utterances first.

Source: Bisani and Ney, "Bootstrap estimates for confidence intervals in ASR performance evaluation", ICASSP 2004.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

LEVEL = 95.0
"""Per cent of the bootstrap distribution that an interval holds."""

SIGNIFICANT = 0.05
"""A difference is significant when its p-value, corrected, is below this: what an interval of 95 % stands for."""

_BLOCK = 256  # resamples held at a time: 256 x 2,939 units of float64 are 6 MB, whatever the number of resamples


def draws(units: int, resamples: int, seed: int) -> Iterator[Floats]:
    """Yield blocks of shape (at most 256, units): how often each resample draws each unit.

    The same units, resamples and seed give the same draws, so any two calls can be compared in pairs. They are whole
    numbers, kept as floats because only float matrices are multiplied fast.
    """
    rng = np.random.default_rng(seed)
    for start in range(0, resamples, _BLOCK):
        rows = min(_BLOCK, resamples - start)
        drawn = rng.integers(units, size=(rows, units)) + units * np.arange(rows)[:, None]
        yield np.bincount(drawn.ravel(), minlength=rows * units).reshape(rows, units).astype(np.float64)


def rate(errors: Floats | Ints, words: Floats | Ints) -> Floats:
    """Return word errors in per cent of reference words; where no words were drawn, the errors count as if over one."""
    return 100.0 * np.asarray(errors, dtype=np.float64) / np.maximum(words, 1)


def bootstrap(errors: Ints, words: Ints, resamples: int, seed: int) -> Floats:
    """Return the rates, in per cent, that each resample of the units gives: shape (systems, resamples).

    `errors` has shape (systems, units), `words` (units,). All systems share every draw: subtracting two rows gives the
    *paired* bootstrap of their difference, which is far narrower than two intervals side by side suggest, and exactly
    zero where two systems make the same errors.
    """
    # Sums of whole numbers below 2**53 are exact in float64: the result depends on no order of summation, thread count
    # or machine.
    both = np.vstack([errors, words]).astype(np.float64).T
    sums = np.concatenate([block @ both for block in draws(len(words), resamples, seed)]).T
    return rate(sums[:-1], sums[-1])


def interval(samples: Floats) -> tuple[float, float]:
    """Return the percentile interval of bootstrap samples at LEVEL."""
    tail = (100.0 - LEVEL) / 2
    low, high = np.percentile(samples, [tail, 100.0 - tail])
    return float(low), float(high)


def p_value(differences: Floats) -> float:
    """Return the two-sided p-value of "there is no difference" from bootstrap samples of the difference.

    It is twice the smaller share of samples on either side of zero, zero itself counted on both: the level at which the
    percentile interval would just touch zero, so interval and p-value never disagree. One is added to counts and
    resamples (Davison and Hinkley, "Bootstrap Methods and their Application", 1997, section 4.2.1): it is never 0.
    """
    smaller = min(int(np.sum(differences <= 0)), int(np.sum(differences >= 0)))
    return min(1.0, 2.0 * (smaller + 1) / (len(differences) + 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for testing all of them, in the order given.

    Holm, "A simple sequentially rejective multiple test procedure", 1979: the smallest is multiplied by their number,
    the next by one less, and so on; none may fall below one that was smaller before.
    """
    corrected = [1.0] * len(p_values)
    highest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        highest = max(highest, min(1.0, p_values[index] * (len(p_values) - rank)))
        corrected[index] = highest
    return corrected
