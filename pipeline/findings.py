"""What a study found: read the tables in its folder, and say in sentences what stands in them."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline import params, table
from pipeline.claims import BASELINE_OTHER, MODEL_CARD_OTHER
from pipeline.errors import UserError
from pipeline.params import BASELINE, CANDIDATE, Params
from pipeline.statistics import WER
from pipeline.table import MEASURES, Result, by_split, number

ENVIRONMENT = "environment.json"

PROTOCOL_BY = "dvc repro score_protocols"
ENGINES_BY = "python -m benchmarks.engines --out reports/engines.csv"
"""The commands that write protocol.csv and engines.csv."""

MARGIN = 1.0
"""Points of WER, or words a minute: a loss that many would take. Chosen before the studies were made, not measured."""

LIBRARIES = ("python", "torch", "optimum-quanto", "hqq", "bitsandbytes")
"""Whose versions stand in results.csv."""


@dataclass(frozen=True)
class Line(Result):
    """What a study tells of one variant on one split: what people look at first, and what it costs."""

    size_reduction_fp16: float
    """What is saved of a float16 checkpoint's bytes, in per cent; negative where it would be smaller."""
    bits_per_weight: float
    latency_p50_ms: float
    latency_p95_ms: float
    latency_utterances: int
    latency_threads: int
    peak_rss_mb: float
    peak_gpu_mb: float | None
    """None on a CPU."""
    batch_size: int
    transcribe_s: float
    device: str
    threads: int
    machine: str
    jobs: int = field(default=1, kw_only=True)
    """Stages that shared the machine."""


@dataclass(frozen=True)
class Protocol:
    """fp32 on one split, decoded and scored in one way; the first of each split is the study's own."""

    split: str
    suppress_non_speech: str
    max_new_tokens: str
    normalizer: str
    substitutions: int
    deletions: int
    insertions: int
    looping: int
    wer: float | None
    """In per cent; None where nothing was said, and so is what follows from it."""
    wer_without_loops: float | None
    insertions_per_minute: float
    wer_delta: float | None
    """To the study's own protocol, in points; None for that itself, and so is its interval."""
    wer_delta_low: float | None
    wer_delta_high: float | None
    interval_unit: str

    @property
    def settings(self) -> dict[str, str]:
        """What the protocols differ in, as params.yaml writes it."""
        return {key: getattr(self, key).lower() for key in ("suppress_non_speech", "max_new_tokens", "normalizer")}


@dataclass(frozen=True)
class Engine:
    """How fast one engine transcribes with the baseline, beside ours in the same run."""

    engine: str
    rtfx: float
    time_ratio: float
    """Its time as a multiple of ours."""
    texts_differ: int
    utterances: int
    audio_s: float
    batch_size: int
    threads: int
    rounds: int
    machine: str
    model: str | None = None
    """None where the file does not say."""


@dataclass(frozen=True)
class Study:
    """What the files of a study's folder say."""

    settings: Params
    lines: list[Line]
    protocols: list[Protocol]
    """Empty where they were not measured."""
    engines: list[Engine]
    """Empty where they were not measured."""
    versions: dict[str, str]
    """Of Python and of every installed package."""

    @property
    def variants(self) -> list[Line]:
        """One line of each variant, for what is the same on every split."""
        return [self.of(name)[0] for name in dict.fromkeys(line.variant for line in self.lines)]

    @property
    def baseline(self) -> Line:
        """The same of fp32."""
        return self.of(BASELINE)[0]

    def of(self, variant: str) -> list[Line]:
        """Return a variant's lines, one for each split."""
        return [line for line in self.lines if line.variant == variant]


def read(folder: Path) -> Study:
    """Read a study's folder; raise UserError where settings or a table are missing or not what they should be."""
    try:
        environment = json.loads((folder / ENVIRONMENT).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{folder} is no study: {ENVIRONMENT} is not there; 'make study NAME={folder.name}' makes one"
        ) from None
    return Study(
        settings=params.read(folder / params.FILE),
        lines=read_lines(folder / table.RESULTS.name),
        protocols=read_protocols(folder / "protocol.csv"),
        engines=read_engines(folder / "engines.csv"),
        versions={"python": environment["python"]} | environment["packages"],
    )


