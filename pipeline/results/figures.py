"""Draw the results as figures: the leading rate against size, and each variant's difference to fp32."""

from collections.abc import Iterator, Sequence
from math import cos, inf, radians, sin
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.core.params import BASELINE, CANDIDATE
from pipeline.results.tables import MEASURES, Row
from pipeline.results.text import ALIKE, either, extent

if TYPE_CHECKING:  # matplotlib is imported late: it takes longer than all the rest
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from pandas import DataFrame

FIGURES = Path("reports/figures")

# Okabe and Ito's colours, which the colour-blind tell apart, and a marker each for print in grey.
LOOKS = {
    "none": ("#555555", "D"),
    "torch": ("#D55E00", "s"),
    "quanto": ("#0072B2", "o"),
    "hqq": ("#009E73", "^"),
    "bnb": ("#CC79A7", "v"),
}
OTHER = ("#E69F00", "P")
"""A backend that has no look of its own yet."""

STYLE = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same picture on every machine
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "figure.dpi": 150,
    "savefig.dpi": "figure",
}

RING: dict[str, Any] = {"color": "none", "marker": "o", "markersize": 11, "markeredgecolor": "black"}
"""Around the candidate's point."""

PALE = 0.35
"""How strongly bars without a significant difference are drawn."""

Box = tuple[float, float, float, float]
"""Left, bottom, right, top, in pixels."""


def limit(results: "DataFrame") -> float:
    """Return the rate at which an axis ends: variants beyond it are drawn at its edge, or they would squash the others.

    It is at most twice fp32's rate, or 5 (points of WER, words per minute) above it where that is more; where all rates
    are zero it is 1.
    """
    base = _baseline(results).rate
    most = max(2 * base, base + 5)
    return min(most, float(results.rate_high[results.rate <= most].max())) or 1.0


def pareto(results: "DataFrame") -> "DataFrame":
    """Return the variants that none other beats in both size and rate, smallest first; of equals, the first."""
    ordered = results.sort_values(["size_mb", "rate"])
    return ordered[ordered.rate < ordered.rate.cummin().shift(fill_value=inf)]


def free_place(width: float, height: float, point: tuple[float, float], taken: Sequence[Box], frame: Box) -> Box:
    """Return where a label of this size goes: the place nearest to its point that is inside the frame and free.

    Where none is free, the place that covers the least.
    """
    best, least = None, inf
    for box in _places(width, height, point):
        outside = max(frame[0] - box[0], frame[1] - box[1], box[2] - frame[2], box[3] - frame[3], 0) * 1000
        covered = outside + sum(_overlap(box, other) for other in taken)
        if covered < least:
            best, least = box, covered
        if covered == 0:
            break
    assert best is not None
    return best


def _places(width: float, height: float, point: tuple[float, float]) -> Iterator[Box]:
    for distance in range(12, 250, 10):
        for degrees in (0, 180, 30, -30, 150, -150, 60, -60, 120, -120, 90, -90):
            x, y = point[0] + distance * cos(radians(degrees)), point[1] + distance * sin(radians(degrees))
            left = x - width * (0.5 if abs(degrees) == 90 else abs(degrees) > 90)  # its near side faces the point
            yield left, y - height / 2, left + width, y + height / 2


def _overlap(a: Box, b: Box) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def wer_vs_size(results: "DataFrame") -> "Figure":
    """Return the figure of rate against size: a panel per split, a point per variant with its own 95 % interval."""
    from matplotlib.figure import Figure

    panels = [panel for _, panel in results.groupby("split", sort=False)]
    figure = Figure(figsize=(9, 0.8 + 4.4 * len(panels)), layout="constrained")
    every_axes = list(figure.subplots(len(panels), 1, squeeze=False)[:, 0])
    for axes, panel in zip(every_axes, panels, strict=True):
        _scatter(axes, panel)
    every_axes[-1].set_xlabel("weights on disk, MB")
    rates = either(MEASURES[measure].name for measure in results.measure)
    notes = [
        _handle(BASELINE, color="black", linewidth=0.8, linestyle="--"),
        _handle(f"best {rates} at its size (Pareto front)", color="0.88", linewidth=4),
        _handle("candidate", **RING),
        _handle("beyond the axis", color="none", marker="o", markersize=6, markeredgecolor="0.4"),
    ]
    figure.legend(handles=[*_backends(results), *notes], loc="outside upper center", ncols=4)
    figure.draw_without_rendering()  # only a figure laid out knows where labels would collide
    figure.set_layout_engine("none")
    for axes, panel in zip(every_axes, panels, strict=True):
        _name_points(axes, panel, figure.dpi)
    return figure


def _scatter(axes: "Axes", results: "DataFrame") -> None:
    base, top = _baseline(results), limit(results)
    sizes = [row.size_mb for row in results.itertuples() if row.variant != BASELINE] or [base.size_mb]
    margin = 0.12 * (max(sizes) - min(sizes)) or 0.1 * max(sizes)
    low = results.rate_low.min()
    axes.set_xlim(min(sizes) - margin, max(sizes) + margin)
    height = top - low or 1.0  # one rate for all, as where every word is wrong
    bottom = max(0.0, low - 0.05 * height) if results.rate.min() else -0.03 * height  # or it would cut a point in half
    axes.set_ylim(bottom, top + 0.08 * height)
    axes.set_title(f"{base.split}: {extent(base)}")
    axes.set_ylabel(f"{MEASURES[base.measure].title}, with its 95 % interval by {base.interval_unit}")
    axes.axhline(base.rate, color="black", linewidth=0.8, linestyle="--", zorder=1)
    if base.size_mb > axes.get_xlim()[1]:  # with fp32 inside, the others would crowd in a corner
        name, at = f"{BASELINE},\n{base.size_mb:.0f} MB", (axes.get_xlim()[1], base.rate)
        axes.annotate(name, at, (4, 0), textcoords="offset points", va="center", fontsize=7.5)
    front = pareto(results)
    axes.step(front.size_mb, front.rate, where="post", color="0.88", linewidth=4, zorder=0)
    for row in results.itertuples():
        color, marker = _look(row)
        point = row.size_mb, min(row.rate, top)
        beyond = row.rate > top
        if not beyond:
            axes.vlines(row.size_mb, row.rate_low, row.rate_high, color=color, linewidth=1, alpha=0.4)
        face = "white" if beyond else color
        axes.plot(*point, marker=marker, markersize=6, markerfacecolor=face, markeredgecolor=color)
        if row.variant == CANDIDATE:
            axes.plot(*point, **RING)


