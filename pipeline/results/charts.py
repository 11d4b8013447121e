"""Charts as Vega-Lite specifications, by Altair: the page draws them in a browser, `plot` writes them as SVG.

What they draw is computed in `points`. The page sets two parameters: `picked`, a variant that stands out, and `names`,
which are left out where there is no room for them. `plots` makes templates for DVC of the same marks.
"""

from collections.abc import Callable, Mapping
from math import floor, isnan, log10, sqrt
from typing import Any

import altair as alt
import pandas as pd

from pipeline.core.params import BASELINE, CANDIDATE
from pipeline.results import decision
from pipeline.results.points import SMALL, across, baseline, fronts, limit, named, pareto, points
from pipeline.results.tables import FLOATS, MEASURES, Row
from pipeline.results.text import extent

VEGA_LITE = "6.4"  # of those that vl-convert has, the one that Altair writes

INK = "currentColor"  # the page's own, in light and dark; black in a picture

LOOKS = {
    "none": ("#7a7a7a", "diamond"),
    "torch": ("#D55E00", "square"),
    "quanto": ("#0072B2", "circle"),
    "hqq": ("#009E73", "triangle-up"),
    "bnb": ("#CC79A7", "triangle-down"),
    "torchao": ("#E69F00", "cross"),
    "gptq": ("#56B4E9", "M-1,-.5L-.5,-1L0,-.5L.5,-1L1,-.5L.5,0L1,.5L.5,1L0,.5L-.5,1L-1,.5L-.5,0Z"),
    "mixed": ("#7B61C9", "M0,-1L.3,-.35L1,-.3L.45,.15L.6,.9L0,.5L-.6,.9L-.45,.15L-1,-.3L-.3,-.35Z"),
    "ct2": ("#AA4499", "M0,-1L.95,-.31L.59,.81L-.59,.81L-.95,-.31Z"),
    "ggml": ("#999933", "M0,-1L.87,-.5L.87,.5L0,1L-.87,.5L-.87,-.5Z"),
}
"""A backend's colour, which the colour-blind tell apart (Okabe and Ito's, Tol's), and a shape for print in grey."""
OTHER = ("#DDAA00", "triangle-right")  # a backend that has no look of its own yet

WIDTH, PHONE, HEIGHT = 640, 250, 300  # of a panel, in pixels: its width, that on a phone, and its height
FONT = "Liberation Sans, Arial, Helvetica, sans-serif"  # the first comes with vl-convert: the same picture everywhere
KINDS = [f"{of} {layer}" for of in ("self", "cross") for layer in ("q", "k", "v", "out")] + ["fc1", "fc2"]
"""The rows of the heat map, as sensitivity.csv names them."""

PICKED = "datum.variant === picked"
_NOTHING = pd.DataFrame([{}])  # data of a line or a word that stands alone
_BARE: dict[str, Any] = {"ticks": False, "domain": False}  # an axis of words
LOG: dict[str, Any] = {
    "scale": alt.Scale(type="log"),
    "axis": alt.Axis(values=[10.0**power for power in range(-6, 3)], format="~g"),
}
"""Scale and axis of a quantity that is read in powers of ten."""

Chart = alt.VConcatChart | alt.HConcatChart
Panel = alt.LayerChart | alt.FacetChart
Looks = Mapping[str, tuple[str, str]]  # a colour and a shape by name


def drawn(results: pd.DataFrame, layers: pd.DataFrame | None) -> dict[str, Chart]:
    """Return every chart of results.csv and, where there is one, sensitivity.csv, by name."""
    found = {"wer_vs_size": wer_vs_size(results), "wer_vs_speed": wer_vs_speed(results), "wer": differences(results)}
    if (results.bits_per_weight < FLOATS).any():
        found["ladder"] = ladder(results)
    if len(shown := decision.shortlist(results)) > 1:  # little speech shows nothing to ship
        found["answer"] = differences(results[results.variant.isin(shown)])
    return found if layers is None else found | {"sensitivity": sensitivity(layers)}


def wer_vs_size(results: pd.DataFrame) -> Chart:
    """Return the chart of rate against size, from zero, a panel for each split.

    The bar through a point is the paired interval of the difference to fp32, around fp32's rate. fp16 is a line: half
    of fp32's bytes and the same text are what one gets for nothing.
    """
    whole = baseline(results).size_mb
    right = 1.05 * max([whole / 2, *results.size_mb[results.size_mb < whole]])

    def panel(rows: pd.DataFrame) -> Panel:
        best = pareto(rows[rows.size_mb <= right])[["size_mb", "rate"]]
        best = pd.concat([best, best[-1:].assign(size_mb=right)])  # and so on to the edge
        steps = alt.Chart(best[best.rate <= limit(rows)]).mark_line(
            interpolate="step-after", strokeWidth=5, color=INK, opacity=0.2
        )
        front = steps.encode(alt.X("size_mb:Q"), alt.Y("rate:Q"), order=alt.Order("size_mb:Q"))
        return alt.layer(front, _scatter(rows, "size", "weights on disk, MB", right, whole / 2, "fp16"))

    return _stacked(results, panel)


