import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

from pipeline import backends
from pipeline.whisper.model import integers
from tests.backends import common

VARIANTS = [name for name, variant in common.VARIANTS.items() if variant.backend == "torch"]
LAYER = "model.decoder.layers.1.fc2"


def stored(folder: Path) -> dict[str, Tensor]:
    return {
        key.removeprefix(f"{LAYER}."): tensor
        for key, tensor in load_file(folder / "model.safetensors").items()
        if key.startswith(f"{LAYER}.")
    }


@pytest.mark.parametrize("name", VARIANTS)
def test_the_tensors_say_what_the_weights_are(name: str, baseline: Path, tmp_path: Path) -> None:
    variant = common.VARIANTS[name]
    skewed = tmp_path / "skewed"  # asymmetric weights are what a zero point is for
    shutil.copytree(baseline, skewed)
    original = load_file(baseline / "model.safetensors")
    original[f"{LAYER}.weight"] += 0.05
    save_file(original, skewed / "model.safetensors")
    common.saved(skewed, variant, tmp_path / "saved")
    own = stored(tmp_path / "saved")
    static = {"input_scale", "input_zero_point"} if variant.activations == "static" else set()
    assert set(own) == {"weight", "weight_scale", "weight_zero_point", "bias"} | static
    assert own["weight"].dtype == torch.int8
    assert own["weight_scale"].shape == ((64,) if variant.granularity == "channel" else ())
    assert bool((own["weight_zero_point"] == 0).all()) == bool(variant.symmetric)
    scale = own["weight_scale"].reshape(-1, 1)
    weight = (own["weight"].double() - own["weight_zero_point"].reshape(-1, 1)) * scale
    assert ((weight - original[f"{LAYER}.weight"]).abs() <= scale * 0.501).all()
    assert torch.equal(own["bias"], original[f"{LAYER}.bias"])


@pytest.mark.parametrize("name", ["torch-int8-static", "torch-int8-static-tensor"])
def test_static_layers_round_their_input_to_the_calibrated_scale(name: str, baseline: Path, tmp_path: Path) -> None:
    common.saved(baseline, common.VARIANTS[name], tmp_path / "saved")
    own = stored(tmp_path / "saved")
    scale, zero_point = own["input_scale"].item(), int(own["input_zero_point"])
    assert 0 < scale < 1
    sound = torch.randn(5, 128, generator=torch.Generator().manual_seed(2)) * 100 * scale
    if not integers.multiplies_bytes():  # older instructions cut off sums of more than the 7 bits that are calibrated
        sound = sound.clamp(max=(127 - zero_point) * scale)
    steps = torch.clamp(torch.round(sound / scale) + zero_point, 0, 255)  # quint8, with room on x86 for 7 or 8 bits
    weight = (own["weight"].float() - own["weight_zero_point"].reshape(-1, 1)) * own["weight_scale"].reshape(-1, 1)
    expected = functional.linear((steps - zero_point) * scale, weight.float(), own["bias"])
    layer = backends.get("torch").load(tmp_path / "saved", "cpu").get_submodule(LAYER)
    torch.testing.assert_close(layer(sound), expected, rtol=1e-4, atol=1e-4)


def test_static_scales_differ_from_layer_to_layer(baseline: Path, tmp_path: Path) -> None:
    made = common.saved(baseline, common.VARIANTS["torch-int8-static"], tmp_path / "saved")
    tensors = load_file(tmp_path / "saved/model.safetensors")
    scales = {tensors[f"{layer}.input_scale"].item() for layer in made.manifest["layers"]}
    # q, k and v hear the same normed input; so do the cross-attentions' k and v of both decoder layers
    assert len(made.manifest["layers"]) == 32
    assert len(scales) == 2 * 4 + 2 * 6 + 1
