import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipeline import backends, quantize
from pipeline.core.errors import UserError
from pipeline.core.variant import Variant
from pipeline.whisper.model import integers, packing, weights
from pipeline.whisper.quantization import sensitivity
from tests import toy
from tests.backends import common
from tests.backends.common import make

EMBEDDING = "model.decoder.embed_tokens"


def full(baseline: Path) -> int:
    """Return fp32's bytes, without the file's header."""
    return sum(tensor.nbytes for tensor in load_file(baseline / "model.safetensors").values())


def size(folder: Path) -> int:
    return (folder / "model.safetensors").stat().st_size


def error(folder: Path, baseline: Path) -> float:
    exact, found = toy.logits(weights.load(baseline)), toy.logits(backends.get("mixed").load(folder, "cpu"))
    return float((found - exact).norm() / exact.norm())


def refusal(baseline: Path, variant: Variant, folder: Path) -> str:
    with pytest.raises(UserError) as raised:
        common.saved(baseline, variant, folder)
    assert not folder.exists()
    return str(raised.value)


@pytest.mark.parametrize("budget", [24.0, 22.0, 20.0, 18.0, 17.0])
def test_the_size_is_what_is_asked_for(budget: float, baseline: Path, tmp_path: Path) -> None:
    common.saved(baseline, make("mixed", budget=budget), tmp_path / "share")
    allowed = full(baseline) * budget / 100
    assert 0.97 * allowed <= size(tmp_path / "share") <= allowed
    common.saved(baseline, make("mixed", budget_mb=allowed / 1e6), tmp_path / "mb")
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("share", "mb")]
    assert files[0] == files[1]


