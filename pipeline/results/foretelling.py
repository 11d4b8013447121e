"""Does KL divergence on speech that nobody scores foretell what the word error rate will lose?"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.stats import rankdata

from pipeline.core.params import BASELINE
from pipeline.scoring import statistics

RESAMPLES, SEED = 10_000, 0
FEWEST = 5
"""Variants below which a rank correlation says nothing."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Correlation:
    """Spearman's rank correlation of KL and loss over a split's variants, with its 95 % interval."""

    split: str
    variants: int
    unit: str  # what was drawn anew beside variants: speaker or utterance
    rho: float
    low: float
    high: float


def correlate(kl: pd.DataFrame, errors: pd.DataFrame, names: Sequence[str]) -> list[Correlation]:
    """Return the correlation over the named variants on each split of errors.csv with the KL of foretold.csv (pure).

    None where variants are fewer than FEWEST, or all lose alike. For the interval variants and units (speakers, or
    utterances where `statistics.headline_unit` says so) are drawn anew, each variant with all its errors and each unit
    with all that it says: Owen, "The pigeonhole bootstrap", Annals of Applied Statistics 1 (2007). Its ends are
    percentiles, as a correlation ends at 1. The KL's own speakers are not drawn.
    """
    if len(names) < FEWEST:
        return []
    divergences = kl.set_index("variant").kl[[*names]].to_numpy()
    variants = np.random.default_rng([SEED, 1]).integers(len(names), size=(RESAMPLES, len(names)))
    found = []
    for split, spoken in errors.groupby("split", sort=False):
        unit = statistics.headline_unit([speaker or None for speaker in spoken.speaker])
        sums = spoken.groupby("id" if unit == "utterance" else "speaker")[[BASELINE, *names]].sum()
        lost = sums[[*names]].sub(sums[BASELINE], axis=0).to_numpy(np.float64)
        drawn = np.concatenate([block @ lost for block in statistics.draws(len(sums), RESAMPLES, SEED)])
        rhos = spearman(divergences[variants], np.take_along_axis(drawn, variants, axis=1))
        (rho,) = spearman(divergences[None], lost.sum(axis=0)[None])
        if not np.isnan(rho):
            low, high = np.nanpercentile(rhos, [2.5, 97.5])
            found.append(Correlation(str(split), len(names), unit, float(rho), float(low), float(high)))
    return found


def spearman(one: Floats, other: Floats) -> Floats:
    """Return the rank correlation of each row of two tables; NaN where all of a row are equal."""
    ranks = [rankdata(values, axis=1) for values in (one, other)]
    one, other = (rank - rank.mean(axis=1, keepdims=True) for rank in ranks)
    with np.errstate(invalid="ignore"):
        return np.asarray((one * other).sum(axis=1) / np.sqrt((one**2).sum(axis=1) * (other**2).sum(axis=1)))