def wer_vs_speed(results: pd.DataFrame) -> Chart:
    """Return the chart of rate against the time of single utterances, a panel for each split.

    What takes over four times as long as fp32 is left out.
    """
    base = baseline(results).latency_p50_ms
    right = 1.05 * min(4 * base, results.latency_p50_ms.max())
    title = "median time of a single utterance, ms"
    return _stacked(results, lambda rows: _scatter(rows, "latency", title, right, base, BASELINE))


def _stacked(results: pd.DataFrame, panel: Callable[[pd.DataFrame], Panel]) -> Chart:
    panels = []
    for _, rows in results.groupby("split", sort=False):
        panels.append(panel(rows).properties(width=WIDTH, height=HEIGHT, title=_title(baseline(rows))))
    return finished(alt.vconcat(*panels, spacing=28))


def _scatter(rows: pd.DataFrame, x: str, title: str, right: float, mark: float, name: str) -> Panel:
    """Return points and intervals of a split, `x` being a column of `points`, and a named upright line at `mark`."""
    base, top = baseline(rows), 1.04 * limit(rows)
    found = points(rows)
    found = named(found.assign(x=found[x])[found[x] <= right], base.rate, right, top, WIDTH, HEIGHT)
    across = alt.X("x:Q", title=title, scale=alt.Scale(domain=[0, right], nice=False))
    up = alt.Y("shown:Q", title=MEASURES[base.measure].title, scale=alt.Scale(domain=[0, top], nice=False))
    color, at, here = _color(rows), alt.X(datum=mark), alt.Chart(found)
    return alt.layer(
        _rule(4).encode(alt.Y(datum=base.rate)),
        _word(f"fp32, {base.size_mb:.0f} MB", align="right", dy=-6).encode(alt.X(datum=right), alt.Y(datum=base.rate)),
        _rule(2).encode(at),
        _word(name, baseline="bottom", dy=-2).encode(at, alt.Y(datum=top)),
        *rates(here, across, up, color, _shape(rows), _tips(base)),
        here.transform_filter(f"datum.variant === '{CANDIDATE}'")
        .mark_point(shape="circle", size=200, color=INK)
        .encode(across, up),
        *_names(found, "names", color),
    )


def rates(here: alt.Chart, across: alt.X, up: alt.Y, color: alt.Color, shape: alt.Shape, tips: list[Any]) -> list[Any]:
    """Return each variant's paired interval, from `low` to `high`, and its point: hollow where it is `beyond` the axis.

    These columns of the chart's data, and `variant`, are what `points` says.
    """
    inside, beyond = here.transform_filter("!datum.beyond"), here.transform_filter("datum.beyond")
    size = alt.when(PICKED).then(alt.value(160)).otherwise(alt.value(60))
    faint = alt.when(PICKED).then(alt.value(1)).otherwise(alt.value(0.4))
    return [
        here.mark_rule().encode(across, alt.Y("low:Q"), alt.Y2("high:Q"), color=color, opacity=faint),
        beyond.mark_point(opacity=1).encode(across, up, color, shape, size=size, tooltip=tips),
        inside.mark_point(filled=True, opacity=1).encode(across, up, color, shape, size=size, tooltip=tips),
    ]


def models(results: pd.DataFrame, looks: Looks) -> Chart:
    """Return the chart of rate against size of several studies on the same speech, both from zero.

    `results` are lines as `points.across` wants them, `looks` each model's colour and shape. A line is a model's
    Pareto front, up to its fp32.
    """
    top, right = max(limit(rows) for _, rows in results.groupby("study")), 1.05 * results.size_mb.max()
    found, base, names = across(results, top), baseline(results), []
    x = alt.X("x:Q", title="weights on disk, MB", scale=alt.Scale(domain=[0, right], nice=False))
    ends = alt.Scale(domain=[0, 1.04 * top], nice=False)
    y = alt.Y("shown:Q", title=MEASURES[base.measure].title, scale=ends)
    color, shape = alt.Color("model:N", **_scaled(looks, 0)), alt.Shape("model:N", **_scaled(looks, 1))
    front = alt.Chart(fronts(results, top)).mark_line(interpolate="step-after", strokeWidth=2, strokeOpacity=0.7)
    size = alt.when(PICKED).then(alt.value(180)).otherwise(alt.value(60))
    tips = ["variant", "model", "weights", MEASURES[base.measure].name, "against fp32", "verdict", "KL"]
    dots = [
        alt.Chart(part).mark_point(filled=not hollow, opacity=1).encode(x, y, color, shape, size=size, tooltip=tips)
        for hollow, part in found.groupby("hollow")
    ]
    for width, when in ((WIDTH, "names"), (PHONE, "!names")):
        placed = named(found, results.rate.min(), right, 1.04 * top, width, HEIGHT)
        names += _names(placed[placed.name != ""], when, color)
    front = front.encode(alt.X("size_mb:Q"), alt.Y("rate:Q"), color, order=alt.Order("size_mb:Q"))
    panel = alt.layer(front, *names, *dots).properties(width=WIDTH, height=HEIGHT, title=_title(base))
    return finished(alt.vconcat(panel))


