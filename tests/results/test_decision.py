import csv
import random
from math import inf, nan
from pathlib import Path
from typing import Any

import pytest

from pipeline.results import decision, tables
from pipeline.results.tables import Row
from tests.conftest import results_csv
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


def brute(rows: list[dict[str, str]], goal: str, max_mb: float, max_loss: float) -> str | None:
    """Return what a reader of results.csv would choose, line by line."""
    best: tuple[tuple[float, ...], str] | None = None
    fp32 = next(row for row in rows if row["variant"] == "fp32")
    for name in dict.fromkeys(row["variant"] for row in rows):
        own = [row for row in rows if row["variant"] == name]
        shown = [float(row["no_worse_than"] or inf) for row in own]
        margin, size = 0.0 if name == "fp32" else max(shown), float(own[0]["size_mb"])
        known = all(row["kl"] for row in own)
        tokens = sum(float(row["tokens"]) for row in own)
        far = sum(float(row["kl"]) * float(row["tokens"]) for row in own) / tokens if known else inf
        if margin == inf and (not known or any(row["verdict"] == "worse" for row in own)):
            continue
        timed = all(own[0][key] == fp32[key] for key in ("machine", "device", "threads", "jobs"))
        if name == "candidate" or size > max_mb or margin > max_loss or (goal == "fastest" and not timed):
            continue
        time = float(own[0]["latency_p50_ms"]) / float(fp32["latency_p50_ms"])
        keys = {
            "nearest": (margin, far, size),
            "smallest": (size,),
            "fastest": (1.0 if 0.9 < time < 1 / 0.9 else time, size),
        }
        if best is None or keys[goal] < best[0]:
            best = keys[goal], name
    return best and best[1]


def test_what_is_recommended_is_what_a_brute_force_reading_finds(tmp_path: Path) -> None:
    draw = random.Random(0)
    facts: dict[str, dict[str, Any]] = {
        f"v{n}": {
            "size_mb": round(draw.uniform(20, 300), 1),
            "latency_p50_ms": float(draw.randint(300, 900)),
            "machine": draw.choice(["A processor", "A processor", "Another"]),
        }
        for n in range(30)
    }
    lines = [
        line(name, 0.1, 0.0, 0.2, verdict=draw.choice(["worse", "undecided"]), **facts.get(name, {}))
        | {"split": split, "no_worse_than": draw.choice([0.3, 0.5, 1.0, 1.0, None])}
        | {"kl": None if name == "v3" else round(draw.uniform(0, 0.1), 3), "tokens": draw.randint(100, 200)}
        for name in ("fp32", *facts, "candidate")
        for split in ("test-clean", "test-other")
    ]
    (tmp_path / "results.csv").write_text(results_csv(*lines))
    read = tables.read(tmp_path / "results.csv")
    with (tmp_path / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    goals: tuple[decision.Goal, ...] = ("nearest", "smallest", "fastest")
    for _ in range(1000):
        goal, max_mb = draw.choice(goals), draw.uniform(10, 320)
        max_loss = draw.choice([0.1, 0.3, 0.4, 0.5, 1.0, inf])
        found = decision.recommend(read, goal, max_mb, max_loss)
        assert (found and found.variant) == brute(rows, goal, max_mb, max_loss), (goal, max_mb, max_loss)
