from math import nan
from typing import Any

import pytest

from pipeline.results import decision
from pipeline.results.tables import Row
from tests.made import FP32, frame, line

OTHER = {"split": "test-other"}


def both(variant: str, clean: float, other: float, **changes: Any) -> list[dict[str, Any]]:
    """Return the lines of a variant with these margins on two splits."""
    return [
        line(variant, 0.1, 0.0, 0.2, no_worse_than=margin, **changes) | split
        for margin, split in ((clean, {}), (other, OTHER))
    ]


BASE = [FP32, FP32 | OTHER]
LINES = [
    *BASE,
    *both("tight", 0.3, 0.3, size_mb=100.0, backend="hqq", latency_p50_ms=700.0),
    *both("middle", 0.3, 0.5, size_mb=120.0, backend="bnb"),
    *both("loose", 0.5, 1.0, size_mb=50.0, backend="gptq", latency_p50_ms=900.0),
    *both("open", 0.3, nan, size_mb=10.0, backend="torch", latency_p50_ms=10.0),
    *both("candidate", 0.3, 0.3, size_mb=1.0, latency_p50_ms=1.0),
]


def names(found: dict[float, list[Row]]) -> dict[float, list[str]]:
    return {margin: [row.variant for row in rows] for margin, rows in found.items()}


def test_a_variant_stands_at_the_margin_that_holds_on_every_split() -> None:
    assert names(decision.safe(frame(*LINES))) == {0.3: ["tight"], 0.5: ["middle"], 1.0: ["loose"]}


def test_a_wider_margin_needs_a_smaller_file() -> None:
    found = decision.smallest(frame(*LINES))
    assert {margin: row.variant for margin, row in found.items()} == {0.3: "tight", 1.0: "loose"}


def test_the_fastest_is_safe_and_faster_than_fp32() -> None:
    fastest = decision.fastest(frame(*LINES))
    assert fastest is not None
    assert fastest.variant == "tight"
    assert decision.fastest(frame(*BASE, *both("loose", 0.3, 0.3, latency_p50_ms=721.0))) is None


def test_times_of_another_machine_do_not_compare() -> None:
    elsewhere = both("a", 0.3, 0.3, latency_p50_ms=100.0, machine="Another")
    shared = both("b", 0.3, 0.3, latency_p50_ms=100.0, jobs=4)
    assert decision.fastest(frame(*BASE, *elsewhere, *shared)) is None


def test_what_is_worse_by_less_than_a_margin_is_safe_at_it() -> None:
    worse = [row | {"verdict": "worse"} for row in both("a", 1.0, 1.0)]
    assert names(decision.safe(frame(*BASE, *worse))) == {1.0: ["a"]}


def test_where_nothing_is_safe_fp32_is_all_there_is() -> None:
    lines = frame(*BASE, *both("open", nan, nan))
    assert (decision.safe(lines), decision.smallest(lines), decision.fastest(lines)) == ({}, {}, None)
    assert decision.shortlist(lines) == ["fp32"]


def test_the_shortlist_has_each_library_once_and_six_lines() -> None:
    assert decision.shortlist(frame(*LINES)) == ["fp32", "tight", "loose", "middle"]
    others = [line for i in range(9) for line in both(f"v{i}", 1.0, 1.0, size_mb=200.0 + i, backend=f"b{i}")]
    assert decision.shortlist(frame(*LINES, *others)) == ["fp32", "tight", "loose", "middle", "v0", "v1"]


@pytest.mark.parametrize("size", [99.0, 100.0])
def test_of_equal_size_the_tighter_margin_is_enough(size: float) -> None:
    lines = [*BASE, *both("a", 0.3, 0.3, size_mb=100.0), *both("b", 0.5, 0.5, size_mb=size)]
    assert list(decision.smallest(frame(*lines))) == ([0.3, 0.5] if size < 100 else [0.3])
