"""What a study found: read the tables in its folder, and say in sentences what stands in them."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from pipeline.core import params
from pipeline.core.errors import UserError
from pipeline.core.params import BASELINE, CANDIDATE, Params
from pipeline.results import tables
from pipeline.results.claims import BASELINE_OTHER, MODEL_CARD_OTHER
from pipeline.results.statistics import WER
from pipeline.results.tables import MEASURES, Row, by_split
from pipeline.results.text import ALIKE, interval, listed, number

ENVIRONMENT = "environment.json"

MARGIN = 1.0
"""Points of WER, or words a minute: a loss that many would take. Chosen before the studies were made, not measured."""

WAYS = ("suppress_non_speech", "max_new_tokens", "normalizer")
"""What the protocols differ in."""


@dataclass(frozen=True)
class Study:
    """What the files of a study's folder say."""

    settings: Params
    lines: pd.DataFrame
    """results.csv."""
    protocols: pd.DataFrame
    """protocol.csv; empty where they were not measured."""
    engines: pd.DataFrame
    """engines.csv; empty where they were not measured."""
    versions: dict[str, str]
    """Of Python and of every installed package."""

    @property
    def variants(self) -> list[Row]:
        """One line of each variant, for what is the same on every split."""
        return list(self.lines.drop_duplicates("variant").itertuples())

    @property
    def baseline(self) -> Row:
        """The same of fp32."""
        return self.of(BASELINE)[0]

    def of(self, variant: str) -> list[Row]:
        """Return a variant's lines, one for each split."""
        return list(self.lines[self.lines.variant == variant].itertuples())

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
    protocols, engines = folder / tables.PROTOCOL.name, folder / tables.ENGINES.name
    return Study(
        settings=params.read(folder),
        lines=tables.read(folder / tables.RESULTS.name),
        protocols=tables.read(protocols) if protocols.exists() else pd.DataFrame(),
        engines=tables.read(engines) if engines.exists() else pd.DataFrame(),
        versions={"python": environment["python"]} | environment["packages"],
    )


def findings(study: Study) -> list[str]:
    """Return what the results say in a few sentences: each split, what costs little for certain, what may, loops."""
    splits = [_split(rows) for rows in by_split(study.lines).values()]
    return [*splits, _safe(study), _smallest(study), _fastest(study), _loops(study.lines)]


def _split(rows: Sequence[Row]) -> str:
    (base,) = [row for row in rows if row.variant == BASELINE]
    measure = MEASURES[base.measure]
    bounds = interval(base.rate_low, base.rate_high)
    parts = [f"{base.split}: fp32's {measure.name} is {number(base.rate)}{measure.unit} {bounds}."]
    for verdict in ("worse", "better"):
        found = [f"`{row.variant}` ({number(row.delta, '+')})" for row in rows if row.verdict == verdict]
        parts.append(f"Significantly {verdict}: {', '.join(found) or 'none'}.")
    alike = [row for row in rows if row.verdict == ALIKE]
    if alike:
        shown = [row.smallest_detectable for row in alike]
        least, most = number(min(shown)), number(max(shown))
        parts.append(
            f"Not distinguishable from fp32: {listed(row.variant for row in alike)}; the smallest difference that "
            f"this speech would have shown is {least}{f' to {most}' if least != most else ''} {measure.steps}"
            f"{', by variant' if least != most else ''}."
        )
    return " ".join(parts)


def _smallest(study: Study) -> str:
    sound = _sound(study)
    if not sound:
        return "Every quantized variant has an interval wholly above zero on some split."
    found = min(sound, key=lambda row: row.size_mb)
    ends = ", ".join(f"{number(row.delta_high, '+')} on {row.split}" for row in study.of(found.variant))
    return (
        f"The smallest checkpoint whose interval leaves room for no loss on every split is `{found.variant}`, "
        f"{found.size_mb:.1f} MB, which saves {found.size_reduction:.1f} %; but the intervals end at {ends}."
    )


def _safe(study: Study) -> str:
    safe = [row for row in study.where(lambda row: _most(row) < MARGIN) if row.variant != CANDIDATE]
    unit = MEASURES[study.baseline.measure].steps
    if not safe:
        return f"Of no variant does this speech show that it costs less than {MARGIN} {unit} on every split."
    ordered = sorted(safe, key=lambda row: row.size_mb)
    return (
        f"Shown to cost less than {MARGIN} {unit} on this speech, by intervals that end below that on every split "
        "(uncorrected, and no less than three words wide), smallest first: "
        f"{', '.join(f'`{row.variant}` ({row.size_mb:.1f} MB)' for row in ordered)}."
    )


