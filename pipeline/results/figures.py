"""Draw the results as figures: the leading rate against size, each variant's difference to fp32, each layer's part."""

from collections.abc import Sequence
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.core.params import BASELINE, CANDIDATE
from pipeline.results.tables import MEASURES, Row
from pipeline.results.text import UNDECIDED, either, extent

if TYPE_CHECKING:  # matplotlib is imported late: it takes longer than all the rest
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas import DataFrame

FIGURES = Path("reports/figures")

# Okabe and Ito's colours, which the colour-blind tell apart, and a marker each for print in grey.
LOOKS = {
    "none": ("#555555", "D"),
    "torch": ("#D55E00", "s"),
    "quanto": ("#0072B2", "o"),
    "hqq": ("#009E73", "^"),
    "bnb": ("#CC79A7", "v"),
    "torchao": ("#E69F00", "P"),
    "gptq": ("#56B4E9", "X"),
    "mixed": ("#000000", "*"),
    "ct2": ("#882255", "p"),  # Paul Tol's wine and olive: Okabe and Ito have eight
    "ggml": ("#999933", "h"),
}
OTHER = ("#F0E442", "d")  # a backend that has no look of its own yet

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

Look = dict[str, Any]  # what matplotlib draws a line, a point or a text with
DASHED: Look = {"color": "black", "linewidth": 0.8, "linestyle": "--"}  # the line at fp32's rate
RING: Look = {"color": "none", "marker": "o", "markersize": 11, "markeredgecolor": "black"}  # around the candidate
NOTE: Look = {"textcoords": "offset points", "va": "center", "fontsize": 7.5}  # text beside a point or a bar
CELL: Look = {"horizontalalignment": "center", "verticalalignment": "center", "fontsize": 7}  # text of the heat map
FRONT: Look = {"color": "0.88", "linewidth": 4}  # the Pareto front
PALE = 0.35  # opacity of bars without a significant difference
KINDS = [f"{of} {layer}" for of in ("self", "cross") for layer in ("q", "k", "v", "out")] + ["fc1", "fc2"]
"""The rows of the heat map, as sensitivity.csv names them."""

Box = Sequence[float]  # left, bottom, right, top, in pixels
ANGLES = (0, 180, 30, -30, 150, -150, 60, -60, 120, -120, 90, -90)
"""Where a label may lie as seen from its point, in degrees; the first are preferred."""


def limit(results: "DataFrame") -> float:
    """Return the rate at which an axis ends; variants beyond it are drawn at its edge, or they would squash the others.

    It is at most twice fp32's rate or, where that is more, 5 (points of WER, words per minute) above it. It is 1 where
    all rates are zero.
    """
    base = _baseline(results).rate
    most = max(2 * base, base + 5)
    return min(most, float(results.rate_high[results.rate <= most].max())) or 1.0


def pareto(results: "DataFrame") -> "DataFrame":
    """Return the variants that none other beats in both size and rate, smallest first; of equals, the first."""
    ordered = results.sort_values(["size_mb", "rate"])
    return ordered[ordered.rate < ordered.rate.cummin().shift(fill_value=inf)]


def free_place(width: float, height: float, point: tuple[float, float], taken: Sequence[Box], frame: Box) -> Box:
    """Return the box for a label of this size: the nearest to its point that is inside the frame and free.

    Where none is free, it is the one that covers the least.
    """
    distances, degrees = np.array([(distance, angle) for distance in range(12, 250, 10) for angle in ANGLES]).T
    x, y = (at + distances * way(np.radians(degrees)) for at, way in zip(point, (np.cos, np.sin), strict=True))
    left = x - width * np.where(abs(degrees) == 90, 0.5, abs(degrees) > 90)  # its near side faces the point
    low = np.stack([left, y - height / 2], axis=1)
    high = low + np.array([width, height])
    others = np.reshape(taken, (-1, 1, 4))
    overlaps = (np.minimum(high, others[..., 2:]) - np.maximum(low, others[..., :2])).clip(min=0).prod(axis=2)
    outside = np.hstack([frame[:2] - low, high - frame[2:]]).clip(min=0).max(axis=1)
    best = (overlaps.sum(axis=0) + 1000 * outside).argmin()
    return [*low[best], *high[best]]


