"""As many bits to each weight as the text depends on it, within so many bytes.

Every weight gets the grid whose error costs the text alike (`rounding.scales`), is rounded as GPTQ does, and stored in
a Huffman code, of about as many bits as its entropy. So bits need no search: layers, rows and columns that matter get
more, and one number, the distortion that each weight may cause, meets the size.
"""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from pipeline.core.errors import naming
from pipeline.whisper.model.packing import Packed
from pipeline.whisper.quantization import rounding, sensitivity
from pipeline.whisper.quantization.sensitivity import Layer

_CLOSE, _AIM = 0.985, 0.995
"""Shares of the bytes: what to use at least, and to aim at."""
_GUESSES, _ROUNDS = 10, 4
_FINEST = 1e-30
"""A distortion below any: rows take all codes that there are."""


def fill(originals: Mapping[str, Tensor], found: Mapping[str, Layer], room: float) -> dict[str, Packed]:
    """Round weights as finely as `room` bytes allow: matrices and their sensitivities by name; none where none fit."""
    from tqdm import tqdm

    orders: dict[str, rounding.Order] = {}
    outputs: dict[str, Tensor] = {}
    for name in originals:
        layer = found[name]
        with naming(name, "layer"):
            orders[name] = rounding.Order.of(layer.inputs, sensitivity.damping(name))
        outputs[name] = layer.outputs
    weights = sum(weight.numel() for weight in originals.values())

    def grids(distortion: float) -> dict[str, tuple[Tensor, Tensor]]:
        return {
            name: rounding.scales(weight, outputs[name], orders[name].importance, distortion)
            for name, weight in originals.items()
        }

    def guess(distortion: float) -> int:
        rounded = (rounding.rounded(originals[name], *grid) for name, grid in grids(distortion).items())
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:  # zlib lets others compute
            return sum(pool.map(Packed.size, rounded))

    finest = guess(_FINEST) < _CLOSE * room  # 8 bits are the most that a code has
    distortion, aim = _FINEST if finest else 1e-9, _AIM * room
    for _ in range(0 if finest else _GUESSES):
        size = guess(distortion)
        if abs(size - aim) < (1 - _AIM) * room:
            break
        distortion *= _change(size, aim, weights)
    best: dict[str, Packed] = {}
    largest = 0
    for _ in range(_ROUNDS):
        chosen = tqdm(grids(distortion).items(), unit="layer", desc="mixed", disable=None)
        rounded = {name: rounding.entropy_coded(originals[name], orders[name], *grid) for name, grid in chosen}
        size = sum(packed.size() for packed in rounded.values())
        if largest < size <= room:
            best, largest = rounded, size
        if finest or _CLOSE * room <= size <= room:
            break
        distortion *= _change(size, aim, weights)
    return best


def _change(size: int, aim: float, weights: int) -> float:
    """Return what to multiply the distortion by: with half the step a weight takes a bit more, and it is a square."""
    return float(4 ** (8 * (size - aim) / weights))
