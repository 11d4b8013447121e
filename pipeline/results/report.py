"""The page that people look at, reports/index.html: one file that opens from disk, with words before scripts.

Everything in it is computed from tables and scores; its words stand in templates/report.html.j2. Charts are Vega-Lite
specifications that Vega draws in the browser: its script comes from vl-convert, and nothing is asked of the network.
"""

import base64
import functools
import gzip
from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

import pandas as pd

from pipeline.core.params import BASELINE
from pipeline.results import changes, charts, decision, findings, page
from pipeline.scoring.statistics import MARGINS

SHOWN = 20  # changed utterances of a variant that the page has: those that lose most
WORDS = 12  # on either side of a stretch that is longer than both: loops and long recordings would fill the page
SHARE = 0.25  # of fp32's bytes: the size that the page begins with


def text(
    study: findings.Study,
    changed: Mapping[str, Sequence[changes.Change]],
    layers: pd.DataFrame | None,
    audio: Mapping[tuple[str, str], str],
) -> str:
    """Return the page of a study.

    `changed` are the utterances that each variant writes otherwise, `layers` is sensitivity.csv where there is one,
    and `audio` has recordings by split and id of the utterance, as data URLs.
    """
    lines = study.lines
    datasets: dict[str, Any] = {}
    specs = {name: _shared(chart.to_dict(), datasets) for name, chart in charts.drawn(lines, layers).items()}
    largest = max(1, round(SHARE * study.of(BASELINE)[0].size_mb))
    goals: tuple[decision.Goal, ...] = ("nearest", "smallest", "fastest")
    return page.render_study(
        "report.html.j2",
        study,
        answer=page.answer_of(study),
        rows={name: study.of(name) for name in dict.fromkeys(lines.variant)},
        changed={name: found[:SHOWN] for name, found in changed.items() if found},
        counts={name: len(found) for name, found in changed.items()},
        audio=audio,
        brief=brief,
        charts={"specs": specs, "datasets": datasets},
        budget=budget(lines),
        best={goal: decision.recommend(lines, goal, largest, MARGINS[0]) for goal in goals},
        largest=largest,
        margins=decision.margins(lines),
        options=page.options(study.settings),
        css=(page.TEMPLATES / "report.css").read_text(encoding="utf-8"),
        js=(page.TEMPLATES / "report.js").read_text(encoding="utf-8"),
        vega=vega(),
    )


def _shared(spec: dict[str, Any], datasets: dict[str, Any]) -> dict[str, Any]:
    """Move a chart's data among those of all: charts of the same data hold it once."""
    datasets |= spec.pop("datasets")
    return spec


def budget(lines: pd.DataFrame) -> list[dict[str, Any]]:
    """Return what a reader's own budget is looked up in, as `decision.recommend` does: a row for each variant."""
    least = decision.margins(lines)
    return [
        {
            "variant": row.variant,
            "size": row.size_mb,
            "margin": finite(least[row.variant]),
            "kl": finite(decision.kl(lines, row.variant)),
            "time": finite(decision.time(lines, row)),
        }
        for row in decision.choices(lines)
    ]


def brief(text: str, words: int = WORDS) -> str:
    """Return a text without its middle, where it has more than so many words on either side."""
    said = text.split()
    return text if len(said) <= 2 * words else " ".join([*said[:words], "…", *said[-words:]])


def finite(value: float) -> float | None:
    """Return a number that JSON knows, or None."""
    return value if isfinite(value) else None


@functools.cache
def vega() -> str:
    """Return the script that draws charts, Vega-Embed with all that it needs: gzipped, in base64, half as much."""
    import vl_convert

    script = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=charts.VEGA_LITE)
    return base64.b64encode(gzip.compress(script.encode(), mtime=0)).decode()
