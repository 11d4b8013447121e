"""A checkpoint's weights: an empty model in, model.safetensors in and out, as Transformers names and stores them."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.core.errors import UserError
from pipeline.whisper.network import Config, Whisper


def skeleton(folder: Path) -> Whisper:
    """Build the model of a checkpoint's config.json without memory for its weights (on the meta device)."""
    with torch.device("meta"):
        return Whisper(Config.read(folder)).eval()


def load(folder: Path, device: str = "cpu") -> Whisper:
    """Load an unquantized checkpoint: config.json and model.safetensors."""
    return load_around(folder, device, lambda _: [])[0]


def load_around(
    folder: Path, device: str, quantized: Callable[[Iterable[str]], list[str]]
) -> tuple[Whisper, dict[str, dict[str, Tensor]]]:
    """Load a checkpoint but for its quantized layers; return the model, and the tensors of each of these layers.

    `quantized` names these layers, given the names of all tensors. The head's weight may be left out where it is tied
    to the token embedding. Raises UserError when a weight is missing, unknown or of another shape.
    """
    model, tensors = skeleton(folder), read(folder, device)
    layers = {layer: split(tensors, layer) for layer in quantized(tensors)}
    try:
        result = model.load_state_dict(tensors, strict=False, assign=True)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise UserError(f"{folder}: the weights do not fit config.json: {reason}") from None
    optional = {f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")} | {"proj_out.weight"}
    missing = [key for key in result.missing_keys if key not in optional]
    if missing or result.unexpected_keys:
        what = f"lacks {missing[0]!r}" if missing else f"holds the unknown {result.unexpected_keys[0]!r}"
        again = "so it does not fit config.json; fetch or quantize it again"
        raise UserError(f"{folder}: model.safetensors {what}, {again}")
    if "proj_out.weight" in result.missing_keys:
        model.tie()
    return model.requires_grad_(False), layers


def read(folder: Path, device: str = "cpu") -> dict[str, Tensor]:
    """Read model.safetensors; raise UserError when it is missing or cut short."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(folder / "model.safetensors", device=device)
    except (FileNotFoundError, SafetensorError):
        raise UserError(f"{folder}: model.safetensors is missing or cut short; fetch or quantize it again") from None


def save(tensors: dict[str, Any], folder: Path) -> None:
    """Write model.safetensors as Transformers does: a head that is tied to the token embedding is not stored."""
    from safetensors.torch import save_file

    embedding = tensors["model.decoder.embed_tokens.weight"]
    head = tensors.get("proj_out.weight")
    tied = isinstance(head, Tensor) and head.data_ptr() == embedding.data_ptr()
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items() if not (tied and name == "proj_out.weight")},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )


def split(tensors: dict[str, Tensor], layer: str) -> dict[str, Tensor]:
    """Take a layer's own tensors out of a checkpoint's, and return them under their names within the layer."""
    own = [key for key in tensors if key.startswith(f"{layer}.")]
    return {key.removeprefix(f"{layer}."): tensors.pop(key) for key in own}
