"""What the tests of all backends share: the toy Whisper, quantized and saved as `quantize` does."""

import contextlib
import dataclasses
import functools
import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from pipeline import backends, quantize
from pipeline.core import params
from pipeline.core.variant import Variant
from pipeline.whisper.inference import decoding
from pipeline.whisper.model import integers, network, weights
from pipeline.whisper.quantization import sensitivity
from tests import toy
from tests.conftest import ROOT


def _fitting(variant: Variant) -> Variant:
    """Return a variant as the toy can have it: its rows have 64 weights, and scales and names are more of its size."""
    if variant.backend == "gptq":
        return dataclasses.replace(variant, group_size=64)
    return dataclasses.replace(variant, budget=variant.budget + 7) if variant.budget else variant


_ALL = {name: _fitting(variant) for name, variant in params.read(ROOT).variants.items()}
RUNTIMES = {name: variant for name, variant in _ALL.items() if backends.runtime(backends.get(variant.backend))}
"""Those that another engine than PyTorch computes."""
VARIANTS = {name: variant for name, variant in _ALL.items() if name not in RUNTIMES}


@dataclass(frozen=True)
class Saved:
    """A checkpoint, and the model it was made of, as it computes."""

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
    model = weights.load(baseline)
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        if backends.get(variant.backend).LEARNS == "sensitivity":
            sensitivity.write(learned(baseline))
        made, layers = quantize.quantize(model, variant, calibrate)
    return model, made, layers


def saved(baseline: Path, variant: Variant, folder: Path) -> Saved:
    """Quantize the baseline and save it."""
    model, made, layers = quantized(baseline, variant)
    manifest = quantize.save(model, made, layers, [], baseline, folder)
    return Saved(folder, manifest, computing(model, variant))


def computing(model: network.Whisper, variant: Variant) -> network.Whisper:
    """Make a model compute as the checkpoint of it does: integers, once they are saved and read back."""
    if variant.backend == "mixed" and variant.activations == "dynamic":
        integers.multiply(model)
    return model


@functools.cache
def learned(baseline: Path) -> dict[str, sensitivity.Layer]:
    """Return how much the baseline's text depends on each layer: on two sounds, and made up words."""
    vocabulary = decoding.Vocabulary.read(baseline, "en", "transcribe")
    vocabulary = dataclasses.replace(vocabulary, suppressed=vocabulary.prompt)  # real models suppress special tokens
    words = torch.randint(256, (2, 12), generator=torch.Generator().manual_seed(4))
    heard = [
        (sound[None], torch.tensor([[*vocabulary.prompt, *said.tolist()]]))
        for sound, said in zip(toy.features(), words, strict=True)
    ]
    return sensitivity.measure(weights.load(baseline), heard, vocabulary)


def untied(baseline: Path, folder: Path, equal: bool = False) -> Path:
    """Copy the baseline with a head of its own, as the embedding's values or others; return the copy."""
    shutil.copytree(baseline, folder)
    tensors = load_file(folder / "model.safetensors")
    head = tensors["model.decoder.embed_tokens.weight"].clone()
    if not equal:
        head = torch.randn(head.shape, generator=torch.Generator().manual_seed(3)).mul(head.std()).half().float()
    save_file(tensors | {"proj_out.weight": head}, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    return folder
