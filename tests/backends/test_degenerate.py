"""Weights without a spread, with none at all, or beside far larger ones, in everything that the backends support."""

import dataclasses
import itertools
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline import backends
from pipeline.core.variant import Variant
from pipeline.whisper.model import weights
from tests import toy
from tests.backends import common
from tests.backends.test_backends import POSSIBLE

ROWS, SILENT, CONSTANT = "model.decoder.layers.0.fc2", "model.decoder.layers.1.fc1", "model.encoder.layers.0.fc1"
ZERO = {ROWS: [0], SILENT: range(128), "proj_out": [3]}
"""Rows of nothing but zeros, by layer."""


@pytest.fixture(scope="module")
def degenerate(baseline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a toy with a head of its own, so that every backend can quantize it, and every odd row there is."""
    folder = common.untied(baseline, tmp_path_factory.mktemp("degenerate") / "baseline")
    tensors = load_file(folder / "model.safetensors")
    rows = tensors[f"{ROWS}.weight"]
    rows[1, :64] = 0  # a group
    rows[2], rows[3] = 0.3, -0.2
    rows[4] *= 1e-40
    rows[5, 1:], rows[5, 0] = 0, 1e-45  # the least there is: a scale of it is zero
    rows[6] *= 1e4
    tensors[f"{CONSTANT}.weight"].fill_(2**-7)
    tensors[f"{SILENT}.bias"].zero_()  # what follows hears nothing while it is calibrated
    for layer, zero in ZERO.items():
        tensors[f"{layer}.weight"][zero] = 0
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def exact(degenerate: Path) -> Tensor:
    return toy.logits(weights.load(degenerate))


@pytest.mark.parametrize(
    "variant",
    [v for v in itertools.chain(*POSSIBLE.values()) if v.backend != "none"],
    ids=lambda v: "-".join(str(value) for value in dataclasses.astuple(v)[:8]),
)
def test_what_is_supported_works_whatever_the_weights(
    variant: Variant, degenerate: Path, exact: Tensor, tmp_path: Path
) -> None:
    """NaN after quantizing a padding token's row: 0 / 0, and every text is "!!!!"."""
    with_head = variant.bits in (8, 3) or variant.backend in ("quanto", "gptq") or variant.group_size == 8
    whole = dataclasses.replace(variant, exclude=[] if with_head else ["proj_out"])
    made = common.saved(degenerate, whole, tmp_path / "saved")
    model = backends.get(variant.backend).load(tmp_path / "saved", "cpu")
    logits = toy.logits(model)
    assert logits.isfinite().all()
    assert torch.equal(logits, toy.logits(made.model))
    assert not torch.equal(logits, exact)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    before = load_file(degenerate / "model.safetensors")
    assert ROWS in made.manifest["layers"]
    for layer in {*ZERO, CONSTANT} & {*made.manifest["layers"]}:
        rows, inputs = before[f"{layer}.weight"].shape
        bias = before.get(f"{layer}.bias", torch.zeros(rows))
        with torch.no_grad():
            weight = (model.get_submodule(layer)(torch.eye(inputs)) - bias).T
        assert weight.isfinite().all(), layer
        assert (weight[ZERO.get(layer, [])] == 0).all(), layer
