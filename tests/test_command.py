"""The command `whisper-ptq`: what it says, and how it ends."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from pipeline import export
from pipeline.command import Target, app
from tests import made
from tests.conftest import ROOT, Project
from tests.made import FP32, line

SAFE = [
    line("near", 0.0, -0.1, 0.1, "no worse", no_worse_than=0.3, size_mb=80.0, backend="ct2", latency_p50_ms=790.0),
    line("small", 0.1, -0.2, 0.4, "no worse", no_worse_than=0.5, size_mb=50.0, backend="hqq", latency_p50_ms=900.0),
    line("open", 1.0, 0.0, 2.0, size_mb=20.0, backend="hqq", latency_p50_ms=400.0),
]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a project that keeps one study, `kept`."""
    (tmp_path / "studies").mkdir()
    lines = [row | {"kl": 0.01 * n, "tokens": 100} for n, row in enumerate([FP32, *SAFE])]
    made.write(tmp_path / "studies/kept", lines)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def ask(*words: str) -> Result:
    """Return what the command answers."""
    return CliRunner().invoke(app, words)


@pytest.mark.parametrize(
    ("options", "answer"),
    [
        (["--max-loss", "0.3"], "near, 80.0 MB (test-clean: no worse than 0.3; KL 0.0100 nats a token)"),
        (["--max-loss", "0.5"], "small, 50.0 MB (test-clean: no worse than 0.5; KL 0.0200 nats a token)"),
        (["--max-mb", "60"], "small, 50.0 MB (test-clean: no worse than 0.5; KL 0.0200 nats a token)"),
        (["--max-mb", "30"], "open, 20.0 MB (test-clean: undecided; KL 0.0300 nats a token)"),
        (["--max-loss", "0.5", "--fastest"], "near, 80.0 MB (test-clean: no worse than 0.3; KL 0.0100 nats a token)"),
        (["--max-loss", "0.3", "--device", "cuda"], "fp32, 966.9 MB (test-clean: baseline; KL 0.0000 nats a token)"),
        ([], "fp32, 966.9 MB (test-clean: baseline; KL 0.0000 nats a token)"),
    ],
)
@pytest.mark.usefixtures("project")
def test_recommend_says_what_speaks_for_it(options: list[str], answer: str) -> None:
    said = ask("recommend", "--study", "kept", *options)
    assert (said.exit_code, said.output) == (0, f"{answer}\n")


@pytest.mark.usefixtures("project")
def test_where_nothing_fits_the_nearest_is_named() -> None:
    said = ask("recommend", "--study", "kept", "--max-mb", "60", "--max-loss", "0.3")
    assert said.exit_code == 1
    assert said.output == (
        "recommend: nothing fits 60 MB and a loss below 0.3; other choices: "
        "near, 80.0 MB (test-clean: no worse than 0.3; KL 0.0100 nats a token), or "
        "small, 50.0 MB (test-clean: no worse than 0.5; KL 0.0200 nats a token)\n"
    )
    said = ask("recommend", "--study", "kept", "--max-mb", "1")
    assert said.output.startswith("recommend: nothing fits 1 MB; other choices: open, 20.0 MB")
    said = ask("recommend", "--study", "kept", "--device", "cuda", "--fastest")
    assert said.output == (
        "recommend: times were measured on cpu, and say nothing of cuda: leave out --fastest or --device\n"
    )


@pytest.mark.usefixtures("project")
def test_list_has_every_variant() -> None:
    rows = [row.split() for row in ask("list", "--study", "kept").output.splitlines()]
    assert rows[1:] == [
        ["fp32", "966.9", "0.0000", "1.00"],
        ["near", "80.0", "0.3", "0.0100", "0.99"],
        ["small", "50.0", "0.5", "0.0200", "1.12"],
        ["open", "20.0", "0.0300", "0.50"],
    ]


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["recommend", "--study", "kapt"], 1, "recommend: there is no study 'kapt' (did you mean 'kept'?)\n"),
        (["list"], 1, "list: reports/results.csv is not here; run 'dvc repro compare' first\n"),
        (["recommend", "--device", "gpu"], 2, "'gpu' is not one of 'cpu'"),
        (["recommend", "--max-mb", "-1"], 2, "--max-mb"),
        (["export", "fp32", "out", "--to", "onnx"], 2, "'onnx' is not one of"),
    ],
)
@pytest.mark.usefixtures("project")
def test_mistakes_get_a_sentence(words: list[str], status: int, said: str) -> None:
    answer = ask(*words)
    assert answer.exit_code == status
    assert said in answer.output
    assert "Traceback" not in answer.output


def scored(*texts: tuple[str, int]) -> str:
    """Return the scores of a variant that writes these texts with as many errors."""
    utterances: list[dict[str, Any]] = [
        {"id": f"u{n}", "split": "dev", "reference": "a [cat]", "hypothesis": text}
        | {"substitutions": errors, "deletions": 0, "insertions": 0}
        for n, (text, errors) in enumerate(texts)
    ]
    return json.dumps({"utterances": utterances})


def test_compare_shows_the_greatest_losses_first(tmp_project: Project) -> None:
    folder = tmp_project.root / "reports/scores"
    folder.mkdir(parents=True)
    (folder / "fp32.json").write_text(scored(("a cat", 0), ("a hat", 1), ("a bat", 1)))
    (folder / "hqq-int4.json").write_text(scored(("the [/cat]", 2), ("a cat", 0), ("a bat", 1)))
    said = ask("compare", "fp32", "hqq-int4")
    assert said.exit_code == 0
    assert [line.rstrip() for line in said.output.splitlines()] == [
        "dev u0: 0 -> 2 errors",
        "  [-a cat-] {+the [/cat]+}",
        "  said: a [cat]",
        "dev u1: 1 -> 0 errors",
        "  a [-hat-] {+cat+}",
        "  said: a [cat]",
        "2 utterances read otherwise: 1 regressed, 1 improved",
    ]
    assert ask("compare", "fp32", "hqq-int5").output.startswith("compare: unknown variant 'hqq-int5' (did you mean")


def test_every_target_of_export_can_be_named() -> None:
    assert {*Target} == {*export.TARGETS}


def test_the_installed_command_reads_a_study_of_this_project() -> None:
    command = shutil.which("whisper-ptq", path=str(Path(sys.executable).parent))
    assert command is not None
    done = subprocess.run(
        [command, "recommend", "--study", "base", "--max-loss", "0.5"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    )
    assert " MB (test-clean: no worse than 0." in done.stdout
    assert done.stderr == ""
