"""No quantization: the baseline itself goes the same way through the pipeline as what is compared with it."""

import dataclasses
from pathlib import Path

from pipeline import backends
from pipeline.core.variant import Variant

DEVICES = ("cpu", "cuda")
LEARNS = None


def supports(variant: Variant) -> Variant:
    """32 bits are the baseline as it is, 16 its weights in float16; either computes in float32."""
    backends.limit("none", variant, bits=(32, 16), format=("float",), activations=("none",))
    unset: dict[str, tuple[object, ...]] = dict.fromkeys(
        ("granularity", "group_size", "symmetric", "encoder", "decoder"), (None,)
    )
    backends.limit("none", variant, " without quantization", **unset, double_quant=(False,))
    if variant.bits == 32:
        backends.limit("none", variant, " with 32 bits, which are the baseline", embedding=(None,), conv=(None,))
    return dataclasses.replace(variant, rest="float32" if variant.bits == 32 else "float16")


def quantize(
    model: "backends.Whisper", layers: list[str], variant: Variant, calibrate: "backends.Calibrate"
) -> Variant:
    """Leave the model as it is."""
    return variant


def save(model: "backends.Whisper", variant: Variant, folder: Path) -> None:
    """Write the weights as Transformers does."""
    from pipeline.whisper.model import weights

    weights.save(model.state_dict(), folder)


def load(folder: Path, device: str) -> "backends.Whisper":
    """Read the weights back."""
    from pipeline.whisper.model import weights

    return weights.load(folder, device)
