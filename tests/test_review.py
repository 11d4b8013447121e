"""Three pull requests, played through in git and DVC with results that are made up."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from tests.conftest import ROOT, results_csv
from tests.made import FP32, line
from tests.study import Study

GRAPH = """\
stages:
  compare:
    cmd: python code.py
    params: [model]
    deps: [code.py]
    outs:
      - reports/errors.csv: {cache: false, persist: true}
      - reports/results.csv: {cache: false, persist: true}
    metrics:
      - reports/metrics.json: {cache: false, persist: true}
artifacts:
  small: {path: models/mixed-50, type: model, labels: [recommended]}
"""
CODE = """\
print("a message")
"""


def write(root: Path, worse: int = 0, dropped: bool = False) -> None:
    """Write a run's results: of mixed-50 with so many errors more in every utterance, or without it."""
    names = ["fp32", "hqq-int4"] if dropped else ["fp32", "mixed-50", "hqq-int4"]
    lines = [
        FP32 if name == "fp32" else line(name, 0.1 + 10 * worse, -0.1, 0.3, size_mb=50.0, kl=0.001) for name in names
    ]
    (root / "reports/results.csv").write_text(results_csv(*lines))
    head = ["split,id,speaker,words", *names]
    rows = [
        ",".join([f"test-clean,u{n},s{n % 12},10", *(str(1 + worse * (name == "mixed-50")) for name in names)])
        for n in range(48)
    ]
    (root / "reports/errors.csv").write_text("\n".join([",".join(head), *rows]) + "\n")
    (root / "reports/metrics.json").write_text(json.dumps({"mixed-50": {"wer": 4 + worse}}))


@pytest.fixture
def project(tmp_path: Path) -> Study:
    """Return a project whose main branch has a run with a variant that people ship."""
    made = Study(tmp_path / "project")
    (made.root / "reports").mkdir(parents=True)
    for name in ("params.yaml", "catalog.yaml"):
        (made.root / name).write_text((ROOT / name).read_text())
    (made.root / "dvc.yaml").write_text(GRAPH)
    (made.root / "code.py").write_text(CODE)
    (made.root / ".gitignore").write_text("__pycache__\n")
    write(made.root)
    made.begin()
    made.did("dvc", "init", "--quiet")
    made.did("dvc", "repro", "--quiet")
    made.commit("Run")
    return made


def reviewed(project: Study, change: Callable[[Path], Any]) -> tuple[int, str]:
    """Commit a change on a branch, after the run that it needs; return the review's status and words."""
    project.did("git", "checkout", "--quiet", "-b", "change")
    change(project.root)
    project.did("dvc", "repro", "--quiet")
    project.commit("Change")
    done = project.run("python", "-m", "pipeline.review", "main")
    assert "Traceback" not in done.stdout
    return done.returncode, done.stdout


@pytest.mark.slow
def test_a_recommended_variant_that_got_worse_does_not_land(project: Study) -> None:
    def spoil(root: Path) -> None:
        write(root, worse=1)
        own = root / "params.yaml"
        own.write_text(own.read_text().replace("tolerance: 0.3", "tolerance: 30"))  # its own gate cannot be relaxed

    status, said = reviewed(project, spoil)
    assert status == 1
    assert (
        "- **Refused**: the loss of mixed-50 (small) on test-clean has grown by +10.00 [+10.00, +10.00] points" in said
    )
    assert (
        "| mixed-50 | test-clean | 50.0 | 3.60 → 13.60 | +10.00 [+10.00, +10.00] | 48, 0 | 0.0010 | undecided |" in said
    )
    assert "2 rows are as they were." in said
    assert "dvc.lock is in step" in said
    assert "| reports/metrics.json | mixed-50.wer | 4" in said.replace("  ", " ").replace("  ", " ")


@pytest.mark.slow
def test_a_message_that_was_edited_lands(project: Study) -> None:
    status, said = reviewed(project, lambda root: (root / "code.py").write_text(CODE.replace("a message", "another")))
    assert status == 0
    assert (
        "- Passed: of `fp32` (the baseline) and `mixed-50` (small) no loss grew surely by more than 0.3 points, "
        in said
    )
    assert "Every variant has the errors, the size and the verdict that it had." in said


@pytest.mark.slow
def test_a_recommended_variant_that_was_dropped_does_not_land(project: Study) -> None:
    def drop(root: Path) -> None:
        write(root, dropped=True)
        (root / "dvc.yaml").write_text(GRAPH.partition("artifacts:")[0])  # and its mark with it

    status, said = reviewed(project, drop)
    assert status == 1
    assert "- **Refused**: mixed-50 (small) has vanished from test-clean." in said
    assert "- Vanished: `mixed-50` on test-clean." in said


@pytest.mark.slow
def test_a_lock_that_is_behind_does_not_land(project: Study) -> None:
    (project.root / "code.py").write_text("print(1)\n")
    done = project.run("python", "-m", "pipeline.review", "main")
    assert done.returncode == 1
    assert "- **dvc.lock is behind** the code or the parameters: stage 'compare' would run." in done.stdout


def test_a_base_that_is_not_there_gets_a_sentence(project: Study) -> None:
    done = project.run("python", "-m", "pipeline.review", "mian")
    assert done.returncode == 1
    assert "review: dvc.yaml of 'mian' cannot be read" in done.stdout
    assert "Traceback" not in done.stdout


def test_the_workflow_runs_pinned_actions_with_least_permissions() -> None:
    text = (ROOT / ".github/workflows/review.yml").read_text()
    workflow = YAML(typ="safe").load(text)
    assert workflow["permissions"] == {}
    assert {**workflow["jobs"]["review"]["permissions"]} == {"contents": "read", "pull-requests": "write"}
    used = re.findall(r"uses: (\S+)@(\S+) # (v\S+)", text)
    assert len(used) == text.count("uses:")
    assert all(re.fullmatch("[0-9a-f]{40}", digest) for _, digest, _ in used)
