"""The page that people look at, reports/index.html: one file that opens from disk, with words before scripts.

Everything in it is computed from tables and scores; its words stand in templates/report.html.j2.
"""

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

import pandas as pd

from pipeline.core.params import BASELINE
from pipeline.results import changes, charts, decision, document, findings, page
from pipeline.results.tables import MEASURES, Row
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
        heads=heads(study.of(BASELINE)),
        budget=budget(lines),
        best={goal: decision.recommend(lines, goal, largest, MARGINS[0]) for goal in goals},
        largest=largest,
        margins=decision.margins(lines),
        options=page.options(study.settings),
        own_js=document.source("report.js"),
        **document.parts(charts.drawn(lines, layers)),
    )


def heads(baseline: Sequence[Row]) -> list[str]:
    """Return the heads of the table of all variants, `baseline` being fp32's line of each split."""
    of_split = [(own.split, (MEASURES[own.measure].head, "less fp32's", "verdict")) for own in baseline]
    rates = [f"{split} {head}" for split, each in of_split for head in each]
    return ["variant", "MB", "saved", *rates, "KL", "flips %", "other texts", "p50 ms", "RTFx", "peak MB"]


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