def wer_vs_size(results: "DataFrame") -> "Figure":
    """Return the figure of rate against size: a panel per split, a point per variant with its own 95 % interval."""
    from matplotlib.figure import Figure

    splits = results.groupby("split", sort=False)
    figure = Figure(figsize=(9, 0.8 + 4.4 * len(splits)), layout="constrained")
    figure.subplots(len(splits), 1)
    for axes, (_, panel) in zip(figure.axes, splits, strict=True):
        _scatter(axes, panel)
    figure.axes[-1].set_xlabel("weights on disk, MB")
    rates = either(MEASURES[measure].name for measure in results.measure)
    notes = {
        f"best {rates} at its size (Pareto front)": FRONT,
        "candidate": RING,
        "beyond the axis": {"color": "none", "marker": "o", "markersize": 6, "markeredgecolor": "0.4"},
    }
    _legend(figure, results, notes)
    figure.draw_without_rendering()  # only a figure laid out knows where labels would collide
    figure.set_layout_engine("none")
    for axes, (_, panel) in zip(figure.axes, splits, strict=True):
        _name_points(axes, panel)
    return figure


def _scatter(axes: "Axes", results: "DataFrame") -> None:
    base, top = _baseline(results), limit(results)
    sizes = [row.size_mb for row in results.itertuples() if row.variant != BASELINE] or [base.size_mb]
    margin = 0.12 * (max(sizes) - min(sizes)) or 0.1 * max(sizes)
    axes.set_xlim(min(sizes) - margin, max(sizes) + margin)
    low = results.rate_low.min()
    height = top - low or 1.0  # one rate for all, as where every word is wrong
    bottom = max(0.0, low - 0.05 * height) if results.rate.min() else -0.03 * height  # or it would cut a point in half
    axes.set_ylim(bottom, top + 0.08 * height)
    axes.set_title(f"{base.split}: {extent(base)}")
    axes.set_ylabel(f"{MEASURES[base.measure].title}, with its 95 % interval by {base.interval_unit}")
    axes.axhline(base.rate, zorder=1, **DASHED)
    if base.size_mb > axes.get_xlim()[1]:  # with fp32 inside, the others would crowd in a corner
        axes.annotate(f"{BASELINE},\n{base.size_mb:.0f} MB", (axes.get_xlim()[1], base.rate), (4, 0), **NOTE)
    front = pareto(results)
    axes.step(front.size_mb, front.rate, where="post", zorder=0, **FRONT)
    for row in results.itertuples():
        color, marker = _look(row)
        point, face = (row.size_mb, min(row.rate, top)), color if row.rate <= top else "white"
        if row.rate <= top:
            axes.vlines(row.size_mb, row.rate_low, row.rate_high, color=color, linewidth=1, alpha=0.4)
        axes.plot(*point, marker=marker, markersize=6, markerfacecolor=face, markeredgecolor=color)
        if row.variant == CANDIDATE:
            axes.plot(*point, **RING)


def _name_points(axes: "Axes", results: "DataFrame") -> None:
    from matplotlib.patheffects import withStroke

    top, frame = limit(results), axes.bbox.extents
    visible = results[results.size_mb.between(*axes.get_xlim())]
    points = np.column_stack([visible.size_mb, visible.rate.clip(upper=top)])
    pixels = axes.transData.transform(points)
    line = axes.transData.transform((0, _baseline(results).rate))[1]
    taken: list[Box] = [(x - 8, y - 8, x + 8, y + 8) for x, y in pixels]
    taken.append((frame[0], line - 1, frame[2], line + 1))
    for row, point, (x, y) in zip(visible.itertuples(), points, pixels, strict=True):
        text = axes.annotate(
            f"{row.variant} ({row.rate:.0f}{MEASURES[row.measure].unit})" if row.rate > top else row.variant,
            point,
            (0, 0),
            fontweight="bold" if row.variant == CANDIDATE else "normal",
            path_effects=[withStroke(linewidth=2, foreground="white")],
            arrowprops={"arrowstyle": "-", "color": _look(row)[0], "linewidth": 0.6, "shrinkA": 0, "shrinkB": 3},
            **NOTE | {"textcoords": "offset pixels"},
        )
        size = text.get_window_extent()
        taken.append(free_place(size.width, size.height, (x, y), taken, frame))
        left, low, _, high = taken[-1]
        text.set_position((left - x, (low + high) / 2 - y))


def differences(results: "DataFrame") -> "Figure":
    """Return the figure of rates: a panel per split, a bar per variant, and the interval of its difference to fp32.

    The interval is the paired one, drawn around the variant's rate: where it crosses fp32's line, no difference is
    shown, even where the two rates' own intervals are wide.
    """
    from matplotlib.figure import Figure

    splits = results.groupby("split", sort=False)
    figure = Figure(figsize=(3 + 4.2 * len(splits), 1.6 + 0.24 * results.variant.nunique()), layout="constrained")
    figure.subplots(1, len(splits), sharey=True)
    for axes, (_, panel) in zip(figure.axes, splits, strict=True):
        _bars(axes, panel)
    interval = f"95 % interval of the difference to fp32, by {either(results.interval_unit)}"
    pale = {"color": "0.5", "alpha": PALE, "marker": "s", "markersize": 8, "linestyle": ""}
    notes = {interval: {"color": "black", "linewidth": 1}, "pale: undecided": pale}
    _legend(figure, results, notes, marker="s")
    return figure


