from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from pipeline.core import params
from pipeline.core.errors import UserError
from pipeline.results import findings, page, tables
from pipeline.results.findings import Study
from tests import made
from tests.conftest import ROOT
from tests.made import CLEAN, FP32, LINES, OWN, Row, line, protocol

Told = Callable[..., list[str]]


@pytest.fixture
def told(tmp_path: Path) -> Told:
    """Return a function that gives the sentences under a head of the page of a study with these lines."""

    def bullets(lines: list[Row], protocols: Sequence[Row] = (), head: str = "Findings") -> list[str]:
        folder = made.write(tmp_path / str(len(list(tmp_path.iterdir()))), lines)
        if protocols:
            (folder / "protocol.csv").write_text(tables.to_csv(protocols))
        body = made.sections(page.text(folder, "base"))[head]
        return [line.removeprefix("- ") for line in body.splitlines() if line.startswith("- ")]

    return bullets


def study(lines: list[Row]) -> Study:
    return Study(
        params.read(ROOT), made.frame(*lines), pd.DataFrame(), pd.DataFrame(), {}, pd.DataFrame(), pd.DataFrame()
    )


def names(rows: list[Any]) -> list[str]:
    return [row.variant for row in rows]


def test_each_split_then_the_smallest_then_loops_then_the_fastest(told: Told) -> None:
    assert told(LINES) == [
        "test-clean: fp32's WER is 3.50 % [3.00, 4.10]. Surely worse: none. Surely better: `quanto-int8` "
        "(-0.07). Undecided: `hqq-int3` (would show 0.40).",
        "test-other: fp32's WER is 8.00 % [7.00, 9.00]. Surely worse: `hqq-int3` (+2.00). Surely better: "
        "none. Undecided: `quanto-int8` (would show 0.50).",
        "Utterances that loop: `hqq-int3` in 3 of 120 on test-other.",
    ]


def test_findings_follow_the_results(told: Told) -> None:
    slow = [FP32, line("hqq-int3", 1.0, 0.5, 1.5, "worse", latency_p50_ms=900.0)]
    assert told(slow) == [
        "test-clean: fp32's WER is 3.50 % [3.00, 4.10]. Surely worse: `hqq-int3` (+1.00). Surely better: "
        "none. Undecided: none.",
        "Utterances that loop: none, with any variant.",
    ]


def test_what_is_safe_stands_by_margin_and_the_fastest_of_it_is_named(told: Told) -> None:
    """A variant may be fast because it says too little: one that is not shown to be safe is not asked."""
    safe = [
        line("a", 0.1, -0.2, 0.2, "no worse", no_worse_than=0.3, size_mb=90.0),
        line("b", 0.1, -0.2, 0.2, "no worse", no_worse_than=1.0, size_mb=80.0, latency_p50_ms=400.0),
        line("c", 0.1, -0.2, 0.2, "no worse", no_worse_than=1.0, size_mb=85.0),
    ]
    found = told([FP32, *safe, line("d", 60.0, 5.0, 115.0, latency_p50_ms=100.0)])
    assert found[1:4] == [
        "No worse than 0.3 points on every split, smallest first: `a` (90.0 MB).",
        "No worse than 1.0 points on every split, smallest first: `b` (80.0 MB), `c` (85.0 MB).",
        "The fastest of these with single utterances is `b`: its median is 400 ms, 0.50 of fp32's 800 ms.",
    ]


def test_verdicts_tell_their_margin_and_what_would_decide(told: Told) -> None:
    small = [line(name, 0.1, -0.2, 0.2, "no worse", no_worse_than=margin) for name, margin in (("a", 0.3), ("b", 0.5))]
    open_ = [line("c", 9.0, -2.0, 20.0, units_to_decide=1234.0, test_unit="speaker"), line("d", 1.0, -2.0, 4.0)]
    assert told([FP32, *small, *open_])[0].endswith(
        " No worse than 0.3 points: `a`. No worse than 0.5 points: `b`. "
        "Undecided: `c` (1,234 speakers would do), `d` (would show 0.40)."
    )


def test_where_nothing_is_said_words_a_minute_are_counted(told: Told) -> None:
    silent: dict[str, Any] = {
        "split": "silence",
        "measure": "insertions_per_minute",
        "words": 0,
        "wer_without_loops": None,
    }
    base = FP32 | silent | {"rate": 0.5, "rate_low": 0.1, "rate_high": 2.5}
    assert told([base, line("a", 0.1, -0.2, 0.4, **silent)])[0] == (
        "silence: fp32's insertion rate is 0.50/min [0.10, 2.50]. Surely worse: none. Surely better: none. "
        "Undecided: `a` (would show 0.40)."
    )


def test_the_grid_is_counted_in_passes_of_fp32() -> None:
    """500 + 600 + 400 s on both splits at once; a third variant of 1,500 s makes it 3,000 s in place of 2,000."""
    assert findings.passes(study(LINES)) == 1.0
    assert findings.passes(study([*CLEAN, line("a", 0, 0, 0, transcribe_s=1500.0)])) == 1.5


