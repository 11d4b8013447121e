"""The claims of arXiv 2511.08093 about quantized Whisper, held against a study's own intervals.

The paper measured Whisper-small on the whole of LibriSpeech's test sets, without intervals or tests of significance;
its extended version adds smaller models, and that fewer bits cost more. These are the figures that its text gives.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import TYPE_CHECKING

from pipeline.core.params import Variant
from pipeline.results.statistics import WER
from pipeline.results.tables import Row
from pipeline.results.text import ALIKE, change, markdown, number

if TYPE_CHECKING:
    from pandas import DataFrame

SPLITS = ("test-clean", "test-other")
"""What the paper's claims are about."""

BASELINE_OTHER = 11.88
"""The paper's WER of fp32 on test-other, in per cent."""

MODEL_CARD_OTHER = 7.63
"""What Whisper-small's model card says it is, in per cent."""

SMALL_MB = {"fp32": 966.9, "quanto-int8": 412.2, "hqq-int3": 278.3, "bnb-nf4": 285.7, "bnb-nf4-dq": 276.5}
"""Sizes of Whisper-small by arithmetic, which tests/backends/test_sizes.py finds too, in MB."""

HOLDS, FAILS, OPEN = "holds", "does not hold", "cannot be told"

RULES = """\
- A claim to be *better* holds where the verdict is "better", and does not hold where it is "worse".
- A claim of *about +x points* does not hold where the 95 % interval leaves x out, and holds where x is in it and the
  verdict is "worse".
- A claim of *at most +x points* holds where the whole interval is at or below x, and does not hold where all of it is
  above.
- *Fewer bits cost more* holds within a library where the fewest bits have their whole interval above that of the most
  bits, and does not hold where any interval lies below that of more bits.
- A claim about Whisper-small's size holds where the saving is within one point of it; other models have other shares
  of quantized weights and tell nothing.
- Everything else cannot be told; where a verdict is "no significant difference", the smallest difference that the
  corpus would have shown stands beside it."""


def improves(row: Row) -> str:
    """Judge "it is better than fp32" by the corrected verdict."""
    return {"better": HOLDS, "worse": FAILS}.get(row.verdict, OPEN)


def costs(row: Row, points: float) -> str:
    """Judge "it costs about so many points" (more than none) by the interval and the corrected verdict."""
    if not row.delta_low <= points <= row.delta_high:
        return FAILS
    return HOLDS if row.verdict == "worse" else OPEN


def costs_at_most(row: Row, points: float) -> str:
    """Judge "it costs up to so many points" by the interval."""
    if row.delta_high <= points:
        return HOLDS
    return FAILS if row.delta_low > points else OPEN


def saves(row: Row, percent: float) -> str:
    """Judge "it saves so much of Whisper-small's bytes": nothing can be told where fp32 is not of that size (1 %)."""
    full = row.size_mb / (1 - row.size_reduction / 100)
    if abs(full / SMALL_MB["fp32"] - 1) > 0.01:
        return f"{OPEN} on this model"
    return HOLDS if abs(row.size_reduction - percent) <= 1 else FAILS


def degrades(by_bits: Sequence[tuple[int, Row]]) -> str:
    """Judge "fewer bits cost more" of one library's variants with their bits, the most bits first."""
    pairs = [(more, fewer) for (bits, more), (less, fewer) in combinations(by_bits, 2) if bits > less]
    if any(fewer.delta_high < more.delta_low for more, fewer in pairs):
        return FAILS
    return HOLDS if by_bits[-1][1].delta_low > by_bits[0][1].delta_high else OPEN


@dataclass(frozen=True)
class Claim:
    """One sentence of the paper, about single variants."""

    text: str
    split: str | None
    """None: about sizes."""
    applies: Callable[[Variant], bool]
    judge: Callable[[Row], str]


def _is(variant: Variant, kind: str, bits: int, activations: str = "none") -> bool:
    """Tell whether a variant has all weights in this format; activations "none" stay in floating point."""
    return (variant.format, variant.bits, variant.activations, variant.include) == (kind, bits, activations, ["*"])


def _quanto_int8(variant: Variant) -> bool:
    # "Dynamic int8 with Quanto" must be weight-only: Quanto has no activation scales that are found at run time.
    return variant.backend == "quanto" and _is(variant, "int", 8)