def read_lines(path: Path) -> list[Line]:
    """Read results.csv, one Line per variant and split; raise UserError where it is missing or another file."""
    return table.read_results(path, Line)


def read_protocols(path: Path) -> list[Protocol]:
    """Read protocol.csv where it is there; raise UserError where it is another file."""
    return table.read_csv(path, Protocol, PROTOCOL_BY) if path.exists() else []


def read_engines(path: Path) -> list[Engine]:
    """Read engines.csv where it is there; raise UserError where it is another file."""
    return table.read_csv(path, Engine, ENGINES_BY) if path.exists() else []


def findings(study: Study) -> list[str]:
    """Return what the results say in a few sentences: each split, what costs little for certain, what may, loops."""
    splits = [_split(split, lines) for split, lines in by_split(study.lines).items()]
    return [*splits, _safe(study), _smallest(study), _fastest(study), _loops(study.lines)]


def _unit(line: Result) -> str:
    """Return what a difference to fp32 is counted in."""
    return "points" if line.measure == WER else "words a minute"


def _split(split: str, lines: Sequence[Result]) -> str:
    (base,) = [line for line in lines if line.variant == BASELINE]
    others = [line for line in lines if line is not base]
    measure = MEASURES[base.measure]
    bounds = f"[{number(base.rate_low)}, {number(base.rate_high)}]"
    parts = [f"{split}: fp32's {measure.name} is {number(base.rate)}{measure.unit} {bounds}."]
    for verdict in ("worse", "better"):
        found = [f"`{line.variant}` ({number(line.delta, '+')})" for line in others if line.verdict == verdict]
        parts.append(f"Significantly {verdict}: {', '.join(found) or 'none'}.")
    alike = [line for line in others if line.verdict == "no significant difference"]
    shown = sorted(line.smallest_detectable for line in alike if line.smallest_detectable is not None)
    if shown:
        least, most = number(shown[0]), number(shown[-1])
        parts.append(
            f"Not distinguishable from fp32: {_listed(line.variant for line in alike)}; the smallest difference that "
            f"this speech would have shown is {least}{f' to {most}' if least != most else ''} {_unit(base)}"
            f"{', by variant' if least != most else ''}."
        )
    return " ".join(parts)


def _smallest(study: Study) -> str:
    sound = _sound(study)
    if not sound:
        return "Every quantized variant has an interval wholly above zero on some split."
    found = min(sound, key=lambda line: line.size_mb)
    ends = ", ".join(f"{number(line.delta_high, '+')} on {line.split}" for line in study.of(found.variant))
    return (
        f"The smallest checkpoint whose interval leaves room for no loss on every split is `{found.variant}`, "
        f"{found.size_mb:.1f} MB, which saves {found.size_reduction:.1f} %; but the intervals end at {ends}."
    )


def _safe(study: Study) -> str:
    safe = [
        line
        for line in study.variants
        if line.variant not in (BASELINE, CANDIDATE) and all(_most(each) < MARGIN for each in study.of(line.variant))
    ]
    listed = ", ".join(
        f"`{line.variant}` ({line.size_mb:.1f} MB)" for line in sorted(safe, key=lambda line: line.size_mb)
    )
    unit = _unit(study.baseline)
    if not safe:
        return f"Of no variant does this speech show that it costs less than {MARGIN} {unit} on every split."
    return (
        f"Shown to cost less than {MARGIN} {unit} on this speech, by intervals that end below that on every split "
        f"(uncorrected, and no less than three words wide), smallest first: {listed}."
    )


def _most(line: Result) -> float:
    """Return the loss that the results leave room for: the interval's end, and no less than the rule of three.

    Where no utterance differs the interval is zero alone, and yet three in as many as there are might (95 %; Hanley and
    Lippman-Hand, "If nothing goes wrong, is everything all right?", JAMA 249, 1983), each by a word or more.
    """
    three = 300 / line.words if line.measure == WER else 3 / line.minutes
    return max(line.delta_high, three)


