import contextlib
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pipeline import backends, quantize
from pipeline.core.errors import UserError
from pipeline.core.variant import Variant
from pipeline.whisper.model import packing, weights
from pipeline.whisper.quantization import rounding, sensitivity
from tests import toy
from tests.backends import common
from tests.backends.common import make

LAYER, EMBEDDING = "model.decoder.layers.1.fc2", "model.decoder.embed_tokens"


def error(folder: Path, baseline: Path) -> float:
    exact, found = toy.logits(weights.load(baseline)), toy.logits(backends.get("gptq").load(folder, "cpu"))
    return float((found - exact).norm() / exact.norm())


@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("bits", [8, 6, 5, 4, 3])
def test_what_a_layer_takes_on_disk(bits: int, size: int, baseline: Path, tmp_path: Path) -> None:
    common.saved(baseline, make("gptq", bits, group_size=size), tmp_path / "saved")
    stored = load_file(tmp_path / "saved/model.safetensors")
    own = {name.removeprefix(f"{LAYER}."): tensor for name, tensor in stored.items() if name.startswith(f"{LAYER}.")}
    assert set(own) == {"weight.codes", "weight.scale", "weight.low", "bias"}
    assert own["weight.codes"].nbytes == 64 * 128 * bits // 8
    assert own["weight.scale"].shape == own["weight.low"].shape == (64, 128 // size)
    assert {tensor.dtype for tensor in stored.values()} == {torch.uint8, torch.float16}


def test_every_layer_has_the_bits_of_its_rule(baseline: Path, tmp_path: Path) -> None:
    variant = make(
        "gptq", 4, encoder=6, decoder=5, layers=["*.v_proj=8", "*.0.self_attn.v_proj=3"], embedding=5, conv=8
    )
    made = common.saved(baseline, variant, tmp_path / "saved")
    bits = {name: packed.bits for name, packed in packing.attached(made.model).items()}
    assert bits.pop("model.encoder.conv1") == bits.pop("model.encoder.conv2") == 8
    assert bits.pop(EMBEDDING) == 5
    assert len(bits) == 32
    for name, found in bits.items():
        value = 3 if name.endswith("0.self_attn.v_proj") else 8
        assert found == (value if name.endswith("v_proj") else 6 if ".encoder." in name else 5), name
    assert made.manifest["variant"]["bits"] == 4
    assert {*made.manifest["layers"]} == {*bits, EMBEDDING, "model.encoder.conv1", "model.encoder.conv2"}


def divergence(baseline: Path, variant: Variant) -> float:
    """Return what the layers' errors cost together, by the measure that is to be small."""
    model, _, layers = common.quantized(baseline, variant)
    exact, learned = weights.load(baseline), common.learned(baseline)
    return sum(
        learned[name].divergence(model.get_parameter(f"{name}.weight") - exact.get_parameter(f"{name}.weight"))
        for name in layers
    )


def test_more_bits_and_smaller_groups_lose_less(baseline: Path) -> None:
    tried = ((3, 64), (3, 32), (4, 64), (4, 32), (5, 64), (6, 64), (8, 64))
    lost = [divergence(baseline, make("gptq", bits, group_size=size)) for bits, size in tried]
    assert lost == sorted(lost, reverse=True)
    assert lost[-1] < lost[0] / 300


@pytest.mark.parametrize("bits", [4, 3])
def test_what_the_layers_hear_decides(bits: int, baseline: Path) -> None:
    model, _, layers = common.quantized(baseline, make("gptq", bits))
    exact, plain = weights.load(baseline), 0.0
    for name in layers:
        weight, found = exact.get_parameter(f"{name}.weight"), common.learned(baseline)[name]
        nearest = found.divergence(rounding.nearest(weight, bits).weight() - weight)
        assert found.divergence(model.get_parameter(f"{name}.weight") - weight) < nearest, name
        plain += nearest
    assert divergence(baseline, make("gptq", bits)) < 0.8 * plain


@pytest.mark.parametrize("bits", [6, 5, 4])
def test_the_embedding_is_rounded_as_the_head(bits: Any, baseline: Path, tmp_path: Path) -> None:
    made = common.saved(baseline, make("gptq", 4, embedding=bits), tmp_path / "saved")
    model = backends.get("gptq").load(tmp_path / "saved", "cpu")
    assert model.proj_out.weight is model.model.decoder.embed_tokens.weight
    assert made.model.proj_out.weight is made.model.model.decoder.embed_tokens.weight
    packed = packing.attached(made.model)[EMBEDDING]
    assert (packed.bits, packed.shape) == (bits, (261, 64))
    exact = weights.load(baseline).get_parameter("proj_out.weight")
    head = common.learned(baseline)["proj_out"]
    plain = rounding.nearest(exact, bits).weight()
    assert head.divergence(packed.weight() - exact) < 0.9 * head.divergence(plain - exact)


def test_other_speech_makes_other_codes(baseline: Path, tmp_path: Path) -> None:
    learned = common.learned(baseline)
    flat = {name: dataclasses.replace(layer, inputs=torch.eye(len(layer.inputs))) for name, layer in learned.items()}
    made = []
    for each in (learned, flat):
        with contextlib.chdir(tmp_path):
            sensitivity.write(each)
            model = weights.load(baseline)
            quantize.quantize(model, make("gptq", 4), common.calibrate)
        made.append(packing.attached(model)[LAYER].codes)
    assert not torch.equal(*made)


def refusal(baseline: Path, variant: Variant) -> str:
    with pytest.raises(UserError) as raised:
        quantize.quantize(weights.load(baseline), variant, common.calibrate)
    return str(raised.value)


@pytest.mark.parametrize("variant", [make("gptq", 4), make("mixed", budget=25.0)], ids=lambda v: str(v.backend))
def test_without_a_sensitivity_is_one_sentence(
    variant: Variant, baseline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert refusal(baseline, variant) == (
        "data/sensitivity.safetensors is not here; run 'python -m pipeline.sensitivity' first"
    )


@pytest.mark.parametrize("variant", [make("gptq", 4), make("mixed", budget=25.0)], ids=lambda v: str(v.backend))
@pytest.mark.parametrize("other", ["another width", "fewer layers"])
def test_a_sensitivity_of_another_model_is_one_sentence(
    other: str, variant: Variant, baseline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    learned = dict(common.learned(baseline))
    if other == "another width":
        learned[LAYER] = sensitivity.Layer(torch.eye(64), torch.ones(64) / 64)
    else:
        del learned[LAYER]
    sensitivity.write(learned)
    assert refusal(baseline, variant) == (
        f"data/sensitivity.safetensors is of another model, as {LAYER} differs; "
        "run 'python -m pipeline.sensitivity' again"
    )


def test_groups_that_do_not_fill_a_row(baseline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    sensitivity.write(common.learned(baseline))
    assert refusal(baseline, make("gptq", 4, group_size=128)) == (
        "gptq: group_size 128 does not divide the 64 inputs of model.encoder.layers.0.self_attn.q_proj "
        "(choose 32 or 64, or put such layers in exclude)"
    )


def test_a_head_that_is_tied_is_not_rounded_twice(baseline: Path) -> None:
    assert refusal(baseline, make("gptq", 4, exclude=[], embedding=8)) == (
        "embedding: proj_out is tied to the token embedding and quantized with it; put it in exclude"
    )


def test_a_head_of_its_own_is_rounded_as_a_layer_or_with_the_embeddings_bits(baseline: Path, tmp_path: Path) -> None:
    source = common.untied(baseline, tmp_path / "baseline")
    common.saved(source, make("gptq", 4, exclude=[], embedding=8), tmp_path / "layer")
    common.saved(source, make("gptq", 4, embedding=5), tmp_path / "rest")
    for name, bits, other in (("layer", 4, 8), ("rest", 5, 5)):
        stored = load_file(tmp_path / name / "model.safetensors")
        planes = -(-261 * 64 // 8)
        assert len(stored["proj_out.weight.codes"]) == bits * planes
        assert len(stored[f"{EMBEDDING}.weight.codes"]) == other * planes
    assert error(tmp_path / "layer", source) < 0.15
