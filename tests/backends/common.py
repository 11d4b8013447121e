"""What the tests of all backends share: the toy Whisper, quantized and saved as `quantize` does."""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
    """Quantize the baseline; return it, the variant with its defaults filled in, and its layers' weights."""
    backend = backends.get(variant.backend)
    variant = backend.supports(variant)
    model = weights.load(baseline)
    chosen = quantize.select(model, variant.include, variant.exclude) if variant.backend != "none" else []
    layers = {}
    for name in chosen:
        linear = model.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        layers[name] = linear.weight.numel()
    backend.quantize(model, chosen, variant, calibrate)
    return model, variant, layers


def saved(baseline: Path, variant: Variant, folder: Path) -> Saved:
    """Quantize the baseline and save it."""
    model, variant, layers = quantized(baseline, variant)
    write = functools.partial(backends.get(variant.backend).save, model, variant)
    return Saved(folder, checkpoint.save(write, variant, layers, [], baseline, folder), model)
