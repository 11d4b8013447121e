"""A checkpoint's folder: written whole, and measured in bytes."""

import dataclasses
import json
import shutil
import struct
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from pipeline.core import files, manifest
from pipeline.core.variant import Variant

_COPIED = "*.json"
"""What a checkpoint takes over from the baseline: config, generation config, tokenizer, feature extractor."""


def save(
    write: Callable[[Path], dict[str, Any]],
    variant: Variant,
    calibration: list[str],
    baseline: Path,
    folder: Path,
) -> dict[str, Any]:
    """Write a checkpoint and its manifest, whole or not at all; return the manifest.

    `write(folder)` writes the weights and what the backend needs beside them, and returns what `measure` does.
    `variant` is as the library made it, its defaults filled in, `calibration` lists the ids of the utterances that
    static activations were calibrated on.
    """
    with files.aside(folder) as partial:
        partial.mkdir(parents=True)
        for file in sorted(baseline.glob(_COPIED)):
            shutil.copyfile(file, partial / file.name)
        measured = write(partial)
        for file in partial.iterdir():
            file.chmod(0o644)  # safetensors' files are their owner's alone, who may not be who serves them
        return manifest.write(partial, {"variant": dataclasses.asdict(variant), "calibration": calibration, **measured})


def measure(weights: Path, layers: dict[str, int], bits: int) -> dict[str, Any]:
    """Count the bytes of model.safetensors by kind, and the bits per quantized weight, scales and zero points included.

    Where no layer is quantized they are `bits`. `quantized` are the layers' weights, `scales` what else is needed to
    read them, `unquantized` the rest: biases, norms, convolutions, embeddings, and the file's header.
    """
    kinds = {"quantized": 0, "scales": 0}
    for name, size in tensor_bytes(weights).items():
        layer = next((layer for layer in layers if name.startswith(f"{layer}.")), None)
        if layer is None or name == f"{layer}.bias":
            continue
        rest = name.removeprefix(f"{layer}.")
        # As torch and bnb, HQQ, `packing`, torchao and quanto name it.
        weight = rest in ("weight", "W_q", "weight.codes", "_weight_qdata") or rest.startswith("weight._data")
        kinds["quantized" if weight else "scales"] += size
    total = weights.stat().st_size
    counted = 8 * sum(kinds.values()) / sum(layers.values()) if layers else bits
    return described(layers, counted, total, **kinds, unquantized=total - sum(kinds.values()))


def described(layers: Iterable[str], bits_per_weight: float, total: int, **kinds: int) -> dict[str, Any]:
    """Return what a manifest says of a checkpoint's weights: `kinds` are bytes, where a file tells them apart."""
    return {
        "layers": list(layers),
        "bytes": {"total": total, **kinds},
        "bits_per_weight": round(float(bits_per_weight), 4),
    }


def tensor_bytes(weights: Path) -> dict[str, int]:
    """Read the size in bytes of each tensor from a safetensors file's header."""
    with weights.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return {name: entry["data_offsets"][1] - entry["data_offsets"][0] for name, entry in header.items()}
