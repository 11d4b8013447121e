from pathlib import Path
from typing import Any

import torch

from pipeline import backends
from tests import toy
from tests.backends import common


def test_transformers_loads_the_checkpoint(baseline: Path, tmp_path: Path) -> None:
    from transformers import WhisperForConditionalGeneration

    common.saved(baseline, common.VARIANTS["fp32"], tmp_path / "saved")
    theirs: Any = WhisperForConditionalGeneration.from_pretrained(tmp_path / "saved")
    ours = toy.logits(backends.get("none").load(tmp_path / "saved", "cpu"))
    torch.testing.assert_close(toy.logits_of_transformers(theirs), ours, rtol=1e-5, atol=1e-5)


def test_the_weights_are_the_baselines_byte_for_byte(baseline: Path, tmp_path: Path) -> None:
    common.saved(baseline, common.VARIANTS["fp32"], tmp_path / "saved")
    weights = [(folder / "model.safetensors").read_bytes() for folder in (baseline, tmp_path / "saved")]
    assert weights[0] == weights[1]