def differences(results: pd.DataFrame) -> Chart:
    """Return the chart of rates from zero: a panel for each split, a bar for each variant.

    The line on a bar is the paired interval of its difference to fp32: where it crosses fp32's line, no difference is
    shown, even where the two rates' own intervals are wide.
    """
    panels = []
    for split, rows in results.groupby("split", sort=False):
        base, found = baseline(rows), points(rows)
        right = 1.2 * max(found.shown.max(), found.high.max())
        x = alt.X("shown:Q", title=MEASURES[base.measure].title, scale=alt.Scale(domain=[0, right], nice=False))
        axis = alt.Axis(labels=bool(split == results.split.iloc[0]), labelLimit=260, **_BARE)
        y = alt.Y("bar:N", sort=None, title=None, axis=axis)
        pale = alt.when(PICKED).then(alt.value(1)).otherwise(alt.Opacity("opacity:Q", scale=None))
        here = alt.Chart(found)
        bars = alt.layer(
            here.mark_bar(height={"band": 0.72}).encode(x, y, _color(rows), opacity=pale, tooltip=_tips(base)),
            _rule(4).encode(alt.X(datum=base.rate)),
            here.mark_rule(color=INK, strokeWidth=1.2).encode(alt.X("low:Q"), y, alt.X2("high:Q")),
            here.transform_calculate(at="max(datum.shown, datum.high)")
            .mark_text(align="left", dx=4, fontSize=SMALL, color=INK)
            .encode(alt.X("at:Q"), y, text="end:N"),
        )
        panels.append(bars.properties(width=WIDTH * 0.55, height={"step": 17}, title=_title(base)))
    return finished(alt.hconcat(*panels, spacing=16))


def ladder(results: pd.DataFrame) -> Chart:
    """Return what each bit costs, a column for each split: KL, flips and loss against bits a weight."""
    columns = []
    for _, rows in results.groupby("split", sort=False):
        base, found = baseline(rows), points(rows)
        found = found[found.bits < FLOATS]
        ends = alt.Scale(domain=[found.bits.min() - 0.5, found.bits.max() + 0.5], nice=False)
        x = alt.X("bits:Q", title="bits a quantized weight, scales included", scale=ends)
        measure = MEASURES[base.measure]
        steps = (
            alt.Y("kl:Q", title="KL, nats a token", **LOG),
            alt.Y("flips:Q", title="tokens that flip, %", scale=alt.Scale(type="sqrt")),
            alt.Y("delta:Q", title=f"{measure.name} less fp32's, {measure.steps}"),
        )
        dots = [
            dot(alt.Chart(part), x, _color(rows), _shape(rows), filled=not beyond)
            for beyond, part in found.groupby("beyond")
        ]
        tips = ["variant", "kl", "flips", *_tips(base)[1:]]
        panels = [
            alt.layer(*(dot.encode(y, tooltip=tips) for dot in dots), width=WIDTH * 0.44, height=HEIGHT * 0.55)
            for y in (steps if found.kl.notna().any() else steps[-1:])  # earlier studies have neither KL nor flips
        ]
        columns.append(alt.vconcat(*panels, title=_title(base)))
    return finished(alt.hconcat(*columns))


def dot(here: alt.Chart, x: alt.X, color: alt.Color, shape: alt.Shape, filled: bool = True) -> alt.Chart:
    """Return each variant's point of what its bits cost, to be put on an axis."""
    size = alt.when(PICKED).then(alt.value(160)).otherwise(alt.value(50))
    marked: alt.Chart = here.mark_point(filled=filled, opacity=1).encode(x, color, shape, size=size)
    return marked


