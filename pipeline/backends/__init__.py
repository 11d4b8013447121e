"""The quantization libraries behind one face: a module each, of four functions; nothing else knows a library.

    supports(variant) -> Variant          the variant with the library's defaults filled in; UserError when it cannot
    quantize(model, layers, variant, calibrate) -> Variant
                                          quantize these Linear layers in place; the variant as the library made it;
                                          UserError, before any layer is changed, when one of them does not fit
    save(model, variant, folder)          write model.safetensors, and what else the library's own loaders need
    load(folder, device) -> Whisper       read it back; the backend alone decides how

A runtime other than PyTorch brings its own engine (`Runtime`): `load` returns that, and `save` quantizes.
`calibrate(model)` transcribes the calibration audio with the model while the library watches its activations.
To add a library, add a module here: its file name is the backend's name in params.yaml.
"""

import dataclasses
import importlib
import importlib.util
import logging
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, cast, runtime_checkable

from pipeline.core.errors import UserError, naming, suggestion
from pipeline.core.variant import Variant, backend_names

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pipeline.whisper.inference.decoding import Engine
    from pipeline.whisper.model.network import Whisper as Whisper  # the backends' own name for it

    Calibrate = Callable[[Whisper], None]


class Backend(Protocol):
    """What each module here provides."""

    DEVICES: tuple[str, ...]
    """Device types with kernels of the library, the CPU among them: `cpu`, `cuda`."""

    LEARNS: Literal["calibration", "sensitivity"] | None
    """Which of the two it takes from the calibration speech, if any: other speech then reruns its variants."""

    def supports(self, variant: Variant) -> Variant: ...

    def quantize(self, model: "Whisper", layers: list[str], variant: Variant, calibrate: "Calibrate") -> Variant: ...

    def save(self, model: "Whisper", variant: Variant, folder: Path) -> None: ...

    def load(self, folder: Path, device: str) -> "Whisper": ...


@runtime_checkable
class Dequantizing(Protocol):
    """What a module provides besides where the library puts another layer in the place of a Linear one."""

    def dequantize(self, layer: "nn.Module") -> "Tensor":
        """Return what the layer's weight stands for, in float32."""
        ...


class Runtime(Protocol):
    """What a module provides besides where another engine than PyTorch computes its checkpoints."""

    FILE: str
    """The file with the weights."""

    def measure(self, model: "Whisper", variant: Variant) -> tuple[dict[str, int], float]:
        """Return the weights of each layer that is quantized, and the bits of one, scales included."""
        ...

    def load(self, folder: Path, device: str) -> "Engine": ...


def runtime(backend: Backend) -> Runtime | None:
    """Return the backend where it is a runtime of its own."""
    return cast(Runtime, backend) if hasattr(backend, "measure") else None


def load(name: str, folder: Path, device: str) -> "Whisper | Engine":
    """Read a checkpoint of this backend back."""
    backend = get(name)
    return (runtime(backend) or backend).load(folder, device)


def get(name: str) -> Backend:
    """Import a backend by name; the library itself is imported only when it is used."""
    if name not in backend_names():
        raise UserError(f"unknown backend {name!r}{suggestion(name, backend_names())}")
    return cast(Backend, importlib.import_module(f"pipeline.backends.{name}"))


def check(variant: Variant) -> None:
    """Raise UserError when the library cannot do the variant, or the bits that parts of the model get."""
    backend = get(variant.backend)
    if variant.backend != "mixed" and (variant.budget, variant.budget_mb) != (None, None):
        raise UserError(f"{variant.backend}: a budget goes with backend 'mixed', which spends it; set it to null")
    backend.supports(variant)
    parts = [("key", "encoder", variant.encoder), ("key", "decoder", variant.decoder)]
    parts += [("layers", rule, int(rule.rpartition("=")[2])) for rule in variant.layers]
    for kind, name, bits in parts:
        if bits:
            with naming(name, kind):
                backend.supports(dataclasses.replace(variant, bits=bits))


def import_library(module: str, *unneeded: str) -> None:
    """Import a library without what comes along: torchao's warnings, PyTorch's compiler, packages it does not need.

    `torch.compile` decorates methods of hqq and bitsandbytes that nothing here calls: it takes 1.5 s in every process.
    """
    import torch

    compiler, hidden = torch.compile, [name for name in unneeded if name not in sys.modules]
    torch.compile = _leave  # type: ignore[assignment]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # None: as if it were not installed
    logging.disable(logging.WARNING)
    try:
        importlib.import_module(module)
    finally:
        logging.disable(logging.NOTSET)
        for name in hidden:
            del sys.modules[name]
        torch.compile = compiler


def _leave(function: object = None, **_: object) -> object:
    return _leave if function is None else function


def choose(backend: str, key: str, value: object, choices: tuple[object, ...], where: str = "") -> None:
    """Raise the sentence about a setting that the library lacks.

    >>> choose("hqq", "bits", 5, (8, 4, 3, 2))
    UserError: hqq: bits 5 is not possible (choose 8, 4, 3 or 2)
    """
    if value not in choices:
        raise UserError(f"{backend}: {key} {_as_yaml(value)} is not possible{where} (choose {listed(choices)})")


def limit(backend: str, variant: Variant, where: str = "", **choices: tuple[object, ...]) -> None:
    """Do the same for settings of a variant, each with what the library accepts."""
    for key, possible in choices.items():
        choose(backend, key, getattr(variant, key), possible, where)


def whole(backend: str, variant: Variant) -> None:
    """Raise UserError for settings that single out a part of the model: a runtime quantizes all that it can."""
    parts: dict[str, tuple[object, ...]] = dict.fromkeys(("encoder", "decoder", "embedding", "conv"), (None,))
    where = ": it quantizes all matrices alike"
    limit(backend, variant, where, include=(["*"],), exclude=(["proj_out"], []), layers=([],), **parts)
    limit(backend, variant, double_quant=(False,))


def installed(backend: str, module: str, package: str | None = None) -> Path:
    """Return where a module is installed; raise UserError where it is not."""
    found = importlib.util.find_spec(module)
    if found is None or found.origin is None:
        what = f"the package {package or module} is not installed"
        raise UserError(
            f"{backend}: {what}; remove .venv/.installed and run 'make run' again, or leave the variant out"
        )
    return Path(found.origin)


def linear_layers(model: "Whisper", layers: list[str]) -> "dict[str, nn.Linear]":
    """Return the Linear layers of these names."""
    return {name: cast("nn.Linear", model.get_submodule(name)) for name in layers}


def divides(backend: str, variant: Variant, linear: "dict[str, nn.Linear]", sizes: Iterable[int]) -> None:
    """Raise UserError when groups do not fill a layer's rows; it names those of the library's sizes that fill all."""
    for name, layer in linear.items():
        if variant.group_size and layer.in_features % variant.group_size:
            fit = [size for size in sizes if not any(other.in_features % size for other in linear.values())]
            choice = f"choose {listed(fit)}" if fit else "none that it has divides every row: choose another backend"
            what = f"group_size {variant.group_size} does not divide the {layer.in_features} inputs of {name}"
            raise UserError(f"{backend}: {what} ({choice}, or put such layers in exclude)")


def listed(choices: Sequence[object]) -> str:
    """Join choices as a sentence does: "8, 4 or 2"."""
    words = [_as_yaml(choice) for choice in choices]
    return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _as_yaml(value: object) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
