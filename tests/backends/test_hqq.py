from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pipeline import backends
from pipeline.whisper import weights
from tests.backends import common

VARIANTS = [name for name, variant in common.VARIANTS.items() if variant.backend == "hqq"]
LAYER = "model.decoder.layers.1.fc2"


@pytest.mark.parametrize("name", VARIANTS)
def test_hqq_loads_a_layer_of_the_checkpoint(name: str, baseline: Path, tmp_path: Path) -> None:
    """With nothing but the library: `HQQLinear.load_state_dict` of what stands under the layer's name."""
    from hqq.core.quantize import HQQLinear

    common.saved(baseline, common.VARIANTS[name], tmp_path / "saved")
    tensors = load_file(tmp_path / "saved/model.safetensors")
    layer = HQQLinear(None, None, compute_dtype=torch.float32, device="cpu", initialize=False)
    own = {key.removeprefix(f"{LAYER}."): tensor for key, tensor in tensors.items() if key.startswith(f"{LAYER}.")}
    layer.load_state_dict(own)
    ours = backends.get("hqq").load(tmp_path / "saved", "cpu").get_submodule(LAYER)
    sound = torch.randn(5, 128, generator=torch.Generator().manual_seed(2))
    assert torch.equal(layer(sound), ours(sound))
    exact = weights.load(baseline).get_submodule(LAYER)(sound)
    assert (layer(sound) - exact).norm() / exact.norm() < {8: 0.01, 4: 0.15, 3: 0.3, 2: 0.7}[layer.meta["nbits"]]


def test_hqq_optimizes_beyond_rounding(baseline: Path) -> None:
    """Half-quadratic optimization is what HQQ adds to rounding in groups: its weights must be nearer (in its norm)."""
    from hqq.core.quantize import BaseQuantizeConfig, HQQLinear

    weight = load_file(baseline / "model.safetensors")[f"{LAYER}.weight"]
    optimized: Any = common.quantized(baseline, common.VARIANTS["hqq-int3"])[0].get_submodule(LAYER)
    config = BaseQuantizeConfig(nbits=3, group_size=64, axis=1)
    config["weight_quant_params"]["optimize"] = False
    linear = torch.nn.Linear(128, 64)
    linear.weight.data = weight.clone()
    rounded = HQQLinear(linear, config, compute_dtype=torch.float32, device="cpu")
    errors = [(layer.dequantize() - weight).abs().pow(0.7).mean().item() for layer in (optimized, rounded)]
    assert errors[0] < errors[1]


@pytest.mark.parametrize(
    ("granularity", "size", "groups"), [("group", 64, 128), ("group", 8, 1024), ("channel", None, 64)]
)
def test_a_group_is_as_large_as_is_asked_for(
    granularity: str, size: int | None, groups: int, baseline: Path, tmp_path: Path
) -> None:
    common.saved(baseline, common.make("hqq", 4, "int", "none", granularity, size), tmp_path / "saved")
    tensors = load_file(tmp_path / "saved/model.safetensors")
    assert tensors[f"{LAYER}.scale"].numel() == tensors[f"{LAYER}.zero"].numel() == groups