def test_neighbours_are_told_apart_by_the_corrected_p_value() -> None:
    (row, *_) = study([line("a", 0, 0, 0, kl_less_larger=0.1, p_kl=0.04), *CLEAN]).of("a")
    assert findings.told_apart(row) == "farther"
    assert findings.told_apart(row._replace(kl_less_larger=-0.1)) == "nearer"
    assert findings.told_apart(row._replace(p_kl=0.05)) == "tie"


PROTOCOLS = [
    OWN,
    protocol(0.4, -0.1, 0.9, max_new_tokens="224"),
    protocol(-0.2, -0.3, -0.1, suppress_non_speech="False", max_new_tokens="224"),
    protocol(3.0, 1.5, 4.5, normalizer="basic", looping=2, wer_without_loops=9.9),
]


def test_protocols_that_move_the_wer() -> None:
    (found,) = findings.moves(made.protocols(*PROTOCOLS))
    assert (found.split, found.others, found.moving, found.most.wer_delta) == ("test-other", 3, 2, 3.0)
    assert found.changes == {"normalizer": "basic"}
    assert found.reaching == [{"normalizer": "basic"}]
    assert found.loops == pytest.approx(1.1)
    (found,) = findings.moves(made.protocols(*PROTOCOLS[:3]))
    assert (found.moving, found.most.wer_delta, found.reaching, found.loops) == (1, -0.2, [], 0.0)
    assert found.changes == {"suppress_non_speech": "false", "max_new_tokens": "224"}
    (found,) = findings.moves(made.protocols(*PROTOCOLS[:2]))
    assert (found.moving, found.most.wer_delta, found.changes) == (0, 0.4, {"max_new_tokens": "224"})


def test_sentences_about_protocols(told: Told) -> None:
    assert told(LINES, PROTOCOLS, "The protocol") == [
        "test-other: 2 of 3 other protocols move the WER beyond chance; `normalizer basic` moves it most, by +3.00 "
        "points [+1.50, +4.50].",
        "The paper's fp32 baseline on test-other, 11.88 %, is 4.25 points above the model card's 7.63 %. With this "
        "model and speech, so much could come from `normalizer basic`, and utterances that loop make 1.10 points at "
        "most.",
    ]
    assert told(LINES, PROTOCOLS[:2], "The protocol") == [
        "test-other: no other protocol moves the WER beyond chance (all intervals hold 0); `max_new_tokens 224` moves "
        "it most, by +0.40 points.",
        "The paper's fp32 baseline on test-other, 11.88 %, is 4.25 points above the model card's 7.63 %. With this "
        "model and speech, no protocol's interval reaches so far, and utterances that loop make 0.00 points at most.",
    ]
    clean = [one | {"split": "test-clean"} for one in PROTOCOLS]
    assert [sentence[:11] for sentence in told(LINES, clean, "The protocol")] == ["test-clean:"]


def test_protocols_without_words_or_others_say_nothing(told: Told) -> None:
    silent = OWN | {"wer": None, "wer_without_loops": None}
    assert told(LINES, [silent, silent | {"max_new_tokens": "224"}], "The protocol") == []
    assert told(LINES, [OWN], "The protocol") == []


def test_reads_what_a_folder_holds(tmp_path: Path) -> None:
    folder = made.write(tmp_path / "base")
    study = findings.read(folder)
    pd.testing.assert_frame_equal(study.lines, made.frame(*LINES))
    assert study.protocols.empty
    assert study.engines.empty
    assert study.versions == {"python": "3.11.7"} | made.PACKAGES
    rows = [OWN, protocol(0.4, -0.1, 0.9)]
    (folder / "protocol.csv").write_text(tables.to_csv(rows))
    (folder / "engines.csv").write_text(made.ENGINES)
    study = findings.read(folder)
    pd.testing.assert_frame_equal(study.protocols, made.protocols(*rows))
    assert findings.ways(next(study.protocols.itertuples())) == {
        "suppress_non_speech": "true",
        "max_new_tokens": "444",
        "normalizer": "english",
    }
    assert [(engine.engine, engine.time_ratio, engine.model) for engine in study.engines.itertuples()] == [
        ("whisper-ptq fp32", 1.0, ""),
        ("ctranslate2 int8", 0.4545, ""),
    ]


def test_another_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        findings.read(tmp_path / "base")
    assert str(error.value) == (
        f"{tmp_path}/base is no study: environment.json is not there; 'make study NAME=base' makes one"
    )


def test_a_table_of_something_else_is_refused(tmp_path: Path) -> None:
    folder = made.write(tmp_path / "base")
    (folder / "engines.csv").write_text("engine,rtfx\nours,4.1\n")
    with pytest.raises(UserError) as error:
        findings.read(folder)
    assert str(error.value) == (
        f"{folder}/engines.csv is not what 'python -m benchmarks.engines --out reports/engines.csv' writes "
        "('time_ratio'); run it again"
    )
