"""Templates of `dvc plots`: the marks of `charts` over results.csv as it is, in the colour of the revision.

DVC puts rows, and the columns and labels that dvc.yaml or its command line names, in the place of anchors such as
<DVC_METRIC_X>. What `points` computes for the figures, a template computes itself.
"""

import json
from typing import Any

import altair as alt

from pipeline.core.params import BASELINE
from pipeline.results import charts
from pipeline.results.points import SMALL

SCHEMA = "https://vega.github.io/schema/vega-lite/v5.json"
"""The Vega-Lite of the page that DVC writes."""

X, Y = "<DVC_METRIC_X>", "<DVC_METRIC_Y>"
_ROWS = alt.Chart()  # what each layer draws: the rows of one split
_REVISION = alt.Color("rev:N", title=None)
_ORDER = alt.Order("place:Q", sort="descending")  # the first lies on top: of `diff main`, the workspace


def templates() -> dict[str, str]:
    """Return each template as the text of its file, by name."""
    return {name: _text(chart) for name, chart in (("rate", rate()), ("cost", cost()))}


def rate() -> alt.FacetChart:
    """Return a rate against any column, from zero: a panel for each split, with the paired interval around fp32's rate.

    The rate is a column that has `_low` and `_high` beside it; where it has `_delta_low` and `_delta_high`, these are
    the interval. A dashed line is fp32's rate.
    """
    across = alt.X("x:Q", title="<DVC_METRIC_X_LABEL>", scale=alt.Scale(zero=True))
    up = alt.Y("shown:Q", title="<DVC_METRIC_Y_LABEL>", scale=alt.Scale(zero=True))
    alike: list[Any] = ["split", "rev"]  # rows that `points` gets at once
    bounds = [f"toNumber(datum['{Y}_delta_{end}'])" for end in ("low", "high")]
    tips = _tips(f"{Y}_delta", f"{Y}_delta_low", f"{Y}_delta_high", "verdict")
    panels = _panels(
        _ROWS.mark_rule(strokeDash=[4, 3]).encode(alt.Y("mean(base):Q"), _REVISION),
        *(marks.encode(_ORDER) for marks in charts.rates(_ROWS, across, up, _REVISION, _shape(), tips)),
        *_moved(across, up, "shown"),
    )
    return (
        panels.transform_calculate(own=f"datum.variant === '{BASELINE}' ? datum.y : null")
        .transform_joinaggregate(base="max(own)", groupby=alike)
        .transform_calculate(
            most="max(2 * datum.base, datum.base + 5)",
            end=f"datum.y > datum.most ? null : toNumber(datum['{Y}_high'])",
        )
        .transform_joinaggregate(ends="max(end)", groupby=alike)
        .transform_calculate(
            top="min(datum.most, datum.ends) || 1",
            shown="min(datum.y, datum.top)",
            beyond="datum.y > datum.top",
            told=f"!datum.beyond && datum.variant !== '{BASELINE}' && isValid({bounds[0]})",
            low=f"datum.told ? datum.base + max({bounds[0]}, -datum.base) : null",
            high=f"datum.told ? min(datum.base + {bounds[1]}, datum.top) : null",
        )
    )


def cost() -> alt.FacetChart:
    """Return what has no zero, as KL, on a logarithmic axis against any column: a panel for each split."""
    across = alt.X("x:Q", title="<DVC_METRIC_X_LABEL>", scale=alt.Scale(zero=False))
    up = alt.Y("y:Q", title="<DVC_METRIC_Y_LABEL>", **charts.LOG)
    dots = charts.dot(_ROWS, across, _REVISION, _shape()).encode(up, _ORDER, tooltip=_tips())
    return _panels(dots, *_moved(across, up, "y")).transform_filter("datum.y > 0")


def _moved(across: alt.X, up: alt.Y, y: str) -> list[Any]:
    """Return a line from a variant's point in one revision to that in another, and its name in the middle.

    Who asks for names gets those of all variants; else the ones that have moved, come or gone are named.
    """
    line = _ROWS.mark_line(color=charts.INK, opacity=0.4, strokeWidth=1).encode(across, up, _ORDER, detail="variant:N")
    names = _ROWS.mark_text(align="left", dx=8, fontSize=SMALL, color=charts.INK).encode(
        alt.X("mean(x):Q"),
        alt.Y(f"mean({y}):Q"),
        text="variant:N",
        detail="moved:N",
        opacity=alt.when("names || datum.moved").then(alt.value(1)).otherwise(alt.value(0)),  # they keep their room
    )
    return [line, names]


def _shape() -> alt.Shape:
    """Return the shapes of all backends: a template does not know which of them are in its rows."""
    looks = {backend: shape for backend, (_, shape) in charts.LOOKS.items()}
    scale = alt.Scale(domain=[*looks], range=[*looks.values()])
    return alt.Shape("backend:N", scale=scale, legend=alt.Legend(title=None))


def _tips(*columns: str) -> list[Any]:
    shown = ("variant", X, Y, *columns)
    return [alt.Tooltip("rev:N"), *(alt.Tooltip(field=name, type="nominal") for name in shown)]


def _panels(*layers: Any) -> alt.FacetChart:
    """Return a panel for each split, of the rows that have numbers `x` and `y`: DVC gives all values as texts.

    Their `place` is by revision; what is not the same in all revisions has `moved`.
    """
    panel = alt.layer(*layers).properties(width=charts.WIDTH, height=charts.HEIGHT)
    head = alt.Header(labelAnchor="start", labelFontWeight="bold", labelFontSize=12, labelColor=charts.INK)
    facet = alt.Facet("split:N", title=None, sort=None, header=head)
    panels = panel.facet(facet, columns=1, data=alt.NamedData("results"), title="<DVC_METRIC_TITLE>")
    numbers = {"x": f"toNumber(datum['{X}'])", "y": f"toNumber(datum['{Y}'])"}
    of = {"revs": "count()", "x_low": "min(x)", "x_high": "max(x)", "y_low": "min(y)", "y_high": "max(y)"}
    prepared: alt.FacetChart = (
        panels.resolve_scale(y="independent")
        .transform_calculate(**numbers)
        .transform_filter("isValid(datum.x) && isValid(datum.y)")
        .transform_window(place="row_number()")
        .transform_joinaggregate(all_revs="distinct(rev)", groupby=["split"])
        .transform_joinaggregate(**of, groupby=["split", "variant"])
        .transform_calculate(
            moved="datum.revs < datum.all_revs || datum.x_low < datum.x_high || datum.y_low < datum.y_high"
        )
    )
    return prepared


def _text(chart: alt.FacetChart) -> str:
    names = {"value": False, "bind": alt.binding_checkbox(name="all names ")}
    # An editor in the dark shows it on a background of its own.
    spec = charts.finished(chart, names, background="transparent", aria=True).to_dict()
    spec |= {"$schema": SCHEMA, "data": {"values": "<DVC_METRIC_DATA>"}}
    color = json.dumps(_REVISION.to_dict())  # DVC has a colour for each revision, the same in all that it draws
    return json.dumps(json.loads(json.dumps(spec).replace(color, '"<DVC_METRIC_COLOR>"')), indent=1) + "\n"
