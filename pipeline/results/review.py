"""What a change did to each variant: the results of two commits held against each other, and the gate (pure)."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isnan, nan

import pandas as pd

from pipeline.core.params import BASELINE, Review
from pipeline.results.tables import Row
from pipeline.results.text import change, verdict
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
    kl: tuple[float, float]
    loss: float
    """What its difference to fp32 has grown by, in points; of fp32, its rate. NaN where that cannot be told."""
    low: float
    high: float
    """The 95 % interval of that, paired."""
    more: int
    fewer: int
    """Utterances with more and with fewer errors than before."""
    same: bool
    """Whether the utterances are."""
    elsewhere: bool
    """Whether it was measured on another processor."""

    @property
    def quiet(self) -> bool:
        """Whether nothing changed that a reader would look at."""
        still = all(before == after for before, after in (self.size_mb, self.verdict))
        near = self.kl[0] == self.kl[1] or any(map(isnan, self.kl))
        return self.same and not (self.more or self.fewer) and still and near and (isnan(self.loss) or self.loss == 0)


def changes(before: Results, after: Results, resamples: int, seed: int) -> Iterator[Change]:
    """Yield what became of each variant and split that both commits have."""
    old, new = before.rows, after.rows
    for key in new:
        if key in old:
            yield _change(before, after, old[key], new[key], resamples, seed)


def _change(before: Results, after: Results, old: Row, new: Row, resamples: int, seed: int) -> Change:
    spoken, again = (of.errors[of.errors.split == new.split].reset_index() for of in (before, after))
    same = bool(spoken[["id", "words"]].equals(again[["id", "words"]]))
    more = fewer = 0
    loss = low = high = nan
    if same:
        grown = again[new.variant] - spoken[new.variant]
        more, fewer = int((grown > 0).sum()), int((grown < 0).sum())
        if new.variant != BASELINE:
            grown = grown - (again[BASELINE] - spoken[BASELINE])
        if again.words.sum():  # errors.csv does not say how long silence lasts
            speakers = [speaker or None for speaker in again.speaker]
            counts = grown.to_numpy()[None], again.words.to_numpy()[None]
            found = statistics.by_unit(*counts, speakers, resamples, seed)
            (estimate,) = found[statistics.headline_unit(speakers)]
            loss, (low, high) = estimate.value, estimate.interval()
    elsewhere = any(getattr(old, key) != getattr(new, key) for key in PLACE)
    pairs = (old.rate, new.rate), (old.size_mb, new.size_mb), (verdict(old), verdict(new)), (old.kl, new.kl)
    return Change(new.variant, new.split, *pairs, loss, low, high, more, fewer, same, elsewhere)


def vanished(before: Results, after: Results) -> list[tuple[str, str]]:
    """Return the variants and splits that are no longer there."""
    return [key for key in before.rows if key not in after.rows]


def refusals(
    found: Sequence[Change], gone: Sequence[tuple[str, str]], guarded: Mapping[str, str], limits: Review
) -> list[str]:
    """Return why a change must not land, in sentences: what it does to the variants that are guarded, told by name.

    A loss has grown where the whole interval is beyond the tolerance, and more utterances have more errors than fewer:
    fp32 may have got better instead. On little speech no interval is, so KL may not grow by more than its factor.
    """
    ours = [one for one in found if one.variant in guarded]
    worse = [
        f"the loss of {_named(one, guarded)} has grown by {change(one.loss, one.low, one.high)} points, beyond the "
        f"{limits.tolerance:g} of review.tolerance"
        for one in ours
        if one.low > limits.tolerance and one.more > one.fewer
    ]
    farther = [
        f"KL of {_named(one, guarded)} has grown from {one.kl[0]:.4f} to {one.kl[1]:.4f} nats a token, more than the "
        f"{limits.kl_factor:g} times of review.kl_factor"
        for one in ours
        if one.kl[1] > limits.kl_factor * one.kl[0] > 0
    ]
    lost = [f"{name} ({guarded[name]}) has vanished from {split}" for name, split in gone if name in guarded]
    return worse + farther + lost


def doubts(found: Sequence[Change], guarded: Mapping[str, str], limits: Review) -> list[str]:
    """Return what cannot be told of guarded variants, in sentences: this speech would not show it."""
    ours = [one for one in found if one.variant in guarded and not one.quiet]
    wide = [
        f"of {_named(one, guarded)} this speech cannot exclude a loss of {one.high:.2f} points"
        for one in ours
        if one.low <= limits.tolerance < one.high
    ]
    other = [f"{_named(one, guarded)} was heard on other speech" for one in ours if not one.same]
    silent = [
        f"{_named(one, guarded)} writes more on silence" for one in ours if one.same and isnan(one.loss) and one.more
    ]
    return wide + other + silent


def _named(one: Change, guarded: Mapping[str, str]) -> str:
    return f"{one.variant} ({guarded[one.variant]}) on {one.split}"
