"""Mistakes and accidents in whole DVC runs: one sentence each, nothing half-written, and the next run recovers."""

import re
from collections.abc import Callable
from typing import Any

import pytest

from tests.study import SETTINGS, Study

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def study(finished: Study, tmp_path_factory: pytest.TempPathFactory) -> Study:
    """Return one study for all tests here: each leaves it as it was, or the next one fails."""
    copy = finished.copy(tmp_path_factory.mktemp("mistakes") / "study")
    copy.unwatch()  # else that stage would be the one that tells
    return copy


def said(output: str) -> list[str]:
    """Return the lines that are not DVC's own."""
    dvc = r"Running stage |Stage |Reproducing experiment|> |ERROR: failed to reproduce|$"
    return [line for line in output.splitlines() if not re.match(dvc, line)]


def undo(study: Study) -> None:
    study.did("git", "checkout", "--quiet", *SETTINGS)


CHOICES: dict[str, tuple[Callable[[Any], object], str, str]] = {
    "model": (
        lambda raw: raw.update(model="toi"),
        "Parameters 'models.toi' are missing from 'catalog.yaml'.",
        "settings: unknown model 'toi' (did you mean 'toy'?)",
    ),
    "backend": (
        lambda raw: raw.update(backend="hhq"),
        "[Errno 2] No such file or directory: 'STUDY/data/learned/hhq'",
        "settings: candidate: unknown backend 'hhq' (did you mean 'hqq'?)",
    ),
}
"""What chooses a stage's dependency: DVC itself misses that before the stage is asked. `make run` asks first."""


@pytest.mark.parametrize("choice", CHOICES)
def test_what_is_not_there_to_choose_is_told_by_dvc_and_by_make_run(study: Study, choice: str) -> None:
    change, line, sentence = CHOICES[choice]
    study.edit(change)
    failed = study.run("dvc", "repro")
    assert line.replace("STUDY", str(study.root)) in failed.stdout
    assert failed.returncode != 0
    checked = study.run("python", "-m", "pipeline.backends", "--check")
    assert (checked.returncode, checked.stdout) == (1, f"{sentence}\n")
    undo(study)
    assert study.ran("repro") == []


MISTAKES: dict[str, tuple[Callable[[Any], object], str]] = {
    "key of a model": (
        lambda raw: raw["models"]["toy"].update(pth="."),
        "fetch: model 'toy': unknown key 'pth' (did you mean 'path'?)",
    ),
    "split": (
        lambda raw: raw["corpora"]["noise"].update(splits=["tset"]),
        "download: corpus 'noise': SPEECH has no split 'tset' (did you mean 'test'?)",
    ),
    "key of a variant": (
        lambda raw: raw["variants"]["hqq-int4"].update(group=64),
        "quantize: variant 'hqq-int4': unknown key 'group' (did you mean 'group_size'?)",
    ),
    "key of decoding": (
        lambda raw: raw["decoding"].update(max_tokens=9),
        "reference: decoding: unknown key 'max_tokens' (did you mean 'max_new_tokens'?)",
    ),
    "key of scoring": (
        lambda raw: raw["scoring"].update(normaliser="basic"),
        "score: scoring: unknown key 'normaliser' (did you mean 'normalizer'?)",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake_is_told_in_a_sentence_and_undone(study: Study, mistake: str) -> None:
    change, sentence = MISTAKES[mistake]
    study.edit(change)
    failed = study.run("dvc", "repro")
    assert said(failed.stdout) == [sentence.replace("SPEECH", str(study.speech))]
    assert failed.returncode != 0
    assert study.left() == []
    undo(study)
    assert study.ran("repro") == []  # what the failed stage had removed comes from the cache


def test_impossible_experiment_is_told_in_a_sentence_and_undone(study: Study) -> None:
    failed = study.run("dvc", "exp", "run", "-S", "backend=hqq", "-S", "bits=7")
    sentence = "quantize: variant 'candidate': hqq: bits 7 is not possible (choose 8, 4, 3, 2 or 1)"
    assert said(failed.stdout) == [sentence]
    assert failed.returncode != 0
    undo(study)
    assert study.ran("repro") == []


def test_experiment_with_an_unknown_key_is_refused(study: Study) -> None:
    failed = study.run("dvc", "exp", "run", "-S", "bitz=4")
    assert "Could not override 'bitz'" in failed.stdout
    assert failed.returncode != 0
    assert study.did("git", "status", "--porcelain") == ""


def test_edited_checkpoint_is_refused_and_restored(study: Study) -> None:
    weights = study.root / "models" / "fp32" / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    transcripts = study.read("reports/transcripts/fp32.jsonl")
    failed = study.run("python", "-m", "pipeline.transcribe", "fp32")
    assert failed.stdout == (
        "transcribe: models/fp32/model.safetensors is not the file that was saved: it is cut short or edited; "
        "run 'dvc repro' to restore it\n"
    )
    assert failed.returncode == 1
    assert study.read("reports/transcripts/fp32.jsonl") == transcripts
    assert study.ran("repro") == []
    assert weights.read_bytes() == whole
