"""Claims about quantized Whisper, of arXiv 2511.08093 and others, held against a study's own intervals and verdicts.

The paper measured Whisper-small on the whole of LibriSpeech's test sets, without intervals or tests of significance;
its extended version (SPEAKABLE workshop, LREC 2026) adds base and tiny, where "more pronounced degradation at lower
bit-widths" is found. These are the figures that its text gives. What others say has its source beside it; none of them
gives intervals either.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations

import pandas as pd

from pipeline.core.variant import Variant
from pipeline.results.tables import Row
from pipeline.scoring.statistics import MARGINS, WER

SPLITS = ("test-clean", "test-other")  # what the claims are about
BASELINE_OTHER = 11.88  # the paper's WER of fp32 on test-other, in per cent
MODEL_CARD_OTHER = 7.63  # the same by Whisper-small's model card
EXCESS = BASELINE_OTHER - MODEL_CARD_OTHER

SMALL_MB = {"fp32": 966.9, "quanto-int8": 412.2, "hqq-int3": 278.3, "bnb-nf4": 285.7, "bnb-nf4-dq": 276.5}
"""Sizes of Whisper-small by arithmetic, which tests/backends/test_sizes.py finds too, in MB."""
SMALL_SAVES = {name: 100 * (1 - megabytes / SMALL_MB["fp32"]) for name, megabytes in SMALL_MB.items()}  # per cent

HOLDS, FAILS, OPEN = "holds", "does not hold", "cannot be told"


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


def costs_nothing(row: Row) -> str:
    """Judge "it costs nothing" by the verdict: nothing is what is shown to be below the least margin."""
    if row.verdict == "worse":
        return FAILS
    return HOLDS if row.no_worse_than <= MARGINS[0] else OPEN


def costs_much(row: Row) -> str:
    """Judge "it costs a lot" by the verdict: a lot is more than the largest margin."""
    if row.no_worse_than <= MARGINS[-1]:
        return FAILS
    return HOLDS if row.verdict == "worse" and row.delta_low > MARGINS[-1] else OPEN


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
    """One sentence, about single variants."""

    text: str
    split: str | None  # None: about sizes
    applies: Callable[[Variant], bool]
    judge: Callable[[Row], str]
    by: str = "the paper"


_LIBRARIES = ("torch", "quanto", "hqq", "bnb")  # the paper's


def _is(variant: Variant, kind: str, bits: int, activations: str = "none") -> bool:
    """Tell whether a variant has all weights in this format; activations "none" stay in floating point."""
    parts = (variant.encoder, variant.decoder, variant.embedding, variant.conv)
    whole = variant.include == ["*"] and not variant.layers and parts == (None, None, None, None)
    return (
        variant.backend in _LIBRARIES
        and whole
        and (variant.format, variant.bits, variant.activations) == (kind, bits, activations)
    )


def _quanto_int8(variant: Variant) -> bool:
    # "Dynamic int8 with Quanto" must be weight-only: Quanto has no activation scales that are found at run time.
    return variant.backend == "quanto" and _is(variant, "int", 8)


_STATIC_INT8 = partial(_is, kind="int", bits=8, activations="static")
_NF4, _INT4, _INT3 = (partial(_is, kind=kind, bits=bits) for kind, bits in (("nf", 4), ("int", 4), ("int", 3)))
CLAIMS = [
    Claim("quanto int8 is better than fp32 (3.41 against 3.48 %)", "test-clean", _quanto_int8, improves),
    Claim("quanto int8 is better than fp32", "test-other", _quanto_int8, improves),
    Claim("quanto int8 saves 57 %", None, _quanto_int8, partial(saves, percent=57)),
    Claim("static int8 costs about +2.5 points", "test-clean", _STATIC_INT8, partial(costs, points=2.5)),
    Claim("static int8 costs about +4.0 points", "test-other", _STATIC_INT8, partial(costs, points=4.0)),
    Claim("nf4 costs about +1.6 points", "test-other", _NF4, partial(costs, points=1.6)),
    Claim("nf4 and int3 save up to 71 %", None, lambda one: _NF4(one) or _INT3(one), partial(saves, percent=71)),
    Claim("int4 costs up to +0.7 points", "test-clean", _INT4, partial(costs_at_most, points=0.7)),
    Claim("int4 costs up to +2.2 points", "test-other", _INT4, partial(costs_at_most, points=2.2)),
]


def _all_of(bits: int, variant: Variant) -> bool:
    """Tell whether all Linear layers have so many bits and activations are floats, or whisper.cpp's blocks of bytes."""
    integers = variant.backend not in ("mixed", "ct2") and variant.format == "int" and variant.bits == bits
    parts = {variant.encoder, variant.decoder} <= {None, bits} and not variant.layers and variant.include == ["*"]
    return integers and parts and (variant.activations == "none" or variant.backend == "ggml")


