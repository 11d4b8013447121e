import dataclasses
from typing import Any

import pytest

from pipeline.core import params
from pipeline.core.variant import Variant
from pipeline.results import claims
from pipeline.results.claims import FAILS, HOLDS, OPEN
from tests.backends import test_sizes
from tests.conftest import ROOT
from tests.made import FP32, UNDECIDED, frame, line

VARIANTS = params.read(ROOT).variants


def row(given: dict[str, Any]) -> Any:
    """Return a row as results.csv gives it."""
    return next(frame(given).itertuples())


@pytest.mark.parametrize(
    ("low", "high", "verdict", "expected"),
    [
        (-0.3, -0.1, "better", HOLDS),
        (0.1, 0.3, "worse", FAILS),
        (-0.2, 0.1, UNDECIDED, OPEN),
        (-0.3, -0.1, UNDECIDED, OPEN),  # the interval is not corrected for many variants, the verdict is
    ],
)
def test_an_improvement(low: float, high: float, verdict: str, expected: str) -> None:
    assert claims.improves(row(line("a", (low + high) / 2, low, high, verdict))) == expected


@pytest.mark.parametrize(
    ("low", "high", "verdict", "expected"),
    [
        (1.0, 3.0, "worse", HOLDS),
        (2.5, 3.0, "worse", HOLDS),
        (0.1, 1.0, "worse", FAILS),
        (3.0, 9.0, "worse", FAILS),
        (-0.5, 2.0, UNDECIDED, FAILS),  # whatever it is, it is not 2.5
        (-0.5, 3.0, UNDECIDED, OPEN),
        (0.1, 3.0, UNDECIDED, OPEN),
        (-3.0, -2.0, "better", FAILS),
    ],
)
def test_a_cost_of_about_two_and_a_half_points(low: float, high: float, verdict: str, expected: str) -> None:
    assert claims.costs(row(line("a", (low + high) / 2, low, high, verdict)), points=2.5) == expected


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(-0.1, 0.7, HOLDS), (-0.9, -0.2, HOLDS), (0.8, 1.5, FAILS), (-0.1, 0.8, OPEN), (0.7, 0.9, OPEN)],
)
def test_a_cost_of_up_to_seven_tenths_of_a_point(low: float, high: float, expected: str) -> None:
    assert claims.costs_at_most(row(line("a", (low + high) / 2, low, high)), points=0.7) == expected


@pytest.mark.parametrize(
    ("size_mb", "saved", "expected"),
    [
        (412.2, 57.369, HOLDS),
        (372.4, 61.485, FAILS),
        (130.0, 57.0, f"{OPEN} on this model"),  # of 302 MB, whatever it saves
    ],
)
def test_what_is_saved_of_whisper_small(size_mb: float, saved: float, expected: str) -> None:
    result = row(line("a", 0.0, -1.0, 1.0, size_mb=size_mb, size_reduction=saved))
    assert claims.saves(result, percent=57) == expected


@pytest.mark.parametrize(
    ("intervals", "expected"),
    [
        ({8: (-0.1, 0.1), 4: (0.0, 0.4), 2: (0.2, 9.0)}, HOLDS),
        ({8: (-0.1, 0.1), 4: (0.0, 0.4)}, OPEN),
        ({8: (-0.1, 0.3), 4: (0.5, 0.9), 2: (0.2, 0.4)}, FAILS),  # 2 bits cost less than 4
        ({8: (-0.1, 0.1), 2: (-0.5, -0.2)}, FAILS),
    ],
)
def test_fewer_bits_cost_more(intervals: dict[int, tuple[float, float]], expected: str) -> None:
    by_bits = [(bits, row(line("a", (low + high) / 2, low, high))) for bits, (low, high) in intervals.items()]
    assert claims.degrades(by_bits) == expected


def test_variants_of_equal_bits_are_not_compared() -> None:
    assert claims.degrades([(8, row(FP32)), (4, row(line("a", 2, 1, 3))), (4, row(line("b", 0.5, 0.3, 0.6)))]) == HOLDS


def test_every_claim_is_about_the_variants_that_it_names() -> None:
    named = {
        (claim.text, claim.split): [name for name, variant in VARIANTS.items() if claim.applies(variant)]
        for claim in claims.CLAIMS
    }
    static = ["torch-int8-static", "torch-int8-static-tensor", "quanto-int8-static"]
    assert named == {
        ("quanto int8 is better than fp32 (3.41 against 3.48 %)", "test-clean"): ["quanto-int8"],
        ("quanto int8 is better than fp32", "test-other"): ["quanto-int8"],
        ("quanto int8 saves 57 %", None): ["quanto-int8"],
        ("static int8 costs about +2.5 points", "test-clean"): static,
        ("static int8 costs about +4.0 points", "test-other"): static,
        ("nf4 costs about +1.6 points", "test-other"): ["bnb-nf4", "bnb-nf4-dq"],
        ("nf4 and int3 save up to 71 %", None): ["hqq-int3", "bnb-nf4", "bnb-nf4-dq"],
        ("int4 costs up to +0.7 points", "test-clean"): ["quanto-int4", "hqq-int4"],
        ("int4 costs up to +2.2 points", "test-other"): ["quanto-int4", "hqq-int4"],
    }


