import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline import quantize, reference
from pipeline.core import pieces
from pipeline.core.errors import UserError
from pipeline.speech import corpus
from pipeline.whisper import agreement
from pipeline.whisper.inference import decoding
from pipeline.whisper.model import weights
from tests import toy
from tests.conftest import ROOT, Project, noise


@pytest.fixture
def project(tmp_project: Project, quantized: Path) -> Project:
    """Work in a project that has been quantized, whose toy writes at most 6 tokens."""
    shutil.copytree(quantized, tmp_project.root, dirs_exist_ok=True)
    return tmp_project


def windows(shard: str) -> list[agreement.Window]:
    return list(agreement.read(agreement.file(shard), 64, "cpu"))


def said(vocabulary: decoding.Vocabulary, tokens: Sequence[int]) -> str:
    return vocabulary.text(tokens[len(vocabulary.prompt) :]).strip()


def test_every_window_has_the_tokens_that_fp32_decodes(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    reference.main()
    names = {"test-a-00000": ["a-1"], "test-b-00000": ["b-2", "b-3", "b-1"], "test-b-00001": ["b-0"]}
    assert sorted(path.stem for path in (project.root / "data/reference").iterdir()) == sorted(names)
    found = {shard: windows(shard) for shard in names}
    baseline = project.root / "models/baseline"
    model, vocabulary = weights.load(baseline), decoding.Vocabulary.read(baseline, "en", "transcribe")
    utterances = {utterance.id: utterance for utterance in corpus.read(corpus.CORPUS)}
    for shard, ids in names.items():
        assert [window.id for window in found[shard]] == ids
        for window in found[shard]:
            assert [said(vocabulary, window.tokens)] == toy.texts(model, [utterances[window.id]], vocabulary, 6)
            assert window.tokens[:2] == vocabulary.prompt
            assert window.states.shape == (len(window.tokens) - 2, 64)
            assert vocabulary.end not in window.tokens  # it would go on
            (features,) = decoding.windows(model, utterances[window.id])
            tokens = torch.tensor([window.tokens[:-1]])
            whole = model.model.decoder(tokens, model.caches(features, tokens.shape[1]))[0, 1:]
            torch.testing.assert_close(window.states, whole)
    places = sum(len(window.states) for each in found.values() for window in each)
    assert capsys.readouterr().out == f"data/reference: {places} tokens of 5 utterances\n"
    before = [path.read_bytes() for path in sorted(Path("data/reference").iterdir())]
    reference.main()
    assert [path.read_bytes() for path in sorted(Path("data/reference").iterdir())] == before


def test_the_end_is_a_token_where_the_model_ends(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the rows that a window may fill, those that are shorter have ended."""
    hear = decoding.transcribe

    def shorter(*arguments: Any) -> list[decoding.Heard]:
        heard = hear(*arguments)
        for each in heard:
            each.windows = [window[:3] for window in each.windows]
        return heard

    monkeypatch.setattr(decoding, "transcribe", shorter)
    reference.main()
    end = decoding.Vocabulary.read(project.root / "models/fp32", "en", "transcribe").end
    assert [(window.tokens[-1], len(window.states)) for window in windows("test-b-00000")] == [(end, 4)] * 3


@pytest.mark.usefixtures("project")
def test_long_recordings_have_several_windows() -> None:
    toy.write_shard(Path("data/corpus/test-a/00000.parquet"), "test-a", {"a-1": noise(70.0), "a-2": noise(1.0)})
    reference.main()
    assert [window.id for window in windows("test-a-00000")] == ["a-1"] * 4 + ["a-2"]


def test_detected_languages_stand_in_the_prompts(tmp_project: Project, tmp_path: Path) -> None:
    toy.project(tmp_project, toy.write(tmp_path / "multilingual", toy.MULTILINGUAL))
    tmp_project.set(decoding__language="auto", scoring__normalizer="basic")
    quantize.main("fp32")
    reference.main()
    vocabulary = decoding.Vocabulary.read(Path("models/fp32"), "auto", "transcribe")
    for window in windows("test-b-00000"):
        assert window.tokens[0] == vocabulary.prompt[0]
        assert window.tokens[1] in vocabulary.languages
        assert window.tokens[2:4] == vocabulary.prompt[2:]


def test_an_interrupted_run_goes_on_where_it_stopped(
    project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reference.main()
    whole = [path.read_bytes() for path in sorted(Path("data/reference").iterdir())]
    some = toy.Interrupted(3)
    monkeypatch.setattr(decoding, "transcribe", some)
    with pytest.raises(KeyboardInterrupt):
        reference.main()
    some.left = 1  # batches: one of the first shard, two of the second, one of the last
    capsys.readouterr()
    reference.main()
    assert some.left == 0
    assert capsys.readouterr().out.startswith("reference: kept 4 utterances")
    assert [path.read_bytes() for path in sorted(Path("data/reference").iterdir())] == whole
    pieces.remove_finished(project.root)
    assert list((project.root / "data").glob(".*")) == []


def test_without_fp32(project: Project) -> None:
    (project.root / "models/fp32/checkpoint.json").unlink()
    with pytest.raises(UserError, match=r"models/fp32 has no readable checkpoint.json"):
        reference.main()


@pytest.mark.slow
def test_memory_does_not_follow_the_recording(project: Project) -> None:
    """States of a long recording's windows are written as they come."""
    project.set(decoding__batch_size=8, decoding__max_new_tokens=30)
    script = (
        "import json; from pipeline import reference; from pipeline.core import machine; "
        "reference.main(); print(json.dumps(machine.peak_memory('cpu')))"
    )
    peaks = []
    for minutes in (6, 24):
        shutil.rmtree(project.root / "data/corpus")
        sound = np.random.default_rng(0).integers(-30, 30, minutes * 60 * 16000).astype(np.int16)
        toy.write_shard(project.root / "data/corpus/long/00000.parquet", "long", {"lecture": sound})
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run([sys.executable, "-c", script], env=environment, check=True, capture_output=True)
        peaks.append(json.loads(done.stdout.splitlines()[-1])["peak_rss_mb"])
    assert peaks[1] <= 1.3 * peaks[0], peaks  # the FLAC alone grows by 14 MB, and Parquet reads copies
