"""The page over all studies, studies/index.html: a bigger model quantized, or a smaller one unquantized?

Everything on it is computed from the studies' files; its words stand in templates/overview.html.j2.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import nan
from pathlib import Path

import pandas as pd

from pipeline.core.errors import UserError
from pipeline.core.params import BASELINE, CANDIDATE
from pipeline.results import charts, document, findings, page, tables
from pipeline.results.points import HALF
from pipeline.results.tables import FLOATS, Row

HEARD = "utterances.txt"  # a line of split and id for each utterance: those of the results, then what calibrated
PROTOCOL = ("language", "task", "max_new_tokens", "suppress_non_speech")  # settings of decoding that can change texts
LOOKS = [look for backend, look in charts.LOOKS.items() if backend != "none"]  # of models, the smallest first


@dataclass(frozen=True)
class Panel:
    """What several studies measured on the same utterances, decoded and scored alike: only that compares."""

    name: str  # of its chart
    corpus: str
    lines: pd.DataFrame  # of results.csv, with columns study, model and reckoned

    @property
    def models(self) -> dict[str, Row]:
        """The first study's line of fp32 by model, the smallest first."""
        own = self.lines[self.lines.variant == BASELINE].drop_duplicates("model")
        return {row.model: row for row in own.sort_values("size_mb").itertuples()}

    @property
    def studies(self) -> list[str]:
        """Their names."""
        return [*self.lines.study.unique()]


@dataclass(frozen=True)
class Duel:
    """A model's quantized variants that are no larger than a smaller model in float16, against that one unquantized."""

    own: Row  # the smaller model's fp32
    fitting: int  # variants
    better: int  # of these, with a lower rate
    apart: int  # of these, with a 95 % interval that ends below the smaller model's

    @property
    def room(self) -> float:
        """The size of the smaller model in float16, MB."""
        return float(self.own.size_mb / 2)


def text(folders: Sequence[Path]) -> str:
    """Return the page over the studies in these folders; raise UserError where a file is missing or another one."""
    studies = {folder.name: findings.read(folder) for folder in folders}
    found = panels(studies, {folder.name: heard(folder) for folder in folders})
    sizes = {study.settings.model: study.of(BASELINE)[0].size_mb for study in studies.values()}
    looks = {model: LOOKS[n % len(LOOKS)] for n, model in enumerate(sorted(sizes, key=lambda model: sizes[model]))}
    drawn = {one.name: charts.models(halved(one), {model: looks[model] for model in one.models}) for one in found}
    return page.render(
        "overview.html.j2",
        studies=studies,
        panels=found,
        duels=duels(found),
        leaning=leaning,
        looked={folder.name for folder in folders if (folder / tables.INDEX.name).exists()},
        **document.parts(drawn),
    )


def heard(folder: Path) -> list[str]:
    """Return the lines of a study's HEARD; raise UserError where it is missing."""
    try:
        return (folder / HEARD).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise UserError(f"{folder / HEARD} is not there; 'make study NAME={folder.name}' makes it") from None


def panels(studies: Mapping[str, findings.Study], heard: Mapping[str, Sequence[str]]) -> list[Panel]:
    """Return what compares; studies and what they heard come by name.

    What has most models comes first, then the corpus with most utterances in a split.
    """
    found: dict[tuple[object, ...], list[pd.DataFrame]] = {}
    for name, study in studies.items():
        settings = study.settings
        alike = (settings.corpus, settings.scoring.normalizer, *(getattr(settings.decoding, key) for key in PROTOCOL))
        for split, lines in study.lines.groupby("split", sort=False):
            of_split = [line for line in heard[name] if line.startswith(f"{split} ")]
            key = (*alike, split, *of_split[: lines.utterances.iloc[0]])  # a split may calibrate, too
            own = lines.assign(study=name, model=settings.model, reckoned=False)
            found.setdefault(key, []).append(own)
    whole = [(str(key[0]), pd.concat(parts, ignore_index=True)) for key, parts in found.items()]
    most = {name: max(lines.utterances.max() for corpus, lines in whole if corpus == name) for name, _ in whole}
    whole.sort(key=lambda one: (-one[1].model.nunique(), -most[one[0]]))
    return [Panel(f"{lines.split.iloc[0]}-{n}", corpus, lines) for n, (corpus, lines) in enumerate(whole, start=1)]


def halved(panel: Panel) -> pd.DataFrame:
    """Return a panel's lines, and float16 of models for which no study measured it: fp32's texts, half of its bytes."""
    measured = {*panel.lines.model[panel.lines.variant == HALF]}
    added = panel.lines[(panel.lines.variant == BASELINE) & ~panel.lines.model.isin(measured)].drop_duplicates("model")
    told = {"delta": nan, "verdict": "not measured: fp32's texts", "reckoned": True}
    added = added.assign(variant=HALF, size_mb=added.size_mb / 2, **told)
    return pd.concat([panel.lines, added], ignore_index=True)


def duels(panels: Sequence[Panel]) -> dict[tuple[str, str], list[Duel]]:
    """Return, by the names of a smaller and the next bigger model, how they compare on each speech that both heard.

    Left out is speech on which no variant of the bigger model is as small.
    """
    found: dict[tuple[str, str], list[Duel]] = {}
    for panel in panels:
        for (small, own), (big, _) in pairwise(panel.models.items()):
            lines = panel.lines[(panel.lines.model == big) & (panel.lines.variant != CANDIDATE)]
            fitting = lines[(lines.bits_per_weight < FLOATS) & (lines.size_mb <= own.size_mb / 2)]
            better, apart = fitting.rate < own.rate, fitting.rate_high < own.rate_low
            duel = Duel(own, len(fitting), int(better.sum()), int(apart.sum()))
            found.setdefault((small, big), []).extend([duel] if duel.fitting else [])
    return found


def leaning(duels: Sequence[Duel]) -> str:
    """Return which model to prefer, where most variants say the same on each speech."""
    shares = [duel.better / duel.fitting for duel in duels]
    if not shares:
        return "Not known"
    if min(shares) > 0.5:
        return "The bigger model, quantized"
    return "The smaller model, unquantized" if max(shares) < 0.5 else "It depends"
