"""HQQ: weight-only 8, 4, 3, 2 and 1 bits in groups, with half-quadratic optimization of the zero points.

Badri and Shaji 2023, "Half-Quadratic Quantization of Large Machine Learning Models". A checkpoint holds each layer's
`HQQLinear.state_dict()`, which is tensors only, in safetensors: `HQQLinear.load_state_dict` reads it without us.
"""

import dataclasses
import json
from pathlib import Path

from pipeline import backends
from pipeline.core.errors import UserError
from pipeline.core.params import Variant

DEVICES = ("cpu", "cuda")
_LAYERS = "hqq_layers.json"
_GROUP_SIZE = 64


def supports(variant: Variant) -> Variant:
    """Weights only, asymmetric; per group along a row, or per channel (a whole row)."""
    backends.limit("hqq", variant, format=("int",), bits=(8, 4, 3, 2, 1), double_quant=(False,))
    backends.choose("hqq", "activations", variant.activations, ("none",), ": it is weight-only")
    granularity = variant.granularity or "group"
    backends.choose("hqq", "granularity", granularity, ("channel", "group"))
    backends.choose("hqq", "symmetric", bool(variant.symmetric), (False,), ": it always has zero points")
    group_size = (variant.group_size or _GROUP_SIZE) if granularity == "group" else None
    if group_size is not None and group_size % 8:
        raise UserError(f"hqq: group_size {group_size} is not possible (choose a multiple of 8 that divides every row)")
    return dataclasses.replace(variant, granularity=granularity, group_size=group_size, symmetric=False)


def quantize(model: "backends.Whisper", layers: list[str], variant: Variant, calibrate: "backends.Calibrate") -> None:
    """Replace the layers with HQQLinear, computing in fp32 as the baseline does."""
    import torch
    from hqq.core.quantize import BaseQuantizeConfig, HQQLinear

    for name in layers:
        linear = model.get_submodule(name)
        assert isinstance(linear, torch.nn.Linear)
        backends.divides("hqq", variant.group_size, name, linear.in_features)
        config = BaseQuantizeConfig(nbits=variant.bits, group_size=variant.group_size, axis=1)
        quantized = HQQLinear(linear, config, compute_dtype=torch.float32, device=str(linear.weight.device))
        model.set_submodule(name, quantized)


def save(model: "backends.Whisper", variant: Variant, folder: Path) -> None:
    """Write all tensors, and the names of the quantized layers beside them."""
    from hqq.core.quantize import HQQLinear

    from pipeline.whisper import weights

    layers = [name for name, module in model.named_modules() if isinstance(module, HQQLinear)]
    weights.save(model.state_dict(), folder)
    (folder / _LAYERS).write_text(json.dumps(layers, indent=2))


def load(folder: Path, device: str) -> "backends.Whisper":
    """Rebuild each HQQLinear from its own state dict."""
    import torch
    from hqq.core.quantize import HQQLinear

    from pipeline.whisper import weights

    model, layers = weights.load_around(folder, device, lambda _: json.loads((folder / _LAYERS).read_text()))
    for name, own in layers.items():
        layer = HQQLinear(None, None, compute_dtype=torch.float32, device=device, initialize=False)
        layer.load_state_dict(own)
        model.set_submodule(name, layer)
    return model
