"""What a study found: the tables in its folder, and which variants and protocols the sentences of its page name."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from pipeline.core import params
from pipeline.core.errors import UserError
from pipeline.core.params import BASELINE, CANDIDATE, Params
from pipeline.results import tables
from pipeline.results.claims import EXCESS
from pipeline.results.tables import Row
from pipeline.scoring.statistics import SIGNIFICANT, WER

ENVIRONMENT = "environment.json"
MARGIN = 1.0
"""Points of WER, or words a minute: a loss that many would take. Chosen before the studies were made, not measured."""

WAYS = ("suppress_non_speech", "max_new_tokens", "normalizer")  # what the protocols differ in


@dataclass(frozen=True)
class Study:
    """What the files of a study's folder say."""

    settings: Params
    lines: pd.DataFrame  # results.csv
    protocols: pd.DataFrame  # protocol.csv; empty where they were not measured
    engines: pd.DataFrame  # engines.csv; empty where they were not measured
    versions: dict[str, str]  # of Python and of every installed package

    @property
    def variants(self) -> list[Row]:
        """One line of each variant, for what is the same on every split."""
        return list(self.lines.drop_duplicates("variant").itertuples())

    def of(self, variant: str) -> list[Row]:
        """Return a variant's lines, one for each split."""
        return list(self.lines[self.lines.variant == variant].itertuples())

    @property
    def agreeing(self) -> bool:
        """Whether variants were held against fp32 token by token: earlier studies do not have it."""
        return bool(self.lines.kl.notna().all())

    def kl(self, variant: str) -> float:
        """Return a variant's KL divergence from fp32, mean over the tokens of all splits."""
        rows = self.of(variant)
        return float(sum(row.kl * row.tokens for row in rows) / sum(row.tokens for row in rows))

    def where(self, holds: Callable[[Row], bool]) -> list[Row]:
        """Return one line of each quantized variant of which something holds on every split."""
        return [row for row in self.variants if row.variant != BASELINE and all(map(holds, self.of(row.variant)))]


def read(folder: Path) -> Study:
    """Read a study's folder; raise UserError where settings or a table are missing or not what they should be."""
    try:
        environment = json.loads((folder / ENVIRONMENT).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{folder} is no study: {ENVIRONMENT} is not there; 'make study NAME={folder.name}' makes one"
        ) from None
    settings, lines = params.read(folder), tables.read(folder / tables.RESULTS.name)
    optional = (folder / tables.PROTOCOL.name, folder / tables.ENGINES.name)
    protocols, engines = (tables.read(path) if path.exists() else pd.DataFrame() for path in optional)
    return Study(settings, lines, protocols, engines, {"python": environment["python"]} | environment["packages"])


def safe(study: Study) -> list[Row]:
    """Return the variants, but for the candidate, that surely lose less than MARGIN on every split; smallest first."""
    found = study.where(lambda row: _most(row) < MARGIN)
    return sorted((row for row in found if row.variant != CANDIDATE), key=lambda row: row.size_mb)


def _most(row: Row) -> float:
    """Return the loss that the results leave room for: the interval's end, and no less than the rule of three.

    Where no utterance differs the interval is zero alone, and yet three in as many as there are might (95 %; Hanley and
    Lippman-Hand, "If nothing goes wrong, is everything all right?", JAMA 249, 1983), each by a word or more.
    """
    return float(max(row.delta_high, 300 / row.words if row.measure == WER else 3 / row.minutes))


def sound(study: Study) -> list[Row]:
    """Return the quantized variants whose uncorrected interval reaches down to zero on every split; smallest first.

    Stricter than the verdict, which must be certain of a loss: here nothing may speak against "none".
    """
    return sorted(study.where(lambda row: bool(row.delta_low <= 0)), key=lambda row: row.size_mb)


def fastest(study: Study) -> Row | None:
    """Return the sound variant that is fastest with single utterances, unless fp32 is faster."""
    found = min([*sound(study), *study.of(BASELINE)], key=lambda row: row.latency_p50_ms)
    return None if found.variant == BASELINE else found


def passes(study: Study) -> float:
    """Return how long all variants took in batches, as a multiple of as many passes of fp32."""
    spent = sum(row.transcribe_s for row in study.variants)
    return float(spent / (len(study.variants) * study.of(BASELINE)[0].transcribe_s))


def told_apart(row: Row) -> str:
    """Return whether a variant is farther from fp32 than the next larger one, by KL divergence."""
    if row.p_kl >= SIGNIFICANT:
        return "tie"
    return "farther" if row.kl_less_larger > 0 else "nearer"


@dataclass(frozen=True)
class Moves:
    """How other protocols than the study's own move the baseline's WER on a split."""

    split: str
    others: int
    moving: int  # of the others, beyond chance
    most: Row  # the one that moves it most: of those, or of all where there are none
    changes: dict[str, str]  # what that one differs in
    reaching: list[dict[str, str]]  # the same of those that could move it as far as the paper's is off
    loops: float  # points, at most, of utterances that loop


def moves(protocols: pd.DataFrame) -> Iterator[Moves]:
    """Yield which protocols move the WER, of each split that has words and other protocols."""
    for split, rows in protocols.groupby("split", sort=False):
        own, *others = rows.itertuples()
        if others and not pd.isna(own.wer):
            moving = [one for one in others if one.wer_delta_low > 0 or one.wer_delta_high < 0]
            most = max(moving or others, key=lambda one: abs(one.wer_delta))
            reaching = [_changes(own, one) for one in others if one.wer_delta_high >= EXCESS]
            loops = float((rows.wer - rows.wer_without_loops.fillna(0)).max())
            yield Moves(split, len(others), len(moving), most, _changes(own, most), reaching, loops)


def ways(row: Row) -> dict[str, str]:
    """Return what the protocols differ in, as params.yaml writes it."""
    return {key: str(getattr(row, key)).lower() for key in WAYS}


def _changes(own: Row, other: Row) -> dict[str, str]:
    return {key: value for key, value in ways(other).items() if ways(own)[key] != value}
