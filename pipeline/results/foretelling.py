"""Does KL divergence on speech that nobody scores foretell what the word error rate will lose?"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.stats import rankdata

from pipeline.core.params import BASELINE
from pipeline.scoring import statistics

RESAMPLES, SEED = 10_000, 0

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Foretold:
    """Spearman's rank correlation of KL and loss over a split's quantized variants, with its 95 % interval."""

    split: str
    variants: int
    rho: float
    low: float
    high: float


def foretold(kl: pd.DataFrame, errors: pd.DataFrame) -> Iterator[Foretold]:
    """Yield the correlation on each split of errors.csv with the KL divergences of foretold.csv (pure).

    The interval holds for other variants of this kind and other speakers: both are drawn anew, each variant with all
    its errors and each speaker (utterance, where speakers are not known) with all that they say. Source: Owen, "The
    pigeonhole bootstrap", Annals of Applied Statistics 1 (2007).
    """
    of = kl[kl.variant != BASELINE].set_index("variant").kl
    for split, spoken in errors.groupby("split", sort=False):
        unit = "id" if (spoken.speaker == "").any() else "speaker"
        sums = spoken.groupby(unit)[["words", BASELINE, *of.index]].sum()
        lost = sums[of.index].sub(sums[BASELINE], axis=0).to_numpy(np.float64)
        units = np.concatenate([*statistics.draws(len(sums), RESAMPLES, SEED)])
        variants = np.random.default_rng(SEED).integers(len(of), size=(RESAMPLES, len(of)))
        losses = np.take_along_axis(units @ lost / (units @ sums[["words"]].to_numpy()), variants, axis=1)
        low, high = np.nanpercentile(spearman(of.to_numpy()[variants], losses), [2.5, 97.5])
        (rho,) = spearman(of.to_numpy()[None], lost.sum(axis=0)[None])
        yield Foretold(str(split), len(of), float(rho), float(low), float(high))


def spearman(one: Floats, other: Floats) -> Floats:
    """Return the rank correlation of each row of two tables; NaN where all of a row are equal."""
    ranks = [rankdata(values, axis=1) for values in (one, other)]
    one, other = (rank - rank.mean(axis=1, keepdims=True) for rank in ranks)
    with np.errstate(invalid="ignore"):
        return np.asarray((one * other).sum(axis=1) / np.sqrt((one**2).sum(axis=1) * (other**2).sum(axis=1)))
