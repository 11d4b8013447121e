"""No quantization: the baseline itself goes the same way through the pipeline as what is compared with it."""

from pathlib import Path

from pipeline import backends
from pipeline.core.params import Variant

DEVICES = ("cpu", "cuda")


def supports(variant: Variant) -> Variant:
    """Accept fp32 and nothing else."""
    backends.limit("none", variant, bits=(32,), format=("float",), activations=("none",))
    unset: dict[str, tuple[object, ...]] = dict.fromkeys(("granularity", "group_size", "symmetric"), (None,))
    backends.limit("none", variant, " without quantization", **unset, double_quant=(False,))
    return variant


def quantize(
    model: "backends.Whisper", layers: list[str], variant: Variant, calibrate: "backends.Calibrate"
) -> Variant:
    """Leave the model as it is."""
    return variant


def save(model: "backends.Whisper", variant: Variant, folder: Path) -> None:
    """Write the weights as Transformers does."""
    from pipeline.whisper import weights

    weights.save(model.state_dict(), folder)


def load(folder: Path, device: str) -> "backends.Whisper":
    """Read the weights back."""
    from pipeline.whisper import weights

    return weights.load(folder, device)
