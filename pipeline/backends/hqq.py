"""HQQ: weight-only 8, 4, 3, 2 and 1 bits in groups, with half-quadratic optimization of the zero points.

Badri and Shaji 2023, "Half-Quadratic Quantization of Large Machine Learning Models". A checkpoint holds each layer's
`HQQLinear.state_dict()`, which is tensors only, in safetensors: `HQQLinear.load_state_dict` reads it without us.
"""

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import backends
from pipeline.core.errors import UserError
from pipeline.core.variant import Variant

if TYPE_CHECKING:
    from torch import Tensor, nn

DEVICES = ("cpu", "cuda")
LEARNS = None
_LAYERS = "hqq_layers.json"
_GROUP_SIZE = 64
_PACKED = {8: 1, 4: 2, 3: 1, 2: 4, 1: 8}
"""Bits to how many groups share bytes, and so must come together. (At 3 bits ten do, and the last are filled up.)"""


def supports(variant: Variant) -> Variant:
    """Weights only, asymmetric; per group along a row, or per channel (a whole row)."""
    backends.limit("hqq", variant, format=("int",), bits=tuple(_PACKED), double_quant=(False,))
    backends.choose("hqq", "activations", variant.activations, ("none",), ": it is weight-only")
    granularity = variant.granularity or "group"
    backends.choose("hqq", "granularity", granularity, ("channel", "group"))
    backends.choose("hqq", "symmetric", bool(variant.symmetric), (False,), ": it always has zero points")
    group_size = (variant.group_size or _GROUP_SIZE) if granularity == "group" else None
    if group_size is not None and group_size % 8:
        raise UserError(f"hqq: group_size {group_size} is not possible (choose a multiple of 8 that divides every row)")
    return dataclasses.replace(variant, granularity=granularity, group_size=group_size, symmetric=False)


def quantize(
    model: "backends.Whisper", layers: list[str], variant: Variant, calibrate: "backends.Calibrate"
) -> Variant:
    """Replace the layers with HQQLinear, computing in fp32 as the baseline does."""
    backends.import_library("hqq.core.quantize")
    import torch
    from hqq.core.quantize import BaseQuantizeConfig, HQQLinear

    chosen = backends.linear_layers(model, layers)
    backends.divides("hqq", variant, chosen, range(8, min(layer.in_features for layer in chosen.values()) + 1, 8))
    _packs(chosen, variant)
    for name, linear in chosen.items():
        config = BaseQuantizeConfig(nbits=variant.bits, group_size=variant.group_size, axis=1)
        quantized = HQQLinear(linear, config, compute_dtype=torch.float32, device=str(linear.weight.device))
        model.set_submodule(name, quantized)
    return variant


def save(model: "backends.Whisper", variant: Variant, folder: Path) -> None:
    """Write all tensors, and the names of the quantized layers beside them."""
    from hqq.core.quantize import HQQLinear

    from pipeline.whisper.model import weights

    layers = [name for name, module in model.named_modules() if isinstance(module, HQQLinear)]
    weights.save(model.state_dict(), folder)
    (folder / _LAYERS).write_text(json.dumps(layers, indent=2))


def load(folder: Path, device: str) -> "backends.Whisper":
    """Rebuild each HQQLinear from its own state dict."""
    backends.import_library("hqq.core.quantize")
    import torch
    from hqq.core.quantize import HQQLinear

    from pipeline.whisper.model import weights

    model, layers = weights.load_around(folder, device, lambda _: json.loads((folder / _LAYERS).read_text()))
    for name, own in layers.items():
        layer = HQQLinear(None, None, compute_dtype=torch.float32, device=device, initialize=False)
        layer.load_state_dict(own)
        model.set_submodule(name, layer)
    return model


def dequantize(layer: Any) -> "Tensor":
    """Return what the layer's weight stands for, in float32."""
    return layer.dequantize()  # type: ignore[no-any-return]


def _packs(layers: "dict[str, nn.Linear]", variant: Variant) -> None:
    """Raise UserError when a layer's groups do not fill the library's bytes: it fails at them, or loses the last."""
    groups = {name: layer.weight.numel() // (variant.group_size or layer.in_features) for name, layer in layers.items()}
    for name, count in groups.items():
        if count % _PACKED[variant.bits]:
            fit = [bits for bits, together in _PACKED.items() if not any(other % together for other in groups.values())]
            choice = f"choose {backends.listed(fit)} bits, or put it in exclude"
            what = f"the {count} groups" if variant.group_size else f"the {count} rows"
            raise UserError(f"hqq: {variant.bits} bits do not pack {what} of {name} ({choice})")