def test_a_variant_that_leaves_layers_alone_is_none_of_the_papers() -> None:
    part = Variant("quanto", include=["model.decoder.*"])
    assert not any(claim.applies(part) for claim in claims.CLAIMS)


def test_claims_are_held_against_the_results_that_are_there() -> None:
    results = [
        FP32,
        line("torch-int8-static", 0.5, -0.2, 1.2),
        line("quanto-int8-static", 2.4, 2.0, 2.8, "worse"),
        line("hqq-int8", 0.0, -0.1, 0.1, backend="hqq"),
        line("hqq-int2", 80.0, 70.0, 90.0, "worse", backend="hqq"),
        line("candidate", 0.0, -0.1, 0.1),
        line("quanto-int8", -1.0, -2.0, -0.5, "better", split="dev-clean"),
        line("quanto-int8", -1.0, -2.0, -0.5, "better", split="test-other", measure="insertions_per_minute"),
    ]
    found = [check for check in claims.check(frame(*results), VARIANTS) if check.by == "the paper"]
    assert [(check.claim, [row.variant for row in check.rows], check.verdicts, check.of_sizes) for check in found] == [
        (
            "static int8 costs about +2.5 points on test-clean",
            ["torch-int8-static", "quanto-int8-static"],
            [FAILS, HOLDS],
            False,
        ),
        ("fewer bits cost more on test-clean (hqq)", ["hqq-int8", "hqq-int2"], [HOLDS], False),
    ]


def test_sizes_are_told_once() -> None:
    saved = {"size_mb": 130.0, "size_reduction": 55.25}
    results = [line("quanto-int8", 0.3, 0.1, 0.5, "worse", **saved, split=split) for split in claims.SPLITS]
    (found,) = [check for check in claims.check(frame(*results), VARIANTS) if check.of_sizes]
    assert (found.claim, len(found.rows), found.verdicts) == (
        "quanto int8 saves 57 %",
        1,
        ["cannot be told on this model"],
    )


@pytest.mark.parametrize(("high", "verdicts"), [(0.6, [HOLDS]), (0.8, [HOLDS, OPEN])])
def test_equal_verdicts_are_told_once(high: float, verdicts: list[str]) -> None:
    results = frame(line("quanto-int4", 0.3, 0.1, 0.5), line("hqq-int4", 0.3, 0.1, high))
    found = claims.check(results, VARIANTS)
    assert [check.verdicts for check in found if check.by == "the paper"] == [verdicts]


@pytest.mark.parametrize(
    ("verdict", "margin", "low", "nothing", "much"),
    [
        ("no worse", 0.3, -0.1, HOLDS, FAILS),
        ("no worse", 1.0, -0.1, OPEN, FAILS),
        ("better", None, -0.9, OPEN, OPEN),
        (UNDECIDED, None, -0.1, OPEN, OPEN),
        ("worse", 0.3, 0.05, FAILS, FAILS),  # it loses something, and no more than 0.3
        ("worse", None, 0.9, FAILS, OPEN),
        ("worse", None, 1.1, FAILS, HOLDS),
    ],
)
def test_nothing_and_much_are_judged_by_margins(
    verdict: str, margin: float | None, low: float, nothing: str, much: str
) -> None:
    one = row(line("a", low + 0.2, low, low + 0.4, verdict, no_worse_than=margin))
    assert (claims.costs_nothing(one), claims.costs_much(one)) == (nothing, much)


def test_public_claims_are_about_the_variants_that_they_name() -> None:
    def of(applies: str) -> set[str]:
        (claim,) = [each for each in claims.PUBLIC if each.text == applies and each.split == "test-clean"]
        extra = {
            "six": dataclasses.replace(VARIANTS["gptq-int4"], bits=6),
            "encoder": dataclasses.replace(VARIANTS["gptq-int4"], bits=8, encoder=4),
        }
        return {name for name, variant in (VARIANTS | extra).items() if claim.applies(variant)}

    eight = {"quanto-int8", "quanto-int8-whole", "hqq-int8", "ggml-q8-0"}
    assert of("8 bits cost nothing") == of("int8 is better than fp32") == eight
    assert of("6 bits are neutral") == {"six"}
    assert of("the encoder breaks below 8 bits") == {"encoder"}
    assert of("a quantized embedding costs a lot") == {"quanto-int8-whole", "ggml-q8-0"}
    assert of("4 bits often fail (said of tiny and base)") >= {"quanto-int4", "hqq-int4", "gptq-int4"}


def test_whisper_smalls_sizes_are_those_that_a_model_of_its_architecture_has() -> None:
    (cases,) = [mark for mark in test_sizes.test_whisper_small.pytestmark if mark.name == "parametrize"]  # type: ignore[attr-defined]
    measured = {name: megabytes for name, megabytes, *_ in cases.args[1]}
    assert {name: measured[name] for name in claims.SMALL_MB} == claims.SMALL_MB
