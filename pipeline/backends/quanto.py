"""Optimum-Quanto: weight-only int8, int4, int2 and float8, and int8 with calibrated activations.

Checkpoints are quanto's own, model.safetensors and quanto_qmap.json, as `QuantizedTransformersModel` writes them:
`optimum.quanto.requantize` loads them into Transformers' Whisper.
"""

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pipeline import backends
from pipeline.core.errors import UserError
from pipeline.core.variant import Variant

if TYPE_CHECKING:
    from torch import Tensor

DEVICES = ("cpu", "cuda")
LEARNS = "calibration"
_TYPES = {("int", 8): "qint8", ("int", 4): "qint4", ("int", 2): "qint2", ("float", 8): "qfloat8"}


def supports(variant: Variant) -> Variant:
    """8 bits go with a scale per channel, fewer with groups whose size quanto chooses: 128 or less, see `quantize`."""
    backends.limit("quanto", variant, format=("int", "float"), double_quant=(False,))
    possible = tuple(bits for kind, bits in _TYPES if kind == variant.format)
    backends.limit("quanto", variant, f" with format {variant.format}", bits=possible)
    backends.limit("quanto", variant, activations=("none", "static"))
    if variant.activations == "static":
        backends.limit("quanto", variant, " with activations static", bits=(8,), format=("int",))
    grouped = variant.bits < 8
    granularity: Literal["group", "channel"] = "group" if grouped else "channel"
    where = f" with {variant.bits} bits"
    backends.choose("quanto", "granularity", variant.granularity or granularity, (granularity,), where)
    backends.choose("quanto", "group_size", variant.group_size, (None, 128) if grouped else (None,), where)
    symmetric = not grouped if variant.symmetric is None else variant.symmetric
    backends.choose("quanto", "symmetric", symmetric, (not grouped,), where)
    group_size = 128 if grouped else None
    return dataclasses.replace(variant, granularity=granularity, group_size=group_size, symmetric=symmetric)


def quantize(
    model: "backends.Whisper", layers: list[str], variant: Variant, calibrate: "backends.Calibrate"
) -> Variant:
    """Quantize with `optimum.quanto.quantize`, `Calibration` and `freeze`.

    The variant comes back with the groups' true size, the smallest where layers differ. quanto chooses it for each
    layer: 128, 96, 64 or 32, whichever divides the row first; the whole row where none does, or where it is shorter.
    """
    _import()
    from optimum import quanto

    static = variant.activations == "static"
    quanto.quantize(
        model,
        weights=quanto.qtypes[_TYPES[variant.format, variant.bits]],
        activations=quanto.qint8 if static else None,
        optimizer=_optimizer(variant),
        include=layers,
    )
    if static:
        _keep_outputs(model)
        with quanto.Calibration():
            calibrate(model)
    quanto.freeze(model)
    if variant.group_size is None:
        return variant
    quantized: list[Any] = [model.get_submodule(name) for name in layers]
    smallest = min(layer.weight_group_size or layer.in_features for layer in quantized)
    return dataclasses.replace(variant, group_size=smallest)


def save(model: "backends.Whisper", variant: Variant, folder: Path) -> None:
    """Write the state dict and the quantization map."""
    from optimum import quanto

    from pipeline.whisper.model import weights

    weights.save(model.state_dict(), folder)
    (folder / "quanto_qmap.json").write_text(json.dumps(quanto.quantization_map(model), indent=4))


def load(folder: Path, device: str) -> "backends.Whisper":
    """Read the checkpoint back with `optimum.quanto.requantize`."""
    _import()
    import torch
    from optimum import quanto

    from pipeline.whisper.model import weights

    model = weights.skeleton(folder)
    tensors = weights.read(folder)
    quantization_map = json.loads((folder / "quanto_qmap.json").read_text())
    tied = "proj_out" not in quantization_map and weights.head_is_tied(folder, tensors)
    if tied:
        tensors[weights.HEAD] = tensors[weights.EMBEDDING]
    quanto.requantize(model, tensors, quantization_map, device=torch.device(device))
    missing = set(model.state_dict()) - set(tensors)  # requantize leaves these uninitialized, without a word
    if missing:
        raise UserError(f"{folder}: model.safetensors lacks {min(missing)!r}; quantize it again")
    if tied:
        model.tie()
    if any(entry["activations"] != "none" for entry in quantization_map.values()):
        _keep_outputs(model)
    return model.requires_grad_(False)


def dequantize(layer: Any) -> "Tensor":
    """Return what the layer's weight stands for, in float32."""
    return layer.weight.dequantize()  # type: ignore[no-any-return]


def _optimizer(variant: Variant) -> Any:
    """Return what chooses the scales, as quanto does by default, but never 0: 0 / 0 of a row of zeros is no number."""
    from optimum.quanto import AbsmaxOptimizer, MaxOptimizer

    class Symmetric(AbsmaxOptimizer):  # type: ignore[misc]  # quanto has no types
        def optimize(self, *arguments: Any) -> Any:
            scale = super().optimize(*arguments)
            return scale.masked_fill(scale == 0, 1)

    class Affine(MaxOptimizer):  # type: ignore[misc]
        def optimize(self, *arguments: Any) -> Any:
            scale, shift = super().optimize(*arguments)
            return scale.masked_fill(scale == 0, 1), shift

    return Symmetric() if variant.symmetric else Affine()


def _keep_outputs(model: "backends.Whisper") -> None:
    """Leave quantized layers' outputs in floating point, as what follows a Linear layer in Whisper is not quantized.

    quanto's own streamlining decides the same for every layer; its checkpoints do not record it.
    """
    from optimum.quanto.nn import QModuleMixin

    for module in model.modules():
        if isinstance(module, QModuleMixin):
            module.disable_output_quantization()


def _import() -> None:
    """Import quanto without Transformers (2 s, for models that it would wrap), and unpack by PyTorch's operators.

    It would compile an extension for int4 and int2 at first use, with the same integers as the result: half a minute,
    and a failure where there is no compiler.
    """
    from types import SimpleNamespace

    backends.import_library("optimum.quanto", "transformers")
    import torch
    from optimum.quanto.library.extensions import get_extension, is_extension_available

    def unpack(packed: torch.Tensor, bits: int) -> torch.Tensor:
        return torch.cat([(packed >> shift) & (2**bits - 1) for shift in range(0, 8, bits)])

    for name in ("quanto_cpp", "quanto_cuda"):
        if is_extension_available(name):
            get_extension(name)._lib = SimpleNamespace(unpack=unpack)