def _most(row: Row) -> float:
    """Return the loss that the results leave room for: the interval's end, and no less than the rule of three.

    Where no utterance differs the interval is zero alone, and yet three in as many as there are might (95 %; Hanley and
    Lippman-Hand, "If nothing goes wrong, is everything all right?", JAMA 249, 1983), each by a word or more.
    """
    three = 300 / row.words if row.measure == WER else 3 / row.minutes
    most: float = max(row.delta_high, three)
    return most


def _sound(study: Study) -> list[Row]:
    """Return the quantized variants whose interval, uncorrected, reaches down to zero on every split.

    Stricter than the verdict, which must be certain of a loss: here nothing may speak against "none".
    """
    return study.where(lambda row: bool(row.delta_low <= 0))


def _loops(lines: pd.DataFrame) -> str:
    looping = lines[lines.looping > 0].itertuples()
    found = [f"`{row.variant}` in {row.looping:,} of {row.utterances:,} on {row.split}" for row in looping]
    return f"Utterances that loop: {', '.join(found) or 'none, with any variant'}."


def _fastest(study: Study) -> str:
    base = study.baseline
    found = min([*_sound(study), base], key=lambda row: row.latency_p50_ms)
    if found.variant == BASELINE:
        return f"No such variant answers a single utterance faster than fp32's median of {base.latency_p50_ms:.0f} ms."
    ratio = found.latency_p50_ms / base.latency_p50_ms
    return (
        f"The fastest such variant with single utterances is `{found.variant}`: its median is "
        f"{found.latency_p50_ms:.0f} ms, {ratio:.2f} of fp32's {base.latency_p50_ms:.0f} ms."
    )


def grid(study: Study) -> str:
    """Return what transcribing with every variant takes, as a multiple of as many passes of fp32."""
    spent = sum(row.transcribe_s for row in study.variants)
    count = len(study.variants)
    return (
        f"The grid, all {count} variants over all of the speech, took {spent:,.0f} s: "
        f"{spent / (count * study.baseline.transcribe_s):.2f} times what {count} passes of fp32 take."
    )


def protocols(found: pd.DataFrame) -> list[str]:
    """Return which protocols move the baseline's WER, and whether that could be what moved the paper's."""
    sentences = []
    for split, rows in by_split(found).items():
        own, *others = rows
        if others and not pd.isna(own.wer):
            sentences.append(_moves(own, others))
            sentences += [_paper(own, others)] * (split == "test-other")
    return sentences


def _moves(own: Row, others: Sequence[Row]) -> str:
    moving = [one for one in others if one.wer_delta_low > 0 or one.wer_delta_high < 0]
    most = max(moving or others, key=lambda one: abs(one.wer_delta))
    text = f"`{_changed(own, most)}` moves it most, by {number(most.wer_delta, '+')} points"
    if not moving:
        return f"{own.split}: no other protocol moves the WER beyond chance (all intervals hold 0); {text}."
    return (
        f"{own.split}: {len(moving)} of {len(others)} other protocols move the WER beyond chance; {text} "
        f"{interval(most.wer_delta_low, most.wer_delta_high, '+')}."
    )


def _paper(own: Row, others: Sequence[Row]) -> str:
    excess = BASELINE_OTHER - MODEL_CARD_OTHER
    enough = [_changed(own, one) for one in others if one.wer_delta_high >= excess]
    loops = max(one.wer - (0 if pd.isna(one.wer_without_loops) else one.wer_without_loops) for one in (own, *others))
    return (
        f"The paper's fp32 baseline on test-other, {BASELINE_OTHER} %, is {number(excess)} points above the model "
        f"card's {MODEL_CARD_OTHER} %. With this model and speech, "
        + (f"so much could come from {listed(enough)}" if enough else "no protocol's interval reaches so far")
        + f", and utterances that loop make {number(loops)} points at most."
    )


def ways(row: Row) -> dict[str, str]:
    """Return what the protocols differ in, as params.yaml writes it."""
    return {key: str(getattr(row, key)).lower() for key in WAYS}


def _changed(own: Row, other: Row) -> str:
    return ", ".join(f"{key} {value}" for key, value in ways(other).items() if ways(own)[key] != value)