def sensitivity(layers: pd.DataFrame) -> Chart:
    """Return the heat map of sensitivity.csv, encoder and decoder: a cell for each layer, coloured by the logarithm."""
    layers = layers.assign(kl=layers.kl_4bit * 1000, text=[_short(1000 * value) for value in layers.kl_4bit])
    inside, head = layers[layers.kind != "head"], layers[layers.kind == "head"]
    told = inside.kl[inside.kl > 0]  # a logarithm has no colour for a layer that nothing depends on
    low, high = (told.min(), max(told.max(), 1.01 * told.min())) if len(told) else (0.1, 1.0)
    inside = inside.assign(color=inside.kl.clip(lower=low))
    color = alt.Color("color:Q", scale=alt.Scale(type="log", domain=[low, high], scheme="viridis"), legend=None)
    ink = alt.when(f"datum.color < {sqrt(low * high)}").then(alt.value("white")).otherwise(alt.value("black"))
    tips = [alt.Tooltip("layer:N"), alt.Tooltip("kl:Q", title="KL, 0.001 nats a token", format=".3~g")]
    panels = []
    for part, cells in inside.groupby("part", sort=False):
        axis = alt.Axis(labels=bool(part == inside.part.iloc[0]), **_BARE)
        x = alt.X("number:O", title="layer", axis=alt.Axis(labelAngle=0, **_BARE))
        y = alt.Y("kind:N", sort=KINDS, title=None, axis=axis, scale=alt.Scale(domain=KINDS))
        here = alt.Chart(cells[["layer", "number", "kind", "kl", "color", "text"]])
        grid = here.mark_rect().encode(x, y, color, tooltip=tips)
        grid += here.mark_text(fontSize=SMALL).encode(x, y, text="text:N", color=ink)
        panels.append(grid.properties(width={"step": 32}, height={"step": 20}, title=str(part)))
    whole = ", ".join(map(_short, head.kl))
    title = f"KL to expect of each layer alone in 4 bits, 0.001 nats a token (the output head: {whole})"
    return finished(alt.hconcat(*panels, spacing=12, title=title))


def _short(value: float) -> str:
    """Write a number with two digits that tell, but at most three decimals; NaN is ""."""
    if isnan(value):
        return ""
    decimals = min(3, max(0, 1 - floor(log10(value)))) if value > 0 else 0
    return f"{value:.{decimals}f}"


def _title(base: Row) -> str:
    return f"{base.split}: {extent(base)}"


def _tips(base: Row) -> list[str]:
    """Return the columns of `points` that a pointer shows; the first names the variant."""
    return ["variant", MEASURES[base.measure].name, "against fp32", "verdict", "weights", "time of an utterance"]


def _rule(dash: int) -> alt.Chart:
    line: alt.Chart = alt.Chart(_NOTHING).mark_rule(strokeDash=[dash, 3], color=INK)
    return line


def _word(text: str, **how: Any) -> alt.Chart:
    word: alt.Chart = alt.Chart(_NOTHING).mark_text(text=text, fontSize=SMALL, color=INK, **how)
    return word


def _names(found: pd.DataFrame, when: str, color: alt.Color) -> list[alt.Chart]:
    """Return what `points.named` has placed, and lines from there to the points; seen where an expression is true."""
    here, seen = alt.Chart(found), alt.when(when).then(alt.value(1)).otherwise(alt.value(0))
    x, y, at = alt.X("name_x:Q"), alt.Y("name_y:Q"), (alt.X("x:Q"), alt.Y("shown:Q"))
    line = here.mark_rule(strokeWidth=0.6).encode(*at, alt.X2("near:Q"), alt.Y2("name_y:Q"), color=color, opacity=seen)
    name = here.mark_text(align="left", fontSize=SMALL, color=INK).encode(x, y, text="name:N", opacity=seen)
    return [line, name]


def _color(rows: pd.DataFrame) -> alt.Color:
    return alt.Color("backend:N", **_looks(rows, 0))


def _shape(rows: pd.DataFrame) -> alt.Shape:
    return alt.Shape("backend:N", **_looks(rows, 1))


def _looks(rows: pd.DataFrame, which: int) -> dict[str, Any]:
    """Return scale and legend of the backends' colours, or their shapes."""
    return _scaled({backend: LOOKS.get(backend, OTHER) for backend in dict.fromkeys(rows.backend)}, which)


def _scaled(looks: Looks, which: int) -> dict[str, Any]:
    scale = alt.Scale(domain=[*looks], range=[look[which] for look in looks.values()])
    return {"scale": scale, "legend": alt.Legend(title=None, orient="top", columns=10)}


def finished(chart: Any, names: dict[str, Any] | None = None, **looks: Any) -> Chart:
    """Add the parameters, and looks that all charts have; what is given replaces some of them."""
    colors = dict.fromkeys(("labelColor", "titleColor", "tickColor", "domainColor", "gridColor"), INK)
    common = {"font": FONT, "background": "white", "padding": 8, "aria": False}  # the page says it in words
    styled: Chart = (
        chart.add_params(alt.param("picked", value=""), alt.param("names", **(names or {"value": True})))
        .configure(**common | looks)
        .configure_view(stroke=None)
        .configure_axis(**colors, gridOpacity=0.1, titleFontWeight="normal")
        .configure_legend(labelColor=INK, titleColor=INK)
        .configure_title(anchor="start", color=INK, fontSize=12)
    )
    return styled
