import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from pipeline import backends
from pipeline.core import files, manifest
from pipeline.core.variant import Variant
from pipeline.whisper.model import weights
from pipeline.whisper.quantization import checkpoint

NONE = Variant("none", 32, "float")


def writer(baseline: Path) -> Callable[[Path], dict[str, Any]]:
    """Return what writes the weights of the baseline, and measures them."""

    def write(folder: Path) -> dict[str, Any]:
        backends.get("none").save(weights.load(baseline), NONE, folder)
        return checkpoint.measure(folder / "model.safetensors", {}, 32)

    return write


@pytest.fixture
def saved(baseline: Path, tmp_path: Path) -> Path:
    """Return the folder of a checkpoint, just saved."""
    folder = tmp_path / "models" / "fp32"
    checkpoint.save(writer(baseline), NONE, [], baseline, folder)
    return folder


def test_a_checkpoint_is_the_baselines_files_weights_and_a_manifest(baseline: Path, saved: Path) -> None:
    names = ["config.json", "generation_config.json", "model.safetensors", "preprocessor_config.json", "tokenizer.json"]
    assert sorted(file.name for file in saved.iterdir()) == ["checkpoint.json", *names]
    assert {file.stat().st_mode & 0o777 for file in saved.iterdir()} == {0o644}
    written = json.loads((saved / "checkpoint.json").read_text())
    size = (saved / "model.safetensors").stat().st_size
    assert written == manifest.verify(saved)
    assert written == {
        "variant": {
            "backend": "none",
            "bits": 32,
            "format": "float",
            "activations": "none",
            "granularity": None,
            "group_size": None,
            "symmetric": None,
            "double_quant": False,
            "include": ["*"],
            "exclude": ["proj_out"],
            "encoder": None,
            "decoder": None,
            "layers": [],
            "embedding": None,
            "conv": None,
            "rest": "float16",
            "budget": None,
            "budget_mb": None,
        },
        "calibration": [],
        "layers": [],
        "bytes": {"total": size, "quantized": 0, "scales": 0, "unquantized": size},
        "bits_per_weight": 32.0,
        "files": {
            name: files.sha256(baseline / name) for name in names
        },  # unquantized, so the weights are the same too
    }


def test_saving_twice_writes_the_same_bytes(baseline: Path, saved: Path) -> None:
    first = {file.name: file.read_bytes() for file in saved.iterdir()}
    checkpoint.save(writer(baseline), NONE, [], baseline, saved)
    assert {file.name: file.read_bytes() for file in saved.iterdir()} == first


def test_a_failed_save_leaves_the_old_checkpoint_and_nothing_else(
    baseline: Path, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {file.name: file.read_bytes() for file in saved.iterdir()}

    def fail(model: Any, variant: Variant, folder: Path) -> None:  # noqa: ARG001 (a backend's signature)
        (folder / "model.safetensors").write_bytes(b"half of")
        raise OSError("No space left on device")

    monkeypatch.setattr(backends.get("none"), "save", fail)
    for folder in (saved, saved.with_name("new")):
        with pytest.raises(OSError, match="No space left"):
            checkpoint.save(writer(baseline), NONE, [], baseline, folder)
    assert [file.name for file in saved.parent.iterdir()] == ["fp32"]
    assert {file.name: file.read_bytes() for file in saved.iterdir()} == before
    manifest.verify(saved)


def write(file: Path, tensors: dict[str, torch.Tensor]) -> int:
    """Write a safetensors file; return how many bytes its header takes."""
    save_file(tensors, file, {"format": "pt"})
    (length,) = struct.unpack("<Q", file.read_bytes()[:8])
    return 8 + int(length)


NAMES: dict[str, tuple[dict[str, torch.Tensor], int, int]] = {
    # library: a layer of 4 x 16 weights as it names it; bytes of the weights, bytes of what is needed to read them
    "torch": (
        {
            "weight": torch.zeros(4, 16, dtype=torch.int8),
            "weight_scale": torch.zeros(4, dtype=torch.float64),
            "weight_zero_point": torch.zeros(4, dtype=torch.int64),
        },
        64,
        64,
    ),
    "quanto 8 bits": (
        {"weight._data": torch.zeros(4, 16, dtype=torch.int8), "weight._scale": torch.zeros(4, 1)},
        64,
        16,
    ),
    "quanto 4 bits": (
        {
            "weight._data._data": torch.zeros(2, 16, dtype=torch.uint8),
            "weight._scale": torch.zeros(4, 1),
            "weight._shift": torch.zeros(4, 1),
            "input_scale": torch.zeros(()),
        },
        32,
        36,
    ),
    "hqq": (
        {
            "W_q": torch.zeros(2, 16, dtype=torch.uint8),
            "scale": torch.zeros(4, 1),
            "zero": torch.zeros(4, 1),
            "nbits": torch.zeros((), dtype=torch.int32),
        },
        32,
        36,
    ),
    "bnb": (
        {
            "weight": torch.zeros(32, 1, dtype=torch.uint8),
            "weight.absmax": torch.zeros(1),
            "weight.quant_map": torch.zeros(16),
        },
        32,
        68,
    ),
}


@pytest.mark.parametrize("library", NAMES)
def test_measure(library: str, tmp_path: Path) -> None:
    own, quantized, scales = NAMES[library]
    rest = {"a.fc1.bias": torch.zeros(4), "a.fc10.weight": torch.zeros(4, 16), "norm.weight": torch.zeros(16)}
    header = write(tmp_path / "model.safetensors", {f"a.fc1.{name}": tensor for name, tensor in own.items()} | rest)
    unquantized = header + 4 * (4 + 64 + 16)
    assert checkpoint.measure(tmp_path / "model.safetensors", {"a.fc1": 64}, 4) == {
        "layers": ["a.fc1"],
        "bytes": {
            "total": quantized + scales + unquantized,
            "quantized": quantized,
            "scales": scales,
            "unquantized": unquantized,
        },
        "bits_per_weight": (quantized + scales) * 8 / 64,
    }


def test_measure_without_quantization(tmp_path: Path) -> None:
    header = write(tmp_path / "model.safetensors", {"a.fc1.weight": torch.zeros(4, 16)})
    assert checkpoint.measure(tmp_path / "model.safetensors", {}, 32) == {
        "layers": [],
        "bytes": {"total": header + 256, "quantized": 0, "scales": 0, "unquantized": header + 256},
        "bits_per_weight": 32.0,
    }
    assert checkpoint.tensor_bytes(tmp_path / "model.safetensors") == {"a.fc1.weight": 256}
