"""As many bits to each weight as the text depends on it, within a size: `budget` or `budget_mb`.

Every weight gets the grid whose error costs the text alike (`rounding.steps`), is rounded as GPTQ does, and stored by
its entropy. So bits need no search: layers, rows and columns that matter get more, and one number, the fineness of all
grids, meets the size. Convolutions and positions have 8 bits, norms and biases are float16.
"""

import math
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import backends
from pipeline.core.errors import UserError
from pipeline.core.params import Variant

if TYPE_CHECKING:
    from torch import Tensor, nn

DEVICES = ("cpu", "cuda")
LEARNS = "data/sensitivity.safetensors"
_FEWEST = 1.5
"""Bits a weight: what is coarser than that writes no text."""
_CLOSE, _AIM = 0.985, 0.995
"""Shares of the budget: what to use at least, and to aim at."""
_GUESSES, _ROUNDS = 10, 4
_NAME = 150
"""Bytes of a tensor's entry at the head of the file, at most."""


def supports(variant: Variant) -> Variant:
    """Weights only; all that other backends choose follows from the size."""
    if (variant.budget is None) is (variant.budget_mb is None):
        both = "are both set" if variant.budget else "are missing"
        raise UserError(f"mixed: budget and budget_mb {both}; give the checkpoint's size as one of them")
    unset: dict[str, tuple[object, ...]] = dict.fromkeys(
        ("granularity", "group_size", "symmetric", "encoder", "decoder", "embedding", "conv"), (None,)
    )
    where = ": the budget decides"
    backends.limit("mixed", variant, where, bits=(8,), layers=([],), **unset)
    backends.limit("mixed", variant, format=("int",), activations=("none",), double_quant=(False,), rest=("float16",))
    return variant


def quantize(
    model: "backends.Whisper", layers: list[str], variant: Variant, calibrate: "backends.Calibrate"
) -> Variant:
    """Round the layers, and the token embedding where the output head is tied to it; the rest has 8 bits.

    Raises UserError when the budget is too small.
    """
    from tqdm import tqdm

    from pipeline.whisper import packing, rounding, sensitivity

    found = sensitivity.read(model)
    encoder, decoder = model.model.encoder, model.model.decoder
    chosen: dict[str, nn.Module] = {**backends.linear_layers(model, layers)}
    if model.tied and sensitivity.HEAD in chosen:
        raise UserError("mixed: proj_out is tied to the token embedding and rounded with it; put it in exclude")
    if model.tied:
        chosen[sensitivity.HEAD] = decoder.embed_tokens
    for module in (encoder.conv1, encoder.conv2, encoder.embed_positions, decoder.embed_positions):
        packing.attach(module, rounding.nearest(module.weight, 8))
    orders = {name: rounding.Order.of(found[name].inputs, sensitivity.damping(name)) for name in chosen}
    originals: dict[str, Tensor] = {name: module.weight for name, module in chosen.items()}  # type: ignore[misc]
    weights = sum(weight.numel() for weight in originals.values())
    full = 4 * sum(parameter.numel() for parameter in model.parameters()) / 1e6
    budget = variant.budget_mb or full * (variant.budget or 0) / 100
    left = 1e6 * budget - _rest(model, chosen)
    if left < _FEWEST * weights / 8:
        least = budget + (_FEWEST * weights / 8 - left) / 1e6
        what = f"budget_mb {math.ceil(least)}" if variant.budget_mb else f"budget {math.ceil(100 * least / full)}"
        raise UserError(f"mixed: {budget:.1f} MB are too little for this model; give at least {what}")

    def grids(fineness: float) -> "dict[str, tuple[Tensor, Tensor]]":
        return {
            name: rounding.steps(weight, found[name].outputs, orders[name].importance, fineness)
            for name, weight in originals.items()
        }

    def guess(fineness: float) -> int:
        return sum(rounding.rounded(originals[name], *grid).size() for name, grid in grids(fineness).items())

    fineness, aim = 1e-9, _AIM * left
    for _ in range(_GUESSES):
        size = guess(fineness)
        if abs(size - aim) < (1 - _AIM) * left:
            break
        fineness *= _change(size, aim, weights)
    best: dict[str, packing.Packed] = {}
    largest = 0
    for _ in range(_ROUNDS):
        found_now = tqdm(grids(fineness).items(), unit="layer", desc="mixed", disable=None)
        rounded = {name: rounding.entropy_coded(originals[name], orders[name], *grid) for name, grid in found_now}
        size = sum(packed.size() for packed in rounded.values())
        if largest < size <= left:
            best, largest = rounded, size
        elif best and size <= largest:  # 8 bits are the most that a code has
            break
        if _CLOSE * left <= size <= left:
            break
        fineness *= _change(size, aim, weights)
    if not best:
        more = math.ceil(110 * budget) / 100
        raise UserError(f"mixed: {budget:.2f} MB are too little for this model; give at least budget_mb {more:g}")
    for name, packed in best.items():
        packing.attach(chosen[name], packed)
    return variant


def _change(size: int, aim: float, weights: int) -> float:
    """Return what to multiply the fineness by: with half the step a weight takes a bit more, and steps are its root."""
    return float(4 ** (8 * (size - aim) / weights))


def _rest(model: "backends.Whisper", chosen: "dict[str, nn.Module]") -> int:
    """Return the bytes of all but the chosen modules' weights: what is packed already, float16, and the names."""
    from pipeline.whisper import packing, weights

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
    from pipeline.whisper import weights

    weights.save(model.state_dict(), folder)


def load(folder: Path, device: str) -> "backends.Whisper":
    """Read the weights back: `weights.read` unpacks them."""
    from pipeline.whisper import weights

    return weights.load(folder, device)