def _bars(axes: "Axes", results: "DataFrame") -> None:
    base, top = _baseline(results), limit(results)
    ends = results.rate + results.delta_high - results.delta
    top = max(top, float(ends[results.rate <= top].max()))
    for y, row in enumerate(results.itertuples()):
        beyond = row.rate > top
        axes.barh(
            y, min(row.rate, top), color=_look(row)[0], alpha=PALE if row.verdict == UNDECIDED else 1.0, height=0.7
        )
        low, high = base.rate + row.delta_low, base.rate + row.delta_high
        if not beyond and row.variant != BASELINE:
            axes.hlines(y, low, min(high, top), color="black", linewidth=1)
        at = min(top, max(high, row.rate))
        axes.annotate(f"{row.rate:.2f}{' (cut)' if beyond else ''}", (at, y), (4, 0), **NOTE)
    axes.axvline(base.rate, **DASHED)
    axes.set_xlim(0, top * 1.15)
    axes.set_ylim(len(results) - 0.4, -0.6)
    names = [f"{row.variant}, {row.size_mb:.1f} MB" for row in results.itertuples()]
    axes.set_yticks(range(len(results)), names)
    for name in axes.get_yticklabels():
        name.set_fontweight("bold" if name.get_text().startswith(f"{CANDIDATE},") else "normal")
    axes.set_title(f"{base.split}: {extent(base)}")
    axes.set_xlabel(MEASURES[base.measure].title)


def sensitivity(layers: "DataFrame") -> "Figure":
    """Return the heat map of sensitivity.csv: encoder and decoder, a cell per layer, its colour by the logarithm."""
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    layers = layers.assign(kl=layers.kl_4bit * 1000)
    inside, head = layers[layers.kind != "head"], layers[layers.kind == "head"]
    told = inside.kl[inside.kl > 0]  # a logarithm has no colour for a layer that nothing depends on
    norm = LogNorm(told.min(), max(told.max(), 1.01 * told.min())) if len(told) else LogNorm(0.1, 1)
    parts = [part for _, part in inside.groupby("part", sort=False)]
    widths = [int(part.number.max()) + 1 for part in parts]
    figure = Figure(figsize=(max(4.5, 2.4 + 0.42 * sum(widths)), 4.2), layout="constrained")
    figure.subplots(1, len(parts), sharey=True, squeeze=False, width_ratios=widths)
    for axes, part, width in zip(figure.axes, parts, widths, strict=True):
        grid = part.pivot(index="kind", columns="number", values="kl").reindex(KINDS, columns=range(width))
        image = axes.imshow(grid, norm=norm, cmap="viridis", aspect="auto")
        for (y, x), value in np.ndenumerate(grid):
            dark = value > 0 and norm(value) < 0.6
            axes.text(x, y, _short(value), color="white" if dark else "black", **CELL)
        axes.set_title(part.part.iloc[0])
        axes.set_xticks(range(width))
        axes.set_xlabel("layer")
        axes.set_yticks(range(len(KINDS)), KINDS)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    figure.colorbar(image, ax=figure.axes, label="KL divergence to expect, 0.001 nats a token", format="%g")
    title = f"Each layer alone rounded to 4 bits (the output head: {', '.join(map(_short, head.kl))})"
    figure.suptitle(title, x=0.01, horizontalalignment="left", fontsize=10)
    return figure


def _short(value: float) -> str:
    """Write a number with two digits that tell, but at most three decimals; NaN is ""."""
    if np.isnan(value):
        return ""
    decimals = min(3, max(0, 1 - int(np.floor(np.log10(value))))) if value > 0 else 0
    return f"{value:.{decimals}f}"


def _baseline(results: "DataFrame") -> Row:
    return results[results.variant == BASELINE].iloc[0]


def _look(row: Row) -> tuple[str, str]:
    return LOOKS.get(row.backend, OTHER)


def _legend(figure: "Figure", results: "DataFrame", notes: dict[str, Look], marker: str | None = None) -> None:
    from matplotlib.lines import Line2D

    looks = {row.backend: _look(row) for row in results.itertuples() if row.variant != BASELINE}
    entries: dict[str, Look] = {
        backend: {"color": color, "marker": marker or own, "markersize": 6, "linestyle": ""}
        for backend, (color, own) in looks.items()
    }
    entries |= {BASELINE: DASHED} | notes
    handles = [Line2D([], [], label=label, **look) for label, look in entries.items()]
    figure.legend(handles=handles, loc="outside upper center", ncols=4)
