import shutil
from pathlib import Path

import pytest
import torch

from pipeline import calibrate
from pipeline.speech import corpus
from pipeline.whisper.inference import decoding
from pipeline.whisper.model import weights
from pipeline.whisper.quantization import calibration
from tests import toy
from tests.conftest import Project


@pytest.fixture
def project(tmp_project: Project, calibrated: Path) -> Project:
    """Work in a project with a toy baseline, a corpus and two utterances to calibrate on."""
    shutil.copytree(calibrated, tmp_project.root, dirs_exist_ok=True)
    return tmp_project


def test_the_baseline_tells_what_it_hears(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    first = calibration.HEARD.read_bytes()
    calibration.HEARD.unlink()
    calibrate.main()
    assert capsys.readouterr().out == "data/calibration.safetensors: 2 utterances\n"
    assert calibration.HEARD.read_bytes() == first
    assert calibration.ids() == ["c-1", "c-2"]
    folder = project.root / "models/baseline"
    vocabulary, model = decoding.Vocabulary.read(folder, "en", "transcribe"), weights.load(folder)
    for utterance, (features, tokens) in zip(corpus.read(corpus.CALIBRATION), calibration.read(), strict=True):
        assert features.shape == (1, 80, 3000)
        (said,) = decoding.greedy(model, features, vocabulary, 32)
        assert torch.equal(tokens, torch.tensor([vocabulary.prompt + said]))
        assert toy.texts(model, [utterance], vocabulary, 32) == [vocabulary.text(said).strip()]
