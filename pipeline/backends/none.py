"""No quantization: the baseline itself goes the same way through the pipeline as what is compared with it."""

from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import backends
from pipeline.core.params import Variant

if TYPE_CHECKING:
    from pipeline.backends import Calibrate
    from pipeline.whisper.network import Whisper

DEVICES = ("cpu", "cuda")


def supports(variant: Variant) -> Variant:
    """Accept fp32 and nothing else."""
    backends.choose("none", "bits", variant.bits, (32,))
    backends.choose("none", "format", variant.format, ("float",))
    backends.choose("none", "activations", variant.activations, ("none",))
    for key in ("granularity", "group_size", "symmetric"):
        backends.choose("none", key, getattr(variant, key), (None,), " without quantization")
    backends.choose("none", "double_quant", variant.double_quant, (False,), " without quantization")
    return variant


def quantize(model: "Whisper", layers: list[str], variant: Variant, calibrate: "Calibrate") -> None:
    """Leave the model as it is."""


def save(model: "Whisper", variant: Variant, folder: Path) -> None:
    """Write the weights as Transformers does."""
    from pipeline.whisper import weights

    weights.save(model.state_dict(), folder)


def load(folder: Path, device: str) -> "Whisper":
    """Read the weights back."""
    from pipeline.whisper import weights

    return weights.load(folder, device)