def _name_points(axes: "Axes", results: "DataFrame", dpi: float) -> None:
    from matplotlib.patheffects import withStroke

    top = limit(results)
    left, right = axes.get_xlim()
    visible = [(row, (row.size_mb, min(row.rate, top))) for row in results.itertuples() if left <= row.size_mb <= right]
    pixels = [tuple(axes.transData.transform(point)) for _, point in visible]
    frame = axes.bbox.extents
    line = axes.transData.transform((right, _baseline(results).rate))[1]
    taken = [(x - 8, y - 8, x + 8, y + 8) for x, y in pixels] + [(frame[0], line - 1, frame[2], line + 1)]
    for (row, point), (x, y) in zip(visible, pixels, strict=True):
        text = axes.annotate(
            f"{row.variant} ({row.rate:.0f}{MEASURES[row.measure].unit})" if row.rate > top else row.variant,
            point,
            (0, 0),
            textcoords="offset points",
            va="center",
            fontsize=7.5,
            fontweight="bold" if row.variant == CANDIDATE else "normal",
            path_effects=[withStroke(linewidth=2, foreground="white")],
            arrowprops={"arrowstyle": "-", "color": _look(row)[0], "linewidth": 0.6, "shrinkA": 0, "shrinkB": 3},
        )
        extent = text.get_window_extent()
        place = free_place(extent.width, extent.height, (x, y), taken, frame)
        taken.append(place)
        points = 72 / dpi  # of one pixel
        text.set_position(((place[0] - x) * points, ((place[1] + place[3]) / 2 - y) * points))


def differences(results: "DataFrame") -> "Figure":
    """Return the figure of rates: a panel per split, a bar per variant, and the interval of its difference to fp32.

    The interval is the paired one, drawn from fp32's line: one that crosses the line tells no difference, even where
    the two rates' own intervals are wide.
    """
    from matplotlib.figure import Figure

    panels = [panel for _, panel in results.groupby("split", sort=False)]
    figure = Figure(figsize=(3 + 4.2 * len(panels), 1.6 + 0.24 * len(panels[0])), layout="constrained")
    every_axes = list(figure.subplots(1, len(panels), sharey=True, squeeze=False)[0])
    for axes, panel in zip(every_axes, panels, strict=True):
        _bars(axes, panel)
    units = either(results.interval_unit)
    notes = [
        _handle(BASELINE, color="black", linewidth=0.8, linestyle="--"),
        _handle(f"95 % interval of the difference to fp32, by {units}", color="black", linewidth=1),
        _handle("pale: no significant difference", color="0.5", alpha=PALE, marker="s", markersize=8, linestyle=""),
    ]
    figure.legend(handles=[*_backends(results, "s"), *notes], loc="outside upper center", ncols=4)
    return figure


def _bars(axes: "Axes", results: "DataFrame") -> None:
    base, top = _baseline(results), limit(results)
    ends = results.rate + results.delta_high - results.delta
    top = max(top, float(ends[results.rate <= top].max()))
    for y, row in enumerate(results.itertuples()):
        beyond = row.rate > top
        axes.barh(y, min(row.rate, top), color=_look(row)[0], alpha=PALE if row.verdict == ALIKE else 1.0, height=0.7)
        low, high = base.rate + row.delta_low, base.rate + row.delta_high
        if not beyond and row.variant != BASELINE:
            axes.hlines(y, low, min(high, top), color="black", linewidth=1)
        at = min(top, max(high, row.rate))
        rate = f"{row.rate:.2f}{' (cut)' if beyond else ''}"
        axes.annotate(rate, (at, y), (4, 0), textcoords="offset points", va="center", fontsize=7.5)
    axes.axvline(base.rate, color="black", linewidth=0.8, linestyle="--")
    axes.set_xlim(0, top * 1.15)
    axes.set_ylim(len(results) - 0.4, -0.6)
    axes.set_yticks(range(len(results)), list(results.variant))
    for name in axes.get_yticklabels():
        name.set_fontweight("bold" if name.get_text() == CANDIDATE else "normal")
    axes.set_title(f"{base.split}: {extent(base)}")
    axes.set_xlabel(MEASURES[base.measure].title)


def _baseline(results: "DataFrame") -> Row:
    return results[results.variant == BASELINE].iloc[0]


def _look(row: Row) -> tuple[str, str]:
    return LOOKS.get(row.backend, OTHER)


def _handle(text: str, **look: Any) -> "Line2D":
    from matplotlib.lines import Line2D

    return Line2D([], [], label=text, **look)


def _backends(results: "DataFrame", marker: str | None = None) -> list["Line2D"]:
    looks = {row.backend: _look(row) for row in results.itertuples() if row.variant != BASELINE}
    return [
        _handle(backend, color=color, marker=marker or own, markersize=6, linestyle="")
        for backend, (color, own) in looks.items()
    ]
