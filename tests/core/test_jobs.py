"""pipeline.core.jobs: several DVCs side by side."""

import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import pytest
import torch
from ruamel.yaml import YAML

from pipeline.core import jobs, params, stage
from pipeline.core.machine import JOBS
from tests import scale
from tests.conftest import ROOT
from tests.study import VARIANTS, Study


def test_every_stage_of_a_variant_is_in_its_job() -> None:
    """What is in no job runs afterwards, alone."""
    settings = params.read(ROOT)
    found = jobs.stages_of(settings)
    assert list(found) == [*settings.variants, "candidate", "other protocols"]
    assert found["bnb-nf4"] == ["quantize@bnb-nf4", "agree@bnb-nf4", "transcribe@bnb-nf4", "score@bnb-nf4"]
    stages = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]
    each = [name for name in stages if stages[name].get("foreach") == "${variants}"]
    names = [f"{name}@{variant}" for name in each for variant in settings.variants]
    names += [name for name in stages if "foreach" not in stages[name]]
    others = {"download", "prepare", "fetch", "calibrate", "sensitivity", "learn", "quantize@fp32", "reference"}
    others |= {"compare", "plot", "report"}
    assert sorted(stage for named in found.values() for stage in named) == sorted(set(names) - others)


@pytest.mark.parametrize(
    ("count", "device", "visible", "dealt"),
    [
        (3, "auto", None, ["0", "1", "0"]),
        (3, "cuda", "2,GPU-7", ["2", "GPU-7", "2"]),
        (1, "auto", None, ["0"]),
        (2, "cuda:1", None, [None, None]),
        (2, "cpu", None, [None, None]),
    ],
)
def test_gpus_are_dealt_out(
    count: int, device: str, visible: str | None, dealt: list[str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert [place.get("CUDA_VISIBLE_DEVICES") for place in jobs.environments(count, device)] == dealt


def test_cores_are_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert jobs.environments(3, "cpu") == [{JOBS: "3", stage.JOBS_PID: str(os.getpid()), "OMP_NUM_THREADS": "2"}] * 3
    assert jobs.environments(20, "cpu")[0]["OMP_NUM_THREADS"] == "1"
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert jobs.environments(3, "cpu")[0]["OMP_NUM_THREADS"] == "5"


def test_lines_are_what_a_terminal_shows_in_the_end() -> None:
    ours, theirs = os.pipe()
    os.write(theirs, b"first\r\n\x1b[32m 10%\x1b[0m\r 20%")
    lines = jobs._lines(ours)
    assert [next(lines), next(lines)] == [("first", True), ("20%", False)]
    os.write(theirs, "\r 30%\r\nwörter".encode()[:-1])
    assert [next(lines), next(lines)] == [("30%", True), ("wörte", False)]
    os.close(theirs)
    assert list(lines) == [("wörte", True)]
    os.close(ours)


def results(study: Study) -> dict[str, Any]:
    """Return dvc.lock and the files in it, without what holds timings."""
    timed = ("reports/timings", "reports/results.csv", "reports/figures", "reports/index.html")
    stages = YAML(typ="safe").load(study.root / "dvc.lock")["stages"]
    for entry in stages.values():
        for kind in ("deps", "outs"):
            entry[kind] = [file for file in entry.get(kind, []) if not file["path"].startswith(timed)]
    texts = [*(study.root / "reports/transcripts").glob("*.jsonl"), *(study.root / "reports/agreement").glob("*.json")]
    return {"stages": stages} | {file.name: file.read_bytes() for file in texts}


@pytest.fixture
def edited(finished: Study, tmp_path: Path) -> Study:
    """Return the study with fewer tokens: every job has to transcribe, and nothing to quantize."""
    study = finished.copy(tmp_path / "study")
    study.edit(lambda raw: raw["decoding"].update(max_new_tokens=8))
    return study


@pytest.mark.slow
def test_several_jobs_give_what_one_gives(finished: Study, tmp_path: Path) -> None:
    """From a clone without a cache."""
    study = finished.copy(tmp_path / "study")
    for name in ("data", "models", ".dvc/cache", ".dvc/tmp"):
        shutil.rmtree(study.root / name)
    study.did("git", "rm", "-r", "--quiet", "dvc.lock", "reports")
    shutil.rmtree(study.root / "reports", ignore_errors=True)
    said = study.did("python", "-m", "pipeline.core.jobs", "6")
    assert study.ran("repro") == ["compare", "plot", "report"]
    assert results(study) == results(finished)
    assert study.read("reports/metrics.json") == finished.read("reports/metrics.json")
    assert study.left() == []
    # Each job's lines stand together.
    heads = [line.split(" | ")[0] for line in said.splitlines() if " | " in line]
    together = [head for n, head in enumerate(heads) if n == 0 or heads[n - 1] != head]
    assert sorted(together) == sorted(["all", *VARIANTS, "candidate", "other protocols"])


@pytest.mark.slow
def test_a_job_that_fails_does_not_hold_up_the_others(finished: Study, tmp_path: Path) -> None:
    study = finished.copy(tmp_path / "study")

    def change(raw: Any) -> None:
        raw["variants"]["hqq-int4"]["group_size"] = 60
        raw["variants"]["torch-int8-dynamic"]["granularity"] = "tensor"

    study.edit(change)
    failed = study.run("python", "-m", "pipeline.core.jobs", "2")
    assert failed.returncode == 1
    assert "hqq-int4 | quantize: variant 'hqq-int4': hqq: group_size 60 " in failed.stdout
    assert failed.stdout.splitlines()[-1] == (
        "jobs: 1 of 6 jobs failed: hqq-int4; what they said stands above, the others are done"
    )
    study.edit(lambda raw: raw["variants"]["hqq-int4"].update(group_size=32))
    again = [f"{stage}@hqq-int4" for stage in ("agree", "quantize", "score", "transcribe")]
    assert study.ran("repro") == sorted(["compare", "plot", "report", *again])


@pytest.mark.slow
def test_when_jobs_are_killed_nothing_goes_on(edited: Study) -> None:
    """With SIGKILL, which they cannot pass on."""
    with scale.started(edited, "python", "-m", "pipeline.core.jobs", "2") as process:
        while scale.stage(process.pid, "transcribe") is None:
            time.sleep(0.05)
        children = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        assert psutil.wait_procs(children, timeout=5)[1] == []
    edited.did("python", "-m", "pipeline.core.jobs", "2")
    assert edited.ran("repro") == ["compare", "plot", "report"]
    assert edited.left() == []


@pytest.mark.parametrize(("count", "sentence"), [("0", "jobs: jobs is 0, but at least 1 is needed\n")])
def test_no_jobs(finished: Study, count: str, sentence: str) -> None:
    failed = finished.run("python", "-m", "pipeline.core.jobs", count)
    assert (failed.returncode, failed.stdout) == (1, sentence)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_ends_all_jobs_with_one_line(number: signal.Signals, edited: Study) -> None:
    with scale.started(edited, "python", "-m", "pipeline.core.jobs", "2") as process:
        while scale.stage(process.pid, "transcribe") is None:
            time.sleep(0.05)
        children = psutil.Process(process.pid).children(recursive=True)
        began = time.monotonic()
        process.send_signal(number)
        said, _ = process.communicate()
        assert time.monotonic() - began < 5
    assert process.returncode == 130
    assert said.splitlines()[-1] == "jobs: interrupted; run it again to go on"
    assert "Traceback" not in said
    assert "transcribe: interrupted" not in said
    assert [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE] == []
    if number == signal.SIGINT:  # SIGTERM ends them in the same way
        edited.did("python", "-m", "pipeline.core.jobs", "2")
        assert edited.ran("repro") == ["compare", "plot", "report"]
        assert edited.left() == []
