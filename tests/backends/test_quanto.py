import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pipeline import backends
from pipeline.whisper.model import network
from tests import toy
from tests.backends import common
from tests.conftest import ROOT

WEIGHT_ONLY = [
    name
    for name, variant in common.VARIANTS.items()
    if variant.backend == "quanto" and variant.activations == "none" and variant.embedding is None
]
"""Those that quanto can load: it does not know our packed embeddings."""


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("name", WEIGHT_ONLY)
def test_quanto_loads_the_checkpoint_into_transformers(name: str, tied: bool, baseline: Path, tmp_path: Path) -> None:
    """Both ways that quanto has: its class for whole models, and `requantize` on a model one has made."""
    from optimum import quanto
    from optimum.quanto.models.transformers_models import QuantizedTransformersModel
    from transformers import AutoModelForSpeechSeq2Seq, WhisperConfig, WhisperForConditionalGeneration

    class QuantizedWhisper(QuantizedTransformersModel):  # type: ignore[misc]  # quanto has no types
        auto_class = AutoModelForSpeechSeq2Seq

    source = baseline if tied else common.untied(baseline, tmp_path / "untied")
    common.saved(source, common.VARIANTS[name], tmp_path / "saved")
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
    without = common.saved(baseline, common.make("quanto", rest="float32"), tmp_path / "without")
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


@pytest.mark.parametrize(
    ("width", "inner", "size"),
    [
        (128, 256, 128),
        (384, 1536, 128),  # tiny
        (192, 768, 96),
        (320, 1280, 64),
        (320, 160, 32),  # the smallest of both
        (64, 128, 64),  # a whole row is shorter than 128
        (200, 200, 200),  # nothing divides it
    ],
)
def test_the_groups_are_as_large_as_is_said(width: int, inner: int, size: int, tmp_path: Path) -> None:
    """The table says 128, and the library has gone down to 64, because of the model's width."""
    layers = {"decoder_layers": 1, "encoder_layers": 1, "encoder_ffn_dim": inner, "decoder_ffn_dim": inner}
    model = network.Whisper(network.Config(**toy.SIZES | layers | {"d_model": width}, vocab_size=8))
    quanto = backends.get("quanto")
    chosen = ["model.encoder.layers.0.fc1", "model.encoder.layers.0.fc2"]
    made = quanto.quantize(model, chosen, quanto.supports(common.make("quanto", 4)), common.calibrate)
    assert (made.granularity, made.group_size) == ("group", size)
    quanto.save(model, made, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    assert min(width * inner // tensors[f"{layer}.weight._scale"].numel() for layer in chosen) == size


@pytest.mark.parametrize("name", ["quanto-int4", "quanto-int2"])
def test_no_compiler_is_needed(name: str, baseline: Path) -> None:
    """Ninja is required to load C++ extensions: the first sentence fails in a slim container."""
    code = f"toy.logits(common.quantized(Path({str(baseline)!r}), common.VARIANTS[{name!r}])[0])"
    code = f"from pathlib import Path; from tests import toy; from tests.backends import common; {code}"
    without = {key: value for key, value in os.environ.items() if key not in ("CC", "CXX")} | {"PATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=without, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