def _nf4_or_int3(variant: Variant) -> bool:
    return _is(variant, "nf", 4) or _is(variant, "int", 3)


_STATIC_INT8 = partial(_is, kind="int", bits=8, activations="static")
_NF4, _INT4 = partial(_is, kind="nf", bits=4), partial(_is, kind="int", bits=4)
CLAIMS = [
    Claim("quanto int8 is better than fp32 (3.41 against 3.48 %)", "test-clean", _quanto_int8, improves),
    Claim("quanto int8 is better than fp32", "test-other", _quanto_int8, improves),
    Claim("quanto int8 saves 57 %", None, _quanto_int8, partial(saves, percent=57)),
    Claim("static int8 costs about +2.5 points", "test-clean", _STATIC_INT8, partial(costs, points=2.5)),
    Claim("static int8 costs about +4.0 points", "test-other", _STATIC_INT8, partial(costs, points=4.0)),
    Claim("nf4 costs about +1.6 points", "test-other", _NF4, partial(costs, points=1.6)),
    Claim("nf4 and int3 save up to 71 %", None, _nf4_or_int3, partial(saves, percent=71)),
    Claim("int4 costs up to +0.7 points", "test-clean", _INT4, partial(costs_at_most, points=0.7)),
    Claim("int4 costs up to +2.2 points", "test-other", _INT4, partial(costs_at_most, points=2.2)),
]


@dataclass(frozen=True)
class Check:
    """One claim, what was found here, and what that makes of it: a text and a verdict for each variant."""

    claim: str
    found: list[str]
    verdicts: list[str]


def check(results: "DataFrame", variants: Mapping[str, Variant]) -> list[Check]:
    """Hold every claim that is about one of `variants`, on one of SPLITS, against the results."""
    known = results[results.split.isin(SPLITS) & (results.measure == WER) & results.variant.isin(variants)]
    rows = list(known.itertuples())
    checks = []
    for claim in CLAIMS:
        split = claim.split or next((row.split for row in rows), None)  # sizes are the same on each
        about = [row for row in rows if row.split == split and claim.applies(variants[row.variant])]
        if about:
            found = [difference(row) if claim.split else _saving(row) for row in about]
            text = f"{claim.text} on {claim.split}" if claim.split else claim.text
            checks.append(Check(text, found, [claim.judge(row) for row in about]))
    return checks + [check for split in SPLITS for check in _by_bits(split, rows, variants)]


def _by_bits(split: str, rows: Sequence[Row], variants: Mapping[str, Variant]) -> Iterator[Check]:
    """Yield a check for each library with several numbers of bits."""
    bits = {row.variant: variants[row.variant].bits for row in rows}
    whole = [row for row in rows if row.split == split and _is(variants[row.variant], "int", bits[row.variant])]
    for backend in dict.fromkeys(row.backend for row in whole):
        own = [(bits[row.variant], row) for row in whole if row.backend == backend]
        own.sort(key=lambda pair: -pair[0])
        if own[0][0] > own[-1][0]:
            found = [difference(row) for _, row in own]
            yield Check(f"fewer bits cost more on {split} ({backend})", found, [degrades(own)])


def difference(row: Row) -> str:
    """Return a variant's difference to fp32 with its interval and, where it is not significant, what would be."""
    text = f"`{row.variant}` {change(row.delta, row.delta_low, row.delta_high)}"
    return f"{text}, would show {number(row.smallest_detectable)}" if row.verdict == ALIKE else text


def _saving(row: Row) -> str:
    text = f"`{row.variant}` {row.size_reduction:.1f} %"
    if row.variant in SMALL_MB:
        text += f" (Whisper-small by arithmetic: {100 * (1 - SMALL_MB[row.variant] / SMALL_MB['fp32']):.1f} %)"
    return text


def table(checks: Sequence[Check]) -> str:
    """Return the checks as a Markdown table, a line for each variant in a cell; equal verdicts are told once."""
    rows = []
    for one in checks:
        verdicts = one.verdicts if len(set(one.verdicts)) > 1 else one.verdicts[:1]
        rows.append([one.claim, "<br>".join(one.found), "<br>".join(verdicts)])
    return markdown(["the paper's claim", "here", "verdict"], *rows)
