"""What a study found: the tables in its folder, and which variants and protocols the sentences of its page name."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from pipeline.core import params
from pipeline.core.errors import UserError
from pipeline.core.params import BASELINE, CANDIDATE, Params
from pipeline.results import foretelling, tables
from pipeline.results.claims import EXCESS
from pipeline.results.tables import FLOATS, Row
from pipeline.scoring.statistics import MARGINS, SIGNIFICANT

ENVIRONMENT = "environment.json"
WAYS = ("suppress_non_speech", "max_new_tokens", "normalizer")  # what the protocols differ in


@dataclass(frozen=True)
class Study:
    """What the files of a study's folder say."""

    settings: Params
    lines: pd.DataFrame  # results.csv
    protocols: pd.DataFrame  # protocol.csv; empty where they were not measured
    engines: pd.DataFrame  # engines.csv; empty where they were not measured
    versions: dict[str, str]  # of Python and of every installed package
    unscored: pd.DataFrame  # foretold.csv; empty where it was not measured
    errors: pd.DataFrame  # errors.csv; empty for earlier studies

    @property
    def variants(self) -> list[Row]:
        """One line of each variant, for what is the same on every split."""
        return list(self.lines.drop_duplicates("variant").itertuples())

    @property
    def measures(self) -> list[tables.Measure]:
        """What leads its splits, each once."""
        return [tables.MEASURES[name] for name in dict.fromkeys(self.lines.measure)]

    def of(self, variant: str) -> list[Row]:
        """Return a variant's lines, one for each split."""
        return list(self.lines[self.lines.variant == variant].itertuples())

    @property
    def agreeing(self) -> bool:
        """Whether variants were held against fp32 token by token: earlier studies do not have it."""
        return bool(self.lines.kl.notna().all())

    @property
    def foretold(self) -> dict[str, list[foretelling.Correlation]]:
        """How KL on other speech ranks quantized variants by their loss, on each split: all, and those not too bad.

        The latter lose less than the widest margin on every split: among them one chooses. Empty where it was not
        measured.
        """
        if self.unscored.empty or self.errors.empty:
            return {}
        quantized = [row.variant for row in self.variants if row.bits < FLOATS and row.variant != CANDIDATE]
        mild = [name for name in quantized if all(row.delta < MARGINS[-1] for row in self.of(name))]
        chosen = {"all": quantized, "mild": mild}
        return {key: foretelling.correlate(self.unscored, self.errors, names) for key, names in chosen.items()}

    @property
    def tested(self) -> bool:
        """Whether margins were tested: in earlier studies they were not."""
        return bool((self.lines.test_unit != "").any())


def read(folder: Path) -> Study:
    """Read a study's folder; raise UserError where settings or a table are missing or not what they should be."""
    try:
        environment = json.loads((folder / ENVIRONMENT).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{folder} is no study: {ENVIRONMENT} is not there; 'make study NAME={folder.name}' makes one"
        ) from None
    settings, lines = params.read(folder), tables.read(folder / tables.RESULTS.name)
    optional = (folder / table.name for table in (tables.PROTOCOL, tables.ENGINES, tables.FORETOLD))
    protocols, engines, unscored = (tables.read(path) if path.exists() else pd.DataFrame() for path in optional)
    versions = {"python": environment["python"]} | environment["packages"]
    errors = (
        tables.read_errors(folder / tables.ERRORS.name) if (folder / tables.ERRORS.name).exists() else pd.DataFrame()
    )
    return Study(settings, lines, protocols, engines, versions, unscored, errors)


def current(settings: Params) -> Study:
    """Return what the last run found, of these settings; raise UserError where a table is missing or another file."""
    lines = tables.read(tables.RESULTS)
    versions = {name: lines[f"versions_{name}"].iloc[0] for name in tables.LIBRARIES if f"versions_{name}" in lines}
    none = pd.DataFrame()
    return Study(settings, lines, none, none, versions, none, tables.read_errors(tables.ERRORS))


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
