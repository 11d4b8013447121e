"""The quantization libraries behind one face: a module each, of four functions; nothing else knows a library.

    supports(variant) -> Variant          the variant with the library's defaults filled in; UserError when it cannot
    quantize(model, layers, variant, calibrate)   quantize these Linear layers of the model in place
    save(model, variant, folder)          write model.safetensors, and what else the library's own loaders need
    load(folder, device) -> Whisper       read it back; the backend alone decides how

`calibrate(model)` transcribes the calibration audio with the model while the library watches its activations.
To add a library, add a module here: its file name is the backend's name in params.yaml.
"""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from pipeline.core.errors import UserError, suggestion
from pipeline.core.params import Variant, backends

if TYPE_CHECKING:
    from pipeline.whisper.network import Whisper as Whisper  # the backends' own name for it

    Calibrate = Callable[[Whisper], None]


class Backend(Protocol):
    """What each module here provides."""

    DEVICES: tuple[str, ...]
    """Device types with kernels of the library, the CPU among them: `cpu`, `cuda`."""

    def supports(self, variant: Variant) -> Variant: ...

    def quantize(self, model: "Whisper", layers: list[str], variant: Variant, calibrate: "Calibrate") -> None: ...

    def save(self, model: "Whisper", variant: Variant, folder: Path) -> None: ...

    def load(self, folder: Path, device: str) -> "Whisper": ...


def get(name: str) -> Backend:
    """Import a backend by name; the library itself is imported only when it is used."""
    if name not in backends():
        raise UserError(f"unknown backend {name!r}{suggestion(name, backends())}")
    return cast(Backend, importlib.import_module(f"pipeline.backends.{name}"))


def choose(backend: str, key: str, value: object, choices: tuple[object, ...], where: str = "") -> None:
    """Raise the sentence about a setting that the library lacks.

    >>> choose("hqq", "bits", 5, (8, 4, 3, 2))
    UserError: hqq: bits 5 is not possible (choose 8, 4, 3 or 2)
    """
    if value not in choices:
        words = [_as_yaml(choice) for choice in choices]
        listed = " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
        raise UserError(f"{backend}: {key} {_as_yaml(value)} is not possible{where} (choose {listed})")


def limit(backend: str, variant: Variant, where: str = "", **choices: tuple[object, ...]) -> None:
    """Do the same for settings of a variant, each with what the library accepts."""
    for key, possible in choices.items():
        choose(backend, key, getattr(variant, key), possible, where)


def divides(backend: str, group_size: int | None, layer: str, inputs: int) -> None:
    """Raise UserError when groups of this size do not fill a layer's rows."""
    if group_size and inputs % group_size:
        what = f"group_size {group_size} does not divide the {inputs} inputs of {layer}"
        raise UserError(f"{backend}: {what}; choose one that divides every row, such as 64")


def _as_yaml(value: object) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
