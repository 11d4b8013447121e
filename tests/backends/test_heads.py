"""The output head: kept as the checkpoint has it, tied to the token embedding or not, quantized or not."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline import backends
from pipeline.core.errors import UserError
from pipeline.whisper.model import weights
from tests import toy
from tests.backends import common
from tests.backends.common import VARIANTS

_FOUR_BITS = (
    "hqq-int4",
    "hqq-int4-whole",
    "hqq-int2",
    "bnb-fp4",
    "bnb-nf4",
    "bnb-nf4-dq",
    "bnb-nf4-whole",
    "torchao-int4",
)
INCLUDED = [name for name in VARIANTS if name not in _FOUR_BITS and VARIANTS[name].backend not in ("none", "mixed")]
"""Variants that can quantize a head of 261 rows, as the toy's: hqq packs them at 8 and 3 bits, bnb takes 8 bits."""


@pytest.fixture(scope="module")
def untied(baseline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return common.untied(baseline, tmp_path_factory.mktemp("untied") / "baseline")


@pytest.mark.parametrize("name", VARIANTS)
def test_a_head_of_its_own_is_kept(name: str, untied: Path, tmp_path: Path) -> None:
    """A head that is not tied becomes the embedding on reloading: fine-tuned checkpoints untie it."""
    variant = dataclasses.replace(VARIANTS[name], exclude=["proj_out"], embedding=None)
    model = common.saved(untied, variant, tmp_path / "saved").model
    reloaded = backends.get(variant.backend).load(tmp_path / "saved", "cpu")
    head = load_file(untied / "model.safetensors")["proj_out.weight"]
    assert torch.equal(reloaded.proj_out.weight, head)
    assert torch.equal(load_file(tmp_path / "saved/model.safetensors")["proj_out.weight"].float(), head)
    assert torch.equal(toy.logits(reloaded), toy.logits(model))


@pytest.mark.parametrize("name", INCLUDED)
def test_a_head_of_its_own_is_quantized(name: str, untied: Path, tmp_path: Path) -> None:
    """The wrong matrix is quantized as the head: sizes look right, the text is nonsense."""
    variant = dataclasses.replace(VARIANTS[name], include=["proj_out"], exclude=[], embedding=None, conv=None)
    made = common.saved(untied, variant, tmp_path / "saved")
    reloaded = backends.get(variant.backend).load(tmp_path / "saved", "cpu")
    assert made.manifest["layers"] == ["proj_out"]
    assert torch.equal(toy.logits(reloaded), toy.logits(made.model))
    exact = toy.logits(weights.load(untied))
    error = (toy.logits(reloaded) - exact).norm() / exact.norm()
    assert 0 < error < (0.7 if variant.bits == 2 else 0.3)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("name", ["fp16", "quanto-int8", "hqq-int4", "gptq-int4"])
def test_a_head_of_its_own_has_the_bits_of_the_embedding(name: str, bits: Any, untied: Path, tmp_path: Path) -> None:
    variant = dataclasses.replace(VARIANTS[name], exclude=["proj_out"], embedding=bits)
    made = common.saved(untied, variant, tmp_path / "saved")
    assert {"proj_out", "model.decoder.embed_tokens"} <= {*made.manifest["layers"]}
    reloaded = backends.get(variant.backend).load(tmp_path / "saved", "cpu")
    assert torch.equal(toy.logits(reloaded), toy.logits(made.model))
    assert not torch.equal(reloaded.proj_out.weight, reloaded.model.decoder.embed_tokens.weight)
    exact = load_file(untied / "model.safetensors")["proj_out.weight"]
    assert 0 < (reloaded.proj_out.weight - exact).norm() / exact.norm() < 2.0**-bits * 2.5


@pytest.mark.parametrize("name", ["fp32", "torch-int8-dynamic", "quanto-int8", "hqq-int4", "bnb-nf4", "gptq-int4"])
def test_a_head_that_happens_to_equal_the_embedding(name: str, baseline: Path, tmp_path: Path) -> None:
    """A freshly untied head, not trained yet, is merged with the embedding, so that its file lacks a tensor."""
    source = common.untied(baseline, tmp_path / "baseline", equal=True)
    variant = dataclasses.replace(VARIANTS[name], exclude=["proj_out"], embedding=None)
    common.saved(source, variant, tmp_path / "saved")
    assert "proj_out.weight" in load_file(tmp_path / "saved/model.safetensors")
    reloaded = backends.get(variant.backend).load(tmp_path / "saved", "cpu")
    assert reloaded.proj_out.weight.data_ptr() != reloaded.model.decoder.embed_tokens.weight.data_ptr()


@pytest.mark.parametrize("name", ["fp32", "torch-int8-dynamic", "quanto-int4", "hqq-int4", "bnb-nf4"])
def test_a_tied_head_that_is_stored_too(name: str, baseline: Path, tmp_path: Path) -> None:
    """Both copies of tied weights are in the file: the model grows by a vocabulary."""
    source = shutil.copytree(baseline, tmp_path / "baseline")
    tensors = load_file(source / "model.safetensors")
    tensors["proj_out.weight"] = tensors["model.decoder.embed_tokens.weight"].clone()
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    made = common.saved(source, VARIANTS[name], tmp_path / "saved")
    assert "proj_out.weight" not in load_file(tmp_path / "saved/model.safetensors")
    stored = load_file(tmp_path / "saved/model.safetensors") | {"proj_out.weight": tensors["proj_out.weight"]}
    save_file(stored, tmp_path / "saved/model.safetensors")
    for model in (made.model, backends.get(VARIANTS[name].backend).load(tmp_path / "saved", "cpu")):
        assert model.proj_out.weight is model.model.decoder.embed_tokens.weight


@pytest.mark.parametrize("name", ["fp32", "quanto-int4", "hqq-int4"])
def test_a_head_that_should_be_there(name: str, untied: Path, tmp_path: Path) -> None:
    """A checkpoint says untied and lacks the head: it is made up instead."""
    variant = dataclasses.replace(VARIANTS[name], exclude=["proj_out"])
    folder = common.saved(untied, variant, tmp_path / "saved").folder
    tensors = load_file(folder / "model.safetensors")
    del tensors["proj_out.weight"]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"model\.safetensors lacks 'proj_out\.weight'"):
        backends.get(variant.backend).load(folder, "cpu")
