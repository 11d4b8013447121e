"""Which variant to ship: what the verdicts on every split say together, of one study's results.csv (pure).

Verdicts are corrected for the number of variants, split by split, and a variant must pass on every split: so choosing
among all that pass adds no errors of its own.
"""

from typing import TYPE_CHECKING

from pipeline.core.params import BASELINE, CANDIDATE
from pipeline.results.tables import Row

if TYPE_CHECKING:
    from pandas import DataFrame

ROWS = 6
"""Variants of a shortlist: as many as one takes in at a glance."""


def safe(lines: "DataFrame") -> dict[float, list[Row]]:
    """Return, by margin, the variants that are shown to lose less than that on every split; smallest first.

    A variant stands at the least margin that holds on all of them. The candidate is what is being tried, and no answer.
    """
    found: dict[float, list[Row]] = {}
    quantized = lines[~lines.variant.isin((BASELINE, CANDIDATE))]
    margins = quantized.groupby("variant").no_worse_than.agg(lambda margin: margin.max(skipna=False))
    for row in quantized.drop_duplicates("variant").sort_values(["size_mb", "variant"]).itertuples():
        found.setdefault(margins[row.variant], []).append(row)
    return {margin: found[margin] for margin in sorted(margins.dropna().unique())}


def smallest(lines: "DataFrame") -> dict[float, Row]:
    """Return the smallest safe variant by margin; a wider margin has one only where that is smaller still."""
    found: dict[float, Row] = {}
    for margin, (first, *_) in safe(lines).items():
        if all(first.size_mb < row.size_mb for row in found.values()):
            found[margin] = first
    return found


def fastest(lines: "DataFrame") -> Row | None:
    """Return the safe variant that is fastest with single utterances; None where fp32 is as fast."""
    found = [row for rows in safe(lines).values() for row in rows]
    faster = [row for row in found if row.latency_p50_ms < _fp32(lines).latency_p50_ms]
    return min(faster, key=lambda row: row.latency_p50_ms, default=None)


def shortlist(lines: "DataFrame") -> list[str]:
    """Return ROWS variants at most: fp32, the smallest safe ones, the fastest, then each other library's smallest."""
    chosen = [_fp32(lines), *smallest(lines).values()]
    chosen += [row for row in (fastest(lines),) if row and row.variant not in {each.variant for each in chosen}]
    others = sorted((row for rows in safe(lines).values() for row in rows), key=lambda row: row.size_mb)
    for row in others:
        if row.backend not in {each.backend for each in chosen}:
            chosen.append(row)
    return [row.variant for row in chosen[:ROWS]]


def _fp32(lines: "DataFrame") -> Row:
    return next(lines[lines.variant == BASELINE].itertuples())