def _sound(study: Study) -> list[Line]:
    """Return the quantized variants whose interval, uncorrected, reaches down to zero on every split.

    Stricter than the verdict, which must be certain of a loss: here nothing may speak against "none".
    """
    return [
        line
        for line in study.variants
        if line.variant != BASELINE and all(each.delta_low <= 0 for each in study.of(line.variant))
    ]


def _loops(lines: Sequence[Result]) -> str:
    found = [
        f"`{line.variant}` in {line.looping:,} of {line.utterances:,} on {line.split}" for line in lines if line.looping
    ]
    return f"Utterances that loop: {', '.join(found) or 'none, with any variant'}."


def _fastest(study: Study) -> str:
    base = study.baseline
    found = min([*_sound(study), base], key=lambda line: line.latency_p50_ms)
    if found == base:
        return f"No such variant answers a single utterance faster than fp32's median of {base.latency_p50_ms:.0f} ms."
    ratio = found.latency_p50_ms / base.latency_p50_ms
    return (
        f"The fastest such variant with single utterances is `{found.variant}`: its median is "
        f"{found.latency_p50_ms:.0f} ms, {ratio:.2f} of fp32's {base.latency_p50_ms:.0f} ms."
    )


def grid(study: Study) -> str:
    """Return what transcribing with every variant takes, as a multiple of as many passes of fp32."""
    spent = sum(line.transcribe_s for line in study.variants)
    count = len(study.variants)
    return (
        f"The grid, all {count} variants over all of the speech, took {spent:,.0f} s: "
        f"{spent / (count * study.baseline.transcribe_s):.2f} times what {count} passes of fp32 take."
    )


def protocols(found: Sequence[Protocol]) -> list[str]:
    """Return which protocols move the baseline's WER, and whether that could be what moved the paper's."""
    sentences = []
    for split in dict.fromkeys(protocol.split for protocol in found):
        own, *others = [protocol for protocol in found if protocol.split == split]
        if others and own.wer is not None:
            sentences.append(_moves(own, others))
            sentences += [_paper(own, others)] * (split == "test-other")
    return sentences


def _moves(own: Protocol, others: Sequence[Protocol]) -> str:
    moving = [one for one in others if _low(one) > 0 or _high(one) < 0]
    most = max(moving or others, key=lambda one: abs(one.wer_delta or 0))
    text = f"`{_changed(own, most)}` moves it most, by {number(most.wer_delta or 0, '+')} points"
    if not moving:
        return f"{own.split}: no other protocol moves the WER beyond chance (all intervals hold 0); {text}."
    return (
        f"{own.split}: {len(moving)} of {len(others)} other protocols move the WER beyond chance; {text} "
        f"[{number(_low(most), '+')}, {number(_high(most), '+')}]."
    )


def _paper(own: Protocol, others: Sequence[Protocol]) -> str:
    excess = BASELINE_OTHER - MODEL_CARD_OTHER
    enough = [f"`{_changed(own, one)}`" for one in others if _high(one) >= excess]
    loops = max((one.wer or 0) - (one.wer_without_loops or 0) for one in (own, *others))
    return (
        f"The paper's fp32 baseline on test-other, {BASELINE_OTHER} %, is {number(excess)} points above the model "
        f"card's {MODEL_CARD_OTHER} %. With this model and speech, "
        + (f"so much could come from {', '.join(enough)}" if enough else "no protocol's interval reaches so far")
        + f", and utterances that loop make {number(loops)} points at most."
    )


def _low(one: Protocol) -> float:
    return one.wer_delta_low or 0.0


def _high(one: Protocol) -> float:
    return one.wer_delta_high or 0.0


def _changed(own: Protocol, other: Protocol) -> str:
    return ", ".join(f"{key} {value}" for key, value in other.settings.items() if own.settings[key] != value)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