def _small_encoder(variant: Variant) -> bool:
    """Tell whether the encoder alone has less than 8 bits, by integers."""
    decoder = variant.decoder or variant.bits
    return variant.format == "int" and variant.encoder is not None and variant.encoder < 8 <= decoder


def _small_embedding(variant: Variant) -> bool:
    """Tell whether the token embedding, and the head with it, are quantized and all the rest has 8 bits."""
    return _all_of(8, variant) and (variant.embedding is not None or variant.backend == "ggml")


_TRANSCRIBE_CPP = "[transcribe.cpp](https://github.com/handy-computer/transcribe.cpp)"
_OPENASR = "[openasr](https://github.com/QuintinShaw/openasr/pull/240)"
_WHISPER_CPP = "[whisper.cpp](https://github.com/ggml-org/whisper.cpp/pull/540)"
PUBLIC = [
    Claim(text, split, applies, judge, by)
    for text, applies, judge, by in (
        ("8 bits cost nothing", partial(_all_of, 8), costs_nothing, _TRANSCRIBE_CPP),
        ("int8 is better than fp32", partial(_all_of, 8), improves, "summaries of the paper"),
        ("6 bits are neutral", partial(_all_of, 6), costs_nothing, _TRANSCRIBE_CPP),
        ("the encoder breaks below 8 bits", _small_encoder, costs_much, _OPENASR),
        ("a quantized embedding costs a lot", _small_embedding, costs_much, "folklore: most tools leave it out"),
        ("4 bits often fail (said of tiny and base)", partial(_all_of, 4), costs_much, _WHISPER_CPP),
    )
    for split in SPLITS
]
"""What others say, of any size; each is held against the model of the study."""


@dataclass(frozen=True)
class Check:
    """One claim, the variants that it is about, and a verdict on each; a single one where all are the same."""

    claim: str
    rows: list[Row]
    verdicts: list[str]
    of_sizes: bool = False
    by: str = "the paper"


def counted(check: Check) -> str:
    """Return a check's verdicts in a few words: how many of the variants get each, where they differ."""
    of = Counter(check.verdicts)
    return ", ".join(f"{verdict} ({of[verdict]} of {of.total()})" if len(of) > 1 else verdict for verdict in of)


def check(results: pd.DataFrame, variants: Mapping[str, Variant]) -> list[Check]:
    """Hold every claim that is about one of `variants`, on one of SPLITS, against the results."""
    known = results[results.split.isin(SPLITS) & (results.measure == WER) & results.variant.isin(variants)]
    rows = list(known.itertuples())
    checks = []
    for claim in CLAIMS + PUBLIC:
        split = claim.split or next((row.split for row in rows), None)  # sizes are the same on each
        about = [row for row in rows if row.split == split and claim.applies(variants[row.variant])]
        if about:
            verdicts = [claim.judge(row) for row in about]
            text = f"{claim.text} on {claim.split}" if claim.split else claim.text
            checks.append(
                Check(text, about, verdicts if len({*verdicts}) > 1 else verdicts[:1], not claim.split, claim.by)
            )
    return checks + [check for split in SPLITS for check in _by_bits(split, rows, variants)]


def _by_bits(split: str, rows: Sequence[Row], variants: Mapping[str, Variant]) -> Iterator[Check]:
    """Yield a check for each library with several numbers of bits."""
    bits = {row.variant: variants[row.variant].bits for row in rows}
    whole = [row for row in rows if row.split == split and _is(variants[row.variant], "int", bits[row.variant])]
    for backend in dict.fromkeys(row.backend for row in whole):
        own = sorted((row for row in whole if row.backend == backend), key=lambda row: -bits[row.variant])
        if bits[own[0].variant] > bits[own[-1].variant]:
            verdict = degrades([(bits[row.variant], row) for row in own])
            yield Check(f"fewer bits cost more on {split} ({backend})", own, [verdict])
