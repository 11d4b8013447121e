"""As many bits to each weight as the text depends on it, within a size: `budget` or `budget_mb`.

`pipeline.whisper.quantization.allocation` spends it on Linear layers and the token embedding; convolutions and
positions have 8 bits, norms and biases are float16. docs/formats.md has a loader into Transformers. With dynamic
activations the same codes are multiplied as integers (`pipeline.whisper.model.integers`).
"""

import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import backends
from pipeline.core.errors import UserError
from pipeline.core.variant import Variant

if TYPE_CHECKING:
    from torch import Tensor, nn

DEVICES = ("cpu", "cuda")
LEARNS = "sensitivity"
_FEWEST = 1.5
"""Bits a weight: what is coarser than that writes no text."""
_UNSPENT = 0.03
"""Share of a budget that is told when it is left over: the search comes nearer."""
_ACTIVATIONS = "activations"
"""Where the file's metadata tell whether its codes are multiplied as integers."""
_NAME = 150
"""Bytes of a tensor's entry at the head of the file, at most."""


def supports(variant: Variant) -> Variant:
    """All that other backends choose follows from the size."""
    if (variant.budget is None) is (variant.budget_mb is None):
        both = "are both set" if variant.budget else "are missing"
        raise UserError(f"mixed: budget and budget_mb {both}; give the checkpoint's size as one of them")
    unset: dict[str, tuple[object, ...]] = dict.fromkeys(
        ("granularity", "group_size", "symmetric", "encoder", "decoder", "embedding", "conv"), (None,)
    )
    where = ": the budget decides"
    backends.limit("mixed", variant, where, bits=(8,), layers=([],), **unset)
    backends.limit("mixed", variant, format=("int",), activations=("none", "dynamic"))
    backends.limit("mixed", variant, double_quant=(False,), rest=("float16",))
    return variant


def quantize(
    model: "backends.Whisper", layers: list[str], variant: Variant, calibrate: "backends.Calibrate"
) -> Variant:
    """Round the layers, and the token embedding where the output head is tied to it; the rest has 8 bits.

    Raises UserError when the budget is too small.
    """
    from pipeline.whisper.model import packing
    from pipeline.whisper.quantization import allocation, rounding, sensitivity

    found = sensitivity.read(model)
    encoder, decoder = model.model.encoder, model.model.decoder
    chosen: dict[str, nn.Module] = {**backends.linear_layers(model, layers)}
    if model.tied and sensitivity.HEAD in chosen:
        raise UserError("mixed: proj_out is tied to the token embedding and rounded with it; put it in exclude")
    if model.tied:
        chosen[sensitivity.HEAD] = decoder.embed_tokens
    for module in (encoder.conv1, encoder.conv2, encoder.embed_positions, decoder.embed_positions):
        packing.attach(module, rounding.nearest(module.weight, 8))
    originals: dict[str, Tensor] = {name: module.weight for name, module in chosen.items()}  # type: ignore[misc]
    weights = sum(weight.numel() for weight in originals.values())
    full = 4 * sum(parameter.numel() for parameter in model.parameters()) / 1e6
    budget = variant.budget_mb or full * (variant.budget or 0) / 100
    left = 1e6 * budget - other_bytes(model, chosen)
    if left < _FEWEST * weights / 8:
        least = budget + (_FEWEST * weights / 8 - left) / 1e6
        what = f"budget_mb {math.ceil(least)}" if variant.budget_mb else f"budget {math.ceil(100 * least / full)}"
        raise UserError(f"mixed: {budget:.1f} MB are too little for this model; give at least {what}")
    best = allocation.fill(originals, found, left)
    if not best:
        more = math.ceil(110 * budget) / 100
        raise UserError(f"mixed: {budget:.2f} MB are too little for this model; give at least budget_mb {more:g}")
    unspent = (left - sum(packed.size() for packed in best.values())) / 1e6
    if unspent > _UNSPENT * budget:
        print(
            f"mixed: {budget - unspent:.1f} of {budget:.1f} MB are used, as a weight has 8 bits at most",
            file=sys.stderr,
        )
    for name, packed in best.items():
        packing.attach(chosen[name], packed)
    return variant


def other_bytes(model: "backends.Whisper", chosen: "dict[str, nn.Module]") -> int:
    """Return the bytes of all but the chosen modules' weights: what is packed already, float16, and the names."""
    from pipeline.whisper.model import packing, weights

    packed = packing.attached(model)
    left = {
        name: tensor
        for name, tensor in model.state_dict().items()
        if name.removesuffix(".weight") not in packed and name.removesuffix(".weight") not in chosen
    }
    if model.tied:  # and rounded, under the head's name
        del left[weights.EMBEDDING]
    tensors = len(left) + 3 * (len(packed) + len(chosen))
    weights_left: int = sum(2 * tensor.numel() for tensor in left.values())
    return sum(each.size() for each in packed.values()) + weights_left + _NAME * tensors


def save(model: "backends.Whisper", variant: Variant, folder: Path) -> None:
    """Write the weights; `packing.shrink`, which comes after, packs them."""
    from pipeline.whisper.model import weights

    weights.save(model.state_dict(), folder, {_ACTIVATIONS: variant.activations})


def load(folder: Path, device: str) -> "backends.Whisper":
    """Read the weights back: in float32, or for dynamic activations as the integers that they are."""
    from pipeline.whisper.model import integers, weights

    if weights.metadata(folder).get(_ACTIVATIONS) != "dynamic":
        return weights.load(folder, device)
    model = weights.load_packed(folder, device)
    integers.multiply(model)
    return model
