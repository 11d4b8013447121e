import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pipeline import backends
from tests import toy
from tests.backends import common

WEIGHT_ONLY = [
    name for name, variant in common.VARIANTS.items() if variant.backend == "quanto" and variant.activations == "none"
]


@pytest.mark.parametrize("name", WEIGHT_ONLY)
def test_quanto_loads_the_checkpoint_into_transformers(name: str, baseline: Path, tmp_path: Path) -> None:
    """Both ways that quanto has: its class for whole models, and `requantize` on a model one has made."""
    from optimum import quanto
    from optimum.quanto.models.transformers_models import QuantizedTransformersModel
    from transformers import AutoModelForSpeechSeq2Seq, WhisperConfig, WhisperForConditionalGeneration

    class QuantizedWhisper(QuantizedTransformersModel):  # type: ignore[misc]  # quanto has no types
        auto_class = AutoModelForSpeechSeq2Seq

    common.saved(baseline, common.VARIANTS[name], tmp_path / "saved")
    expected = toy.logits(backends.get("quanto").load(tmp_path / "saved", "cpu"))
    whole = QuantizedWhisper.from_pretrained(tmp_path / "saved")
    torch.testing.assert_close(toy.logits_of_transformers(whole._wrapped), expected, rtol=1e-5, atol=1e-4)

    made: Any = WhisperForConditionalGeneration(WhisperConfig.from_pretrained(tmp_path / "saved")).eval()
    quantization_map = json.loads((tmp_path / "saved/quanto_qmap.json").read_text())
    quanto.requantize(made, load_file(tmp_path / "saved/model.safetensors"), quantization_map)
    if "proj_out" not in quantization_map:
        made.tie_weights()
    torch.testing.assert_close(toy.logits_of_transformers(made), expected, rtol=1e-5, atol=1e-4)


def test_the_head_is_a_quantized_copy_only_where_it_is_asked_for(baseline: Path, tmp_path: Path) -> None:
    made = common.saved(baseline, common.VARIANTS["quanto-int8"], tmp_path / "with")
    assert made.manifest["layers"][-1] == "proj_out"
    tensors = load_file(tmp_path / "with/model.safetensors")
    assert tensors["proj_out.weight._data"].dtype == torch.int8
    assert tensors["model.decoder.embed_tokens.weight"].dtype == torch.float32
    without = common.saved(baseline, common.make("quanto"), tmp_path / "without")
    assert without.manifest["layers"] == made.manifest["layers"][:-1]
    assert not [name for name in load_file(tmp_path / "without/model.safetensors") if name.startswith("proj_out")]
    model = backends.get("quanto").load(tmp_path / "without", "cpu")
    assert model.proj_out.weight is model.model.decoder.embed_tokens.weight


def test_static_variants_keep_what_calibration_saw(baseline: Path, tmp_path: Path) -> None:
    """Every layer has an input scale of its own; quanto's initial 1.0 would mean that nothing was calibrated."""
    made = common.saved(baseline, common.VARIANTS["quanto-int8-static"], tmp_path / "saved")
    tensors = load_file(tmp_path / "saved/model.safetensors")
    scales = [tensors[f"{layer}.input_scale"].item() for layer in made.manifest["layers"]]
    assert len(scales) == 32
    assert all(0 < scale < 1 for scale in scales)
    reloaded = backends.get("quanto").load(tmp_path / "saved", "cpu")
    found = [reloaded.get_submodule(layer).input_scale for layer in made.manifest["layers"]]
    assert [torch.as_tensor(scale).item() for scale in found] == scales
