"""What charts draw of results.csv: numbers, texts, and where names go beside their points (pure)."""

from collections.abc import Sequence
from math import inf

import numpy as np
import pandas as pd

from pipeline.core.params import BASELINE
from pipeline.results.tables import MEASURES, Row
from pipeline.results.text import UNDECIDED, change, interval, known, number, verdict

HALF = "fp16"  # the variant of half of fp32's bytes
PALE = 0.35  # opacity of what is undecided
SMALL = 10  # pixels of a name's letters
LETTER = 5.4  # pixels of one on average
GAP = 8  # pixels between a point and its name

Box = Sequence[float]  # left, bottom, right, top, in pixels
ANGLES = (0, 180, 30, -30, 150, -150, 60, -60, 120, -120, 90, -90)
"""Where a name may lie as seen from its point, in degrees; the first are preferred."""


def limit(results: pd.DataFrame) -> float:
    """Return the rate at which an axis ends; variants beyond it are drawn at its edge, or they would squash the others.

    It is at most twice fp32's rate or, where that is more, 5 (points of WER, words per minute) above it. It is 1 where
    all rates are zero.
    """
    base = baseline(results).rate
    most = max(2 * base, base + 5)
    return min(most, float(results.rate_high[results.rate <= most].max())) or 1.0


def pareto(results: pd.DataFrame) -> pd.DataFrame:
    """Return the variants that none other beats in both size and rate, smallest first; of equals, the first."""
    ordered = results.sort_values(["size_mb", "rate"])
    return ordered[ordered.rate < ordered.rate.cummin().shift(fill_value=inf)]


def points(results: pd.DataFrame, top: float | None = None) -> pd.DataFrame:
    """Return what charts draw of one split's results: a row for each variant, in the table's order.

    `top` is the rate at which the axis ends, by default `limit`.
    """
    base, top = baseline(results), limit(results) if top is None else top
    rows = []
    for row in results.itertuples():
        measure, beyond = MEASURES[row.measure], row.rate > top
        interval = (np.nan, np.nan) if beyond or row.variant == BASELINE else (row.delta_low, row.delta_high)
        rows.append(
            {
                "variant": row.variant,
                "backend": row.backend,
                "size": row.size_mb,
                "shown": min(row.rate, top),
                "beyond": beyond,
                "low": base.rate + max(interval[0], -base.rate),
                "high": min(base.rate + interval[1], top),
                "bits": row.bits_per_weight,
                "kl": row.kl or np.nan,  # a logarithm has no place for fp32's zero
                "flips": row.flips,
                "delta": min(row.rate, top) - base.rate,
                "latency": row.latency_p50_ms,
                "verdict": verdict(row),
                "opacity": PALE if row.verdict == UNDECIDED else 1.0,
                "name": f"{row.variant} ({row.rate:.0f}{measure.unit})" if beyond else row.variant,
                "bar": f"{row.variant}, {row.size_mb:.1f} MB",
                "end": f"{row.rate:.2f}{' (cut)' if beyond else ''}",
                measure.name: f"{number(row.rate)}{measure.unit}",
                "against fp32": change(row.delta, row.delta_low, row.delta_high),
                "weights": f"{row.size_mb:.1f} MB",
                "time of an utterance": f"{row.latency_p50_ms:.0f} ms",
            }
        )
    return pd.DataFrame(rows)


def across(results: pd.DataFrame, top: float) -> pd.DataFrame:
    """Return what a chart draws of several studies on the same speech: a row for each variant of each, by study.

    `results` are lines of results.csv with columns study, model and reckoned. A variant is told apart by its study.
    """
    parts = []
    for study, rows in results.groupby("study", sort=False):
        measure, found = MEASURES[rows.measure.iloc[0]], points(rows, top)
        ends = zip(found[measure.name], rows.rate_low, rows.rate_high, strict=True)
        whole = found.variant.isin([BASELINE, HALF])
        parts.append(
            found.assign(
                variant=f"{study}: " + found.variant,
                x=found["size"],
                model=rows.model.to_numpy(),
                hollow=found.beyond | rows.reckoned.to_numpy(),
                name=(rows.model.iloc[0] + " " + found.variant).where(whole, ""),
                KL=[known(kl, ".4f") or "not measured" for kl in rows.kl],
                **{measure.name: [f"{rate} {interval(low, high)}" for rate, low, high in ends]},
            )
        )
    found = pd.concat(parts, ignore_index=True)
    return found.assign(name=found.name.where(~found.name.duplicated(), ""))  # of several studies of a model, one


def fronts(results: pd.DataFrame, top: float) -> pd.DataFrame:
    """Return the corners of each model's Pareto front, up to its largest variant: columns model, size_mb and rate.

    What is beyond `top`, where the axis ends, takes no part.
    """
    parts = []
    for model, rows in results[results.rate <= top].groupby("model", sort=False):
        best = pareto(rows)[["size_mb", "rate"]]
        parts.append(pd.concat([best, best[-1:].assign(size_mb=rows.size_mb.max())]).assign(model=model))
    return pd.concat(parts)


def named(drawn: pd.DataFrame, line: float, right: float, top: float, width: int, height: int) -> pd.DataFrame:
    """Add where the names go in a panel of so many pixels: of points at `x` and `shown`, and clear of a line at a rate.

    In units of the axes, which end at `right` and `top`: `name_x`, `name_y`, and `near`, the end next to the point.
    """
    scale = np.array([width / right, height / top])
    pixels = drawn[["x", "shown"]].to_numpy() * scale
    taken: list[Box] = [(x - 6, y - 6, x + 6, y + 6) for x, y in pixels]
    taken += [
        (0, line * scale[1] - 2, width, line * scale[1] + 2),
        (width - 90, line * scale[1], width, line * scale[1] + 14),
    ]
    places = []
    for name, (x, y) in zip(drawn.name, pixels, strict=True):
        taken.append(free_place(LETTER * len(name), SMALL + 2, (x, y), taken, (0, 0, width, height)))
        left, low, end, high = taken[-1]
        places.append([left, (low + high) / 2, min(max(x, left), end)])
    name_x, name_y, near = np.reshape(places, (-1, 3)).T
    return drawn.assign(name_x=name_x / scale[0], name_y=name_y / scale[1], near=near / scale[0])


def free_place(width: float, height: float, point: tuple[float, float], taken: Sequence[Box], frame: Box) -> Box:
    """Return the box for a name of this size: the nearest to its point that is inside the frame and free.

    Where none is free, it is the one that covers the least.
    """
    distances, degrees = np.array([(distance, angle) for distance in range(GAP, 250, GAP) for angle in ANGLES]).T
    x, y = (at + distances * way(np.radians(degrees)) for at, way in zip(point, (np.cos, np.sin), strict=True))
    left = x - width * np.where(abs(degrees) == 90, 0.5, abs(degrees) > 90)  # its near side faces the point
    low = np.stack([left, y - height / 2], axis=1)
    high = low + np.array([width, height])
    others = np.reshape(taken, (-1, 1, 4))
    overlaps = (np.minimum(high, others[..., 2:]) - np.maximum(low, others[..., :2])).clip(min=0).prod(axis=2)
    outside = np.hstack([frame[:2] - low, high - frame[2:]]).clip(min=0).max(axis=1)
    best = (overlaps.sum(axis=0) + 1000 * outside).argmin()
    return [*low[best], *high[best]]


def baseline(results: pd.DataFrame) -> Row:
    """Return fp32's row of a split."""
    return results[results.variant == BASELINE].iloc[0]
