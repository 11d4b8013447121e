"""What a change did to each variant: the results of two commits held against each other, and the gate (pure)."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isnan, nan

import pandas as pd

from pipeline.core.params import BASELINE
from pipeline.results.tables import Row
from pipeline.results.text import verdict
from pipeline.scoring import statistics

PLACE = ("machine", "instructions", "device")
"""Where these differ, kernels may round otherwise: then a change need not be the code's."""


@dataclass(frozen=True)
class Results:
    """What a commit holds of a run."""

    lines: pd.DataFrame  # results.csv
    errors: pd.DataFrame  # errors.csv

    @property
    def rows(self) -> dict[tuple[str, str], Row]:
        """The lines by variant and split."""
        return {(row.variant, row.split): row for row in self.lines.itertuples()}


@dataclass(frozen=True)
class Change:
    """What became of a variant on a split."""

    variant: str
    split: str
    rate: tuple[float, float]
    """Before and after."""
    size_mb: tuple[float, float]
    verdict: tuple[str, str]
    loss: float
    """What its difference to fp32 has grown by, in points; of fp32, its rate. NaN where utterances are not the same."""
    low: float
    high: float
    """The 95 % interval of that, paired."""
    more: int
    fewer: int
    """Utterances with more and with fewer errors than before."""
    elsewhere: bool
    """Whether it was measured on another processor."""

    @property
    def quiet(self) -> bool:
        """Whether nothing changed that a reader would look at."""
        return not (self.more or self.fewer or isnan(self.loss) or len({*self.verdict}) > 1 or len({*self.size_mb}) > 1)


def changes(before: Results, after: Results, resamples: int, seed: int) -> Iterator[Change]:
    """Yield what became of each variant and split that both commits have."""
    old, new = before.rows, after.rows
    for key in new:
        if key in old:
            yield _change(before, after, old[key], new[key], resamples, seed)


def _change(before: Results, after: Results, old: Row, new: Row, resamples: int, seed: int) -> Change:
    spoken, again = (of.errors[of.errors.split == new.split].reset_index() for of in (before, after))
    same = spoken[["id", "words"]].equals(again[["id", "words"]]) and bool(again.words.sum())
    more = fewer = 0
    loss = low = high = nan
    if same:
        grown = again[new.variant] - spoken[new.variant]
        more, fewer = int((grown > 0).sum()), int((grown < 0).sum())
        if new.variant != BASELINE:
            grown = grown - (again[BASELINE] - spoken[BASELINE])
        speakers = [speaker or None for speaker in again.speaker]
        found = statistics.by_unit(grown.to_numpy()[None], again.words.to_numpy()[None], speakers, resamples, seed)
        (estimate,) = found[statistics.headline_unit(speakers)]
        loss, (low, high) = estimate.value, estimate.interval()
    elsewhere = any(getattr(old, key) != getattr(new, key) for key in PLACE)
    pairs = (old.rate, new.rate), (old.size_mb, new.size_mb), (verdict(old), verdict(new))
    return Change(new.variant, new.split, *pairs, loss, low, high, more, fewer, elsewhere)


def vanished(before: Results, after: Results) -> list[tuple[str, str]]:
    """Return the variants and splits that are no longer there."""
    return [key for key in before.rows if key not in after.rows]


def refusals(
    found: Sequence[Change], gone: Sequence[tuple[str, str]], recommended: Mapping[str, str], tolerance: float
) -> list[str]:
    """Return why a change must not land, in sentences: what it does to variants that are recommended.

    `recommended` has the artifact's name by variant. One has got worse where the whole interval is beyond `tolerance`.
    """
    worse = [
        f"{one.variant} ({recommended[one.variant]}) has got worse on {one.split} by {one.loss:+.2f} points "
        f"[{one.low:+.2f}, {one.high:+.2f}], beyond the {tolerance:g} that review.tolerance allows"
        for one in found
        if one.variant in recommended and one.low > tolerance
    ]
    lost = [f"{name} ({recommended[name]}) has vanished from {split}" for name, split in gone if name in recommended]
    return worse + lost
