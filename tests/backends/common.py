"""What the tests of all backends share: the toy Whisper, quantized and saved as `quantize` does."""

import functools
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from pipeline import backends, quantize
from pipeline.core import params
from pipeline.core.params import Variant
from pipeline.whisper import checkpoint, network, weights
from tests import toy
from tests.conftest import ROOT

VARIANTS = params.read(ROOT).variants


@dataclass(frozen=True)
class Saved:
    """A checkpoint, and the model it was made of."""

    folder: Path
    manifest: dict[str, Any]
    model: network.Whisper


def make(*settings: Any, **more: Any) -> Variant:
    """Make a Variant of values that are not checked, as plain texts are."""
    return Variant(*settings, **more)


def calibrate(model: network.Whisper) -> None:
    """Let the model hear something."""
    toy.logits(model)


def quantized(baseline: Path, variant: Variant) -> tuple[network.Whisper, Variant, dict[str, int]]:
    """Quantize the baseline; return it, the variant as the library made it, and its layers' weights."""
    backend = backends.get(variant.backend)
    variant = backend.supports(variant)
    model = weights.load(baseline)
    chosen = quantize.select(model, variant.include, variant.exclude) if variant.backend != "none" else []
    layers = {}
    for name in chosen:
        linear = model.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        layers[name] = linear.weight.numel()
    return model, backend.quantize(model, chosen, variant, calibrate), layers


def saved(baseline: Path, variant: Variant, folder: Path) -> Saved:
    """Quantize the baseline and save it."""
    model, variant, layers = quantized(baseline, variant)
    write = functools.partial(backends.get(variant.backend).save, model, variant)
    return Saved(folder, checkpoint.save(write, variant, layers, [], baseline, folder), model)


def untied(baseline: Path, folder: Path, equal: bool = False) -> Path:
    """Copy the baseline with a head of its own, as the embedding's values or others; return the copy."""
    shutil.copytree(baseline, folder)
    tensors = load_file(folder / "model.safetensors")
    head = tensors["model.decoder.embed_tokens.weight"].clone()
    if not equal:
        head = torch.randn(head.shape, generator=torch.Generator().manual_seed(3)) * head.std()
    save_file(tensors | {"proj_out.weight": head}, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    return folder
