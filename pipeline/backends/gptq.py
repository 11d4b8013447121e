"""Our own calibrated rounding to few bits: GPTQ on the curvature of the KL divergence, in groups along a row.

Frantar et al. 2023 (arXiv 2210.17323), with columns by falling second moments, static groups whose ranges are searched,
and second moments that count positions by how much the text depends on them (`sensitivity`, beside `rounding`). Stored
as `pipeline.whisper.model.packing` describes; docs/formats.md has a loader into Transformers.
"""

import dataclasses
from pathlib import Path
from typing import Any

from pipeline import backends
from pipeline.core.errors import naming
from pipeline.core.variant import Variant

DEVICES = ("cpu", "cuda")
LEARNS = "sensitivity"
_BITS = (8, 6, 5, 4, 3)
_GROUP_SIZES = (32, 64, 128)


def supports(variant: Variant) -> Variant:
    """Weights only, asymmetric, in groups."""
    backends.limit("gptq", variant, format=("int",), bits=_BITS, double_quant=(False,))
    backends.choose("gptq", "activations", variant.activations, ("none",), ": it is weight-only")
    backends.choose("gptq", "granularity", variant.granularity or "group", ("group",))
    backends.choose("gptq", "group_size", variant.group_size or 64, _GROUP_SIZES)
    backends.choose("gptq", "symmetric", bool(variant.symmetric), (False,), ": it always has zero points")
    return dataclasses.replace(variant, granularity="group", group_size=variant.group_size or 64, symmetric=False)


def quantize(
    model: "backends.Whisper", layers: list[str], variant: Variant, calibrate: "backends.Calibrate"
) -> Variant:
    """Round the layers, and the token embedding as the output head that it is tied to (8 bits are `quantize`'s)."""
    from tqdm import tqdm

    from pipeline.whisper.model import packing
    from pipeline.whisper.quantization import rounding, sensitivity

    assert variant.group_size
    chosen = backends.linear_layers(model, layers)
    todo: list[tuple[str, Any, int]] = [(name, layer, variant.bits) for name, layer in chosen.items()]
    embedding = model.model.decoder.embed_tokens
    if variant.embedding in _BITS[1:] and model.tied and not hasattr(embedding, "packed"):
        todo.append((sensitivity.HEAD, embedding, variant.embedding))
        chosen |= backends.linear_layers(model, [sensitivity.HEAD])
    backends.divides("gptq", variant, chosen, _GROUP_SIZES)
    found = sensitivity.read(model)
    for name, module, bits in tqdm(todo, unit="layer", desc="gptq", disable=None):
        with naming(name, "layer"):
            order = rounding.Order.of(found[name].inputs, sensitivity.damping(name))
        packing.attach(module, rounding.gptq(module.weight, order, bits, variant.group_size))
    return variant


def save(model: "backends.Whisper", variant: Variant, folder: Path) -> None:
    """Write the weights; `packing.shrink`, which comes after, packs them."""
    from pipeline.whisper.model import weights

    weights.save(model.state_dict(), folder)


def load(folder: Path, device: str) -> "backends.Whisper":
    """Read the weights back: `weights.read` unpacks them."""
    from pipeline.whisper.model import weights

    return weights.load(folder, device)
