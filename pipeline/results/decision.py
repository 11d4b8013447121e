"""Which variant to ship: what the verdicts on every split say together, of one study's results.csv (pure).

A margin must be shown on every split, after Holm's correction over the variants of each: so of a split and a margin, at
most one study in forty calls any variant safe that is not, whichever is then chosen.
"""

from typing import TYPE_CHECKING

from pipeline.core.params import BASELINE, CANDIDATE
from pipeline.results.tables import Row

if TYPE_CHECKING:
    from pandas import DataFrame

ROWS = 6
"""Variants of a shortlist: as many as one takes in at a glance."""

GAIN = 0.9
"""Of fp32's time: what is not below is no reason to change, as times have no intervals."""

MEASURED = ("machine", "device", "threads", "jobs")
"""Where these differ, times do not compare."""


def safe(lines: "DataFrame") -> dict[float, list[Row]]:
    """Return, by margin, the variants that are shown to lose less than that on every split; smallest first.

    A variant stands at the least margin that holds on all of them; it may be worse than fp32, by less. The candidate is
    what is being tried, and no answer.
    """
    quantized = lines[~lines.variant.isin((BASELINE, CANDIDATE))]
    margins = quantized.groupby("variant").no_worse_than.agg(lambda margin: margin.max(skipna=False)).dropna()
    by_size = quantized.drop_duplicates("variant").sort_values(["size_mb", "variant"])
    return {
        margin: [row for row in by_size.itertuples() if margins.get(row.variant) == margin]
        for margin in sorted(margins.unique())
    }


def smallest(lines: "DataFrame") -> dict[float, Row]:
    """Return the smallest safe variant by margin; a wider margin has one only where that is smaller still."""
    found: dict[float, Row] = {}
    for margin, (first, *_) in safe(lines).items():
        if all(first.size_mb < row.size_mb for row in found.values()):
            found[margin] = first
    return found


def fastest(lines: "DataFrame") -> Row | None:
    """Return the safe variant that is fastest with single utterances; None where none gains enough on fp32."""
    fp32 = _fp32(lines)
    beside = [row for row in _safe(lines) if all(getattr(row, key) == getattr(fp32, key) for key in MEASURED)]
    faster = [row for row in beside if row.latency_p50_ms <= GAIN * fp32.latency_p50_ms]
    return min(faster, key=lambda row: row.latency_p50_ms, default=None)


def shortlist(lines: "DataFrame") -> list[str]:
    """Return ROWS variants at most: fp32, the smallest safe ones, the fastest, then each other library's smallest."""
    chosen = {row.variant: row for row in (_fp32(lines), *smallest(lines).values(), fastest(lines)) if row}
    for row in sorted(_safe(lines), key=lambda row: row.size_mb):
        if row.backend not in {each.backend for each in chosen.values()}:
            chosen[row.variant] = row
    return [*chosen][:ROWS]


def _safe(lines: "DataFrame") -> list[Row]:
    return [row for rows in safe(lines).values() for row in rows]


def _fp32(lines: "DataFrame") -> Row:
    return next(lines[lines.variant == BASELINE].itertuples())
