"""A checkpoint's weights: an empty model in, model.safetensors in and out, as Transformers names and stores them."""

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pipeline.core.errors import UserError
from pipeline.whisper.model import packing
from pipeline.whisper.model.network import Config, Whisper

HEAD, EMBEDDING = "proj_out.weight", "model.decoder.embed_tokens.weight"


def skeleton(folder: Path) -> Whisper:
    """Build the model of a checkpoint's config.json without memory for its weights (on the meta device)."""
    with torch.device("meta"), _Unset():
        return Whisper(Config.read(folder)).eval()


class _Unset(TorchFunctionMode):
    """Leaves new weights as they are: random ones on the meta device make PyTorch import its compiler, for 0.6 s."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function in (nn.init.normal_, nn.init.kaiming_uniform_, nn.init.uniform_):
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return function(*args, **kwargs)


def load(folder: Path, device: str = "cpu") -> Whisper:
    """Load an unquantized checkpoint: config.json and model.safetensors."""
    return load_around(folder, device, lambda _: [])[0]


def load_packed(folder: Path, device: str) -> Whisper:
    """Do the same, and keep the codes of packed weights at their modules, as `packing.attach` does."""
    model, (tensors, packed) = skeleton(folder), _read(folder, device)
    _filled(folder, model, tensors | {name: each.weight() for name, each in packed.items()}, lambda _: [])
    for name, each in packed.items():
        model.get_submodule(name.removesuffix(".weight")).packed = each  # type: ignore[assignment]  # may hold anything
    return model


def filled(folder: Path, tensors: dict[str, Tensor]) -> Whisper:
    """Make the model of a folder's config.json of these tensors; raise UserError where they do not fit."""
    return _filled(folder, skeleton(folder), tensors, lambda _: [])[0]


def load_around(
    folder: Path, device: str, quantized: Callable[[Iterable[str]], list[str]]
) -> tuple[Whisper, dict[str, dict[str, Tensor]]]:
    """Load a checkpoint but for its quantized layers; return the model, and the tensors of each of these layers.

    `quantized` names these layers, given the names of all tensors. Raises UserError when a weight is missing, unknown
    or of another shape.
    """
    return _filled(folder, skeleton(folder), read(folder, device), quantized)


def _filled(
    folder: Path, model: Whisper, tensors: dict[str, Tensor], quantized: Callable[[Iterable[str]], list[str]]
) -> tuple[Whisper, dict[str, dict[str, Tensor]]]:
    layers = {layer: split(tensors, layer) for layer in quantized(tensors)}
    tied = "proj_out" not in layers and head_is_tied(folder, tensors)
    if tied:
        tensors[HEAD] = tensors[EMBEDDING]
    try:
        result = model.load_state_dict(tensors, strict=False, assign=True)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise UserError(f"{folder}: the weights do not fit config.json: {reason}") from None
    optional = {f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")}
    missing = [key for key in result.missing_keys if key not in optional]
    if missing or result.unexpected_keys:
        what = f"lacks {missing[0]!r}" if missing else f"holds the unknown {result.unexpected_keys[0]!r}"
        again = "so it does not fit config.json; fetch or quantize it again"
        raise UserError(f"{folder}: model.safetensors {what}, {again}")
    if tied:
        model.tie()
    return model.requires_grad_(False), layers


def head_is_tied(folder: Path, tensors: dict[str, Tensor]) -> bool:
    """Tell whether a head that is not quantized is the token embedding, as Transformers does.

    It is where config.json says so (as it does by default) and the tensors hold no head of other values.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if not config.get("tie_word_embeddings", True) or EMBEDDING not in tensors:
        return False
    return HEAD not in tensors or torch.equal(tensors[HEAD], tensors[EMBEDDING])


def read(folder: Path, device: str = "cpu") -> dict[str, Tensor]:
    """Read model.safetensors with all packed weights whole; raise UserError when it is missing or cut short."""
    tensors, packed = _read(folder, device)
    return tensors | {name: each.weight() for name, each in packed.items()}


def metadata(folder: Path) -> dict[str, str]:
    """Return what model.safetensors tells beside its tensors; raise UserError when it is missing or cut short."""
    from safetensors import safe_open

    with _readable(folder), safe_open(folder / "model.safetensors", "pt") as file:
        return file.metadata() or {}


def _read(folder: Path, device: str) -> tuple[dict[str, Tensor], dict[str, packing.Packed]]:
    from safetensors import safe_open

    with _readable(folder):
        with safe_open(folder / "model.safetensors", "pt", device=device) as file:
            tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118  # no mapping
        return packing.unpack(tensors, metadata)


@contextlib.contextmanager
def _readable(folder: Path) -> Iterator[None]:
    from safetensors import SafetensorError

    again = "fetch or quantize it again"
    try:
        yield
    except (FileNotFoundError, SafetensorError):
        raise UserError(f"{folder}: model.safetensors is missing or cut short; {again}") from None
    except packing.BROKEN as error:
        raise UserError(
            f"{folder}: model.safetensors holds weights that cannot be unpacked ({error}); {again}"
        ) from None


def save(tensors: dict[str, Any], folder: Path, metadata: dict[str, str] | None = None) -> None:
    """Write model.safetensors as Transformers does: a head that is tied to the token embedding is not stored.

    Raises UserError for the first tensor with NaN or infinity: a model with one writes nonsense, and does not say so.
    """
    from safetensors.torch import save_file

    embedding, head = tensors[EMBEDDING], tensors.get(HEAD)
    tied = isinstance(head, Tensor) and head.data_ptr() == embedding.data_ptr()
    stored = {name: tensor.contiguous() for name, tensor in tensors.items() if not (tied and name == HEAD)}
    for name, tensor in stored.items():
        if tensor.is_floating_point() and not tensor.float().isfinite().all():  # there is no isfinite of float8
            way_out = "put its layer in exclude, or choose a model without such weights"
            raise UserError(f"{name} has values that are not finite; {way_out}")
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"} | (metadata or {}))


def split(tensors: dict[str, Tensor], layer: str) -> dict[str, Tensor]:
    """Take a layer's own tensors out of a checkpoint's, and return them under their names within the layer."""
    own = [key for key in tensors if key.startswith(f"{layer}.")]
    return {key.removeprefix(f"{layer}."): tensors.pop(key) for key in own}
