from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pipeline import backends
from pipeline.core.errors import UserError
from pipeline.whisper.model import weights
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


@pytest.mark.parametrize(
    ("bits", "granularity", "width", "rows", "refusal"),
    [
        (4, "channel", 384, 51865, "hqq: 4 bits do not pack the 51865 rows of 1 (choose 8 or 3 bits"),
        (2, "channel", 384, 51865, "hqq: 2 bits do not pack the 51865 rows of 1 (choose 8 or 3 bits"),
        (2, "channel", 384, 51866, "hqq: 2 bits do not pack the 51866 rows of 1 (choose 8, 4 or 3 bits"),
        (2, "group", 384, 51865, "hqq: 2 bits do not pack the 311190 groups of 1 (choose 8, 4 or 3 bits"),
        (1, "group", 384, 51865, "hqq: 1 bits do not pack the 311190 groups of 1 (choose 8, 4 or 3 bits"),
        (1, "group", 768, 51865, "hqq: 1 bits do not pack the 622380 groups of 1 (choose 8, 4, 3 or 2 bits"),
    ],
)
def test_a_head_that_the_bits_do_not_pack(bits: int, granularity: str, width: int, rows: int, refusal: str) -> None:
    """Sizes of tensors do not match, deep in the library, after minutes; or rows are lost, and nothing is said."""
    with torch.device("meta"):
        model: Any = torch.nn.ModuleList([torch.nn.Linear(width, width), torch.nn.Linear(width, rows)])
    hqq = backends.get("hqq")
    variant = hqq.supports(common.make("hqq", bits, "int", "none", granularity))
    with pytest.raises(UserError) as error:
        hqq.quantize(model, ["0", "1"], variant, common.calibrate)
    assert str(error.value) == f"{refusal}, or put it in exclude)"
    assert all(type(layer) is torch.nn.Linear for layer in model)


@pytest.mark.parametrize("bits", [8, 4, 3, 2, 1])
def test_what_is_refused_is_what_the_library_loses(bits: int) -> None:
    """What it packs comes back whole, for every number of rows; what is refused does not, or cannot be packed."""
    from hqq.core.quantize import Quantizer

    hqq = backends.get("hqq")
    variant = hqq.supports(common.make("hqq", bits, "int", "none", "channel"))
    packing = Quantizer.bit_to_packing[bits]
    for rows in range(1, 33):
        integers = torch.randint(2**bits, (rows, 8), generator=torch.Generator().manual_seed(rows))
        try:
            unpacked = Quantizer.unpack[packing](Quantizer.pack[packing](integers))
            whole = torch.equal(unpacked[:rows] if bits == 3 else unpacked, integers.to(torch.uint8))
        except RuntimeError:
            whole = False
        model: Any = torch.nn.ModuleList([torch.nn.Linear(8, rows)])
        try:
            hqq.quantize(model, ["0"], variant, common.calibrate)
        except UserError:
            assert not whole, rows
        else:
            assert whole, rows