def test_a_budget_for_more_than_eight_bits_is_not_spent_and_said_so(
    baseline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for budget in (60.0, 100.0):
        made = common.saved(baseline, make("mixed", budget=budget), tmp_path / str(budget))
        assert 0.2 * full(baseline) < size(tmp_path / str(budget)) < 0.3 * full(baseline)
        codes = [packed.codes for packed in packing.attached(made.model).values() if packed.bits is None]
        assert all(each.abs().max() == 127 for each in codes)
        assert re.search(rf"mixed: \d\.\d of {budget * full(baseline) / 1e8:.1f} MB are used", capsys.readouterr().err)
    common.saved(baseline, make("mixed", budget=24.0), tmp_path / "all of it")
    assert "are used" not in capsys.readouterr().err


def test_a_larger_budget_loses_less(baseline: Path, tmp_path: Path) -> None:
    lost = []
    for budget in (17.0, 19.0, 21.0, 24.0):
        common.saved(baseline, make("mixed", budget=budget), tmp_path / str(budget))
        lost.append(error(tmp_path / str(budget), baseline))
    assert lost == sorted(lost, reverse=True)
    assert lost[-1] < lost[0] / 4


def test_layers_that_matter_get_more_bits(baseline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    layer, other = "model.encoder.layers.1.fc1", "model.encoder.layers.0.fc1"
    learned = dict(common.learned(baseline))
    learned[layer] = sensitivity.Layer(
        learned[other].inputs * 256, learned[other].outputs.clone()
    )  # a 16th of the step
    sensitivity.write(learned)
    model = weights.load(baseline)
    quantize.quantize(model, make("mixed", budget=20.0), common.calibrate)
    bits = {name: 8 * packed.size() / packed.codes.numel() for name, packed in packing.attached(model).items()}
    assert bits[layer] > bits[other] + 2


def test_all_but_norms_and_biases_is_packed(baseline: Path, tmp_path: Path) -> None:
    made = common.saved(baseline, make("mixed", budget=22.0), tmp_path / "saved")
    packed = packing.attached(made.model)
    eight = {name for name, each in packed.items() if each.bits == 8}
    assert eight == {
        *(f"model.encoder.{name}" for name in ("conv1", "conv2", "embed_positions")),
        "model.decoder.embed_positions",
    }
    assert len(packed) == 32 + 4 + 1
    assert packed[EMBEDDING].bits is None
    stored = load_file(tmp_path / "saved/model.safetensors")
    plain = {name for name in stored if name.removesuffix(".weight") not in packed and "weight." not in name}
    assert all("norm" in name or name.endswith(".bias") for name in plain)
    assert all(stored[name].dtype == torch.float16 for name in plain)
    assert {*made.manifest["layers"]} == {*packed}


def test_the_head_is_the_embedding(baseline: Path, tmp_path: Path) -> None:
    made = common.saved(baseline, make("mixed", budget=22.0), tmp_path / "saved")
    for model in (made.model, backends.get("mixed").load(tmp_path / "saved", "cpu")):
        assert model.proj_out.weight is model.model.decoder.embed_tokens.weight
    assert not [name for name in load_file(tmp_path / "saved/model.safetensors") if name.startswith("proj_out")]


def test_it_is_made_the_same_every_time(baseline: Path, tmp_path: Path) -> None:
    for name in "ab":
        common.saved(baseline, make("mixed", budget=20.0), tmp_path / name)
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()


@pytest.mark.parametrize("exclude", [["proj_out"], []], ids=["kept", "quantized"])
def test_a_head_of_its_own_is_within_the_budget_too(exclude: list[str], baseline: Path, tmp_path: Path) -> None:
    source = common.untied(baseline, tmp_path / "baseline")
    made = common.saved(source, make("mixed", budget=24.0, exclude=exclude), tmp_path / "saved")
    assert ("proj_out" in packing.attached(made.model)) == (not exclude)
    assert size(tmp_path / "saved") <= 0.24 * full(source)
    assert error(tmp_path / "saved", source) < 0.1


@pytest.mark.parametrize("key", ["budget", "budget_mb"])
def test_too_small_a_budget_is_one_sentence_that_names_one_that_works(key: str, baseline: Path, tmp_path: Path) -> None:
    least = {"budget": 16, "budget_mb": 1}[key]
    given = {"budget": 10.0, "budget_mb": 0.12}[key]
    assert refusal(baseline, make("mixed", **{key: given}), tmp_path / "saved") == (
        f"mixed: 0.1 MB are too little for this model; give at least {key} {least}"
    )
    common.saved(baseline, make("mixed", **{key: least + 1.0}), tmp_path / "saved")
    assert size(tmp_path / "saved") <= {"budget": 0.17 * full(baseline), "budget_mb": 2e6}[key]


def test_a_tied_head_that_is_not_excluded_is_refused(baseline: Path, tmp_path: Path) -> None:
    """It is rounded with the embedding already."""
    sentence = refusal(baseline, make("mixed", budget=25.0, exclude=[]), tmp_path / "saved")
    assert "proj_out" in sentence
    assert sentence.endswith("in exclude")


def test_dynamic_activations_multiply_the_same_codes(baseline: Path, tmp_path: Path) -> None:
    """The weights are those without dynamic activations, and neighbours in a batch change nothing."""
    variants = {kind: make("mixed", activations=kind, budget=24.0) for kind in ("none", "dynamic")}
    for kind, variant in variants.items():
        common.saved(baseline, variant, tmp_path / kind)
    plain, dynamic = (load_file(tmp_path / kind / "model.safetensors") for kind in variants)
    assert {*plain} == {*dynamic}
    assert all(torch.equal(plain[name], dynamic[name]) for name in plain)
    models = {kind: backends.get("mixed").load(tmp_path / kind, "cpu") for kind in variants}
    whole = {name for name, module in models["dynamic"].named_modules() if isinstance(module, integers.Linear)}
    assert len(whole) == 32 + 1
    assert "proj_out" in whole
    assert not [name for name, module in models["none"].named_modules() if isinstance(module, integers.Linear)]
    expected, found = toy.logits(models["none"]), toy.logits(models["dynamic"])
    assert 0 < float((found - expected).norm() / expected.norm()) < 0.02
    sounds, tokens = toy.features(), torch.arange(9)[None]
    with torch.no_grad():
        together = models["dynamic"](sounds, tokens.expand(len(sounds), -1))
        alone = torch.cat([models["dynamic"](sound[None], tokens) for sound in sounds])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("exclude", [["proj_out"], []], ids=["kept", "quantized"])
def test_a_head_of_its_own_multiplies_integers_where_it_is_quantized(
    exclude: list[str], baseline: Path, tmp_path: Path
) -> None:
    source = common.untied(baseline, tmp_path / "baseline")
    common.saved(source, make("mixed", activations="dynamic", budget=24.0, exclude=exclude), tmp_path / "saved")
    head = backends.get("mixed").load(tmp_path / "saved", "cpu").get_submodule("proj_out")
    assert isinstance(head, integers.Linear) == (not exclude)
    assert error(tmp_path / "saved", source) < 0.1
