"""Which variant to ship: what the verdicts on every split say together, of one study's results.csv (pure).

A margin must be shown on every split, after Holm's correction over the variants of each: so of a split and a margin, at
most one study in forty calls any variant safe that is not, whichever is then chosen.
"""

from math import inf, isnan, nan
from typing import TYPE_CHECKING, Literal

from pipeline.core.params import BASELINE, CANDIDATE
from pipeline.results.tables import Row
from pipeline.results.text import verdict

if TYPE_CHECKING:
    from pandas import DataFrame

Goal = Literal["nearest", "smallest", "fastest"]
"""What the best within a budget is: nearest to fp32 (by margin, then by KL), of the fewest MB, or fastest."""

ROWS = 6
"""Variants of a shortlist: as many as one takes in at a glance."""

GAIN = 0.9
"""Of fp32's time: what is not below is no reason to change, as times have no intervals."""

MEASURED = ("machine", "device", "threads", "jobs")
"""Where these differ, times do not compare."""


def margins(lines: "DataFrame") -> dict[str, float]:
    """Return the least margin at which each variant is safe on all splits: 0 for fp32, infinite where there is none."""
    least = lines.groupby("variant", sort=False).no_worse_than.agg(lambda margin: margin.max(skipna=False)).fillna(inf)
    return {name: 0.0 if name == BASELINE else float(margin) for name, margin in least.items()}


def safe(lines: "DataFrame") -> dict[float, list[Row]]:
    """Return, by margin, the variants that are shown to lose less than that on every split; smallest first.

    A variant stands at the least margin that holds on all of them; it may be worse than fp32, by less. The candidate is
    what is being tried, and no answer.
    """
    least = margins(lines)
    by_size = lines.drop_duplicates("variant").sort_values(["size_mb", "variant"]).itertuples()
    shown = [row for row in by_size if row.variant not in (BASELINE, CANDIDATE) and least[row.variant] < inf]
    found = sorted({least[row.variant] for row in shown})
    return {margin: [row for row in shown if least[row.variant] == margin] for margin in found}


def smallest(lines: "DataFrame") -> dict[float, Row]:
    """Return the smallest safe variant by margin; a wider margin has one only where that is smaller still."""
    found: dict[float, Row] = {}
    for margin, (first, *_) in safe(lines).items():
        if all(first.size_mb < row.size_mb for row in found.values()):
            found[margin] = first
    return found


def fastest(lines: "DataFrame") -> Row | None:
    """Return the safe variant that is fastest with single utterances; None where none gains enough on fp32."""
    faster = [row for row in _safe(lines) if time(lines, row) <= GAIN]  # what does not compare is no number
    return min(faster, key=lambda row: row.latency_p50_ms, default=None)


def shortlist(lines: "DataFrame") -> list[str]:
    """Return ROWS variants at most: fp32, the smallest safe ones, the fastest, then each other library's smallest."""
    chosen = {row.variant: row for row in (_fp32(lines), *smallest(lines).values(), fastest(lines)) if row}
    for row in sorted(_safe(lines), key=lambda row: row.size_mb):
        if row.backend not in {each.backend for each in chosen.values()}:
            chosen[row.variant] = row
    return [*chosen][:ROWS]


def choices(lines: "DataFrame") -> list[Row]:
    """Return one line of each variant that may be recommended.

    Not the candidate, which is what is being tried; none that is worse by more than any margin allows, and none of
    which neither margins nor KL are known.
    """
    least = margins(lines)
    worse = {*lines.variant[lines.verdict == "worse"]}
    return [
        row
        for row in lines.drop_duplicates("variant").itertuples()
        if row.variant != CANDIDATE
        and (least[row.variant] < inf or (row.variant not in worse and kl(lines, row.variant) < inf))
    ]


def beside(lines: "DataFrame", row: Row) -> bool:
    """Tell whether a variant was timed where fp32 was."""
    fp32 = _fp32(lines)
    return all(getattr(row, key) == getattr(fp32, key) for key in MEASURED)


def time(lines: "DataFrame", row: Row) -> float:
    """Return the time of a single utterance over fp32's; NaN where the two do not compare."""
    return float(row.latency_p50_ms / _fp32(lines).latency_p50_ms) if beside(lines, row) else nan


def recommend(lines: "DataFrame", goal: Goal, max_mb: float = inf, max_loss: float = inf) -> Row | None:
    """Return the best of `choices` of a size and a loss at most, in MB and points; None where nothing fits.

    Times within a tenth of fp32's are as fast as it. Of equals it is the smaller, and then the one named first.
    """
    least = margins(lines)
    fitting = [row for row in choices(lines) if row.size_mb <= max_mb and least[row.variant] <= max_loss]
    if goal == "fastest":
        fitting = [row for row in fitting if beside(lines, row)]
    ranks = {
        "nearest": lambda row: (least[row.variant], kl(lines, row.variant), row.size_mb),
        "smallest": lambda row: (row.size_mb,),
        "fastest": lambda row: (pace(time(lines, row)), row.size_mb),
    }
    return min(fitting, key=ranks[goal], default=None)


def pace(time: float) -> float:
    """Return a time over fp32's, or 1 where the two hardly differ."""
    return 1.0 if GAIN < time < 1 / GAIN else time


def kl(lines: "DataFrame", variant: str) -> float:
    """Return a variant's KL divergence from fp32, mean over all splits' tokens; infinite where it is not known."""
    rows = lines[lines.variant == variant]
    mean = float((rows.kl * rows.tokens).sum(skipna=False) / rows.tokens.sum(skipna=False))
    return inf if isnan(mean) else mean


def _safe(lines: "DataFrame") -> list[Row]:
    return [row for rows in safe(lines).values() for row in rows]


def _fp32(lines: "DataFrame") -> Row:
    return next(lines[lines.variant == BASELINE].itertuples())


def reason(lines: "DataFrame", row: Row) -> str:
    """Return a variant with its size, and the verdicts that speak for it."""
    own = lines[lines.variant == row.variant].itertuples()
    told = "; ".join(f"{each.split}: {verdict(each)}" for each in own)
    nats = kl(lines, row.variant)
    return f"{row.variant}, {row.size_mb:.1f} MB ({told}{f'; KL {nats:.4f} nats a token' if nats < inf else ''})"
