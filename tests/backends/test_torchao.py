import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline import backends
from pipeline.core.errors import UserError
from pipeline.whisper.model import weights
from tests import toy
from tests.backends import common
from tests.backends.common import make
from tests.conftest import ROOT

DYNAMIC = make("torchao", activations="dynamic", rest="float32")
INT8, INT4, INT3, INT1 = (make("torchao", bits, rest="float32") for bits in (8, 4, 3, 1))
FLOAT8 = make("torchao", 8, "float", rest="float32")
LAYER = "model.decoder.layers.1.fc2"


def by_torchao(folder: Path) -> dict[str, Any]:
    """Read a checkpoint with nothing but torchao."""
    from torchao.prototype.safetensors.safetensors_support import unflatten_tensor_state_dict

    with safe_open(folder / "model.safetensors", "pt") as file:
        metadata = file.metadata()
    tensors, rest = unflatten_tensor_state_dict(load_file(folder / "model.safetensors"), metadata)
    assert not rest
    return dict(tensors)


def dequantized(weight: Any) -> Tensor:
    """Return a weight of torchao as fp32; its plain int4, which it cannot multiply on a CPU, as it is documented."""
    if type(weight).__name__ != "Int4Tensor":
        return torch.as_tensor(weight.dequantize().float())
    integers = torch.stack(((weight.qdata & 15) - ((weight.qdata & 8) << 1), weight.qdata >> 4), -1).flatten(1)
    scale, zero_point = (tensor.float().T.repeat_interleave(64, 1) for tensor in (weight.scale, weight.zero_point))
    return torch.as_tensor(integers * scale + zero_point)


@pytest.mark.parametrize("variant", [DYNAMIC, INT8, INT3, FLOAT8])
def test_torchao_loads_the_checkpoint_into_transformers(variant: Any, baseline: Path, tmp_path: Path) -> None:
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    model = common.saved(baseline, variant, tmp_path / "saved").model
    made: Any = WhisperForConditionalGeneration(WhisperConfig.from_pretrained(tmp_path / "saved"))
    result = made.load_state_dict(by_torchao(tmp_path / "saved"), strict=False, assign=True)
    assert (result.missing_keys, result.unexpected_keys) == (["proj_out.weight"], [])
    made.tie_weights()
    sound = torch.randn(5, 128, generator=torch.Generator().manual_seed(2))
    assert torch.equal(made.get_submodule(LAYER)(sound), model.get_submodule(LAYER)(sound))
    expected = toy.logits(model)
    error = (toy.logits_of_transformers(made) - expected).norm() / expected.norm()
    # An activation between two steps goes up with us and down with Transformers, and all that follows differs.
    assert error < (0.003 if variant == DYNAMIC else 1e-5), error


def test_torchao_reads_int4_as_its_plain_format(baseline: Path, tmp_path: Path) -> None:
    common.saved(baseline, INT4, tmp_path / "saved")
    stored = dequantized(by_torchao(tmp_path / "saved")[f"{LAYER}.weight"])
    model = backends.get("torchao").load(tmp_path / "saved", "cpu")
    with torch.no_grad():
        computed = (model.get_submodule(LAYER)(torch.eye(128)) - model.get_submodule(LAYER).bias).T
    torch.testing.assert_close(computed, stored, rtol=2**-8, atol=1e-6)  # bfloat16 has eight bits


@pytest.mark.parametrize("variant", [DYNAMIC, INT8, INT4, INT3, FLOAT8])
def test_weights_are_rounded_to_the_nearest_step(variant: Any, baseline: Path, tmp_path: Path) -> None:
    common.saved(baseline, variant, tmp_path / "saved")
    exact = load_file(baseline / "model.safetensors")[f"{LAYER}.weight"]
    read = by_torchao(tmp_path / "saved")[f"{LAYER}.weight"]
    error = (dequantized(read) - exact).abs()
    if variant.format == "float":
        assert (error <= exact.abs() * 2**-4 + read.scale * 2**-10).all()  # three bits after the leading one
    else:
        steps = (read.scale.T if variant.bits == 4 else read.scale).float()
        step = steps.repeat_interleave(128 // steps.shape[1], 1)
        clipped = 0.01 if variant.bits == 8 else 0.1 if variant.bits == 4 else 0.5  # bfloat16; no +4 in 3 bits
        assert (error <= step * (0.5 + clipped)).all()
        assert error.max() > step.min() * 0.4


@pytest.mark.parametrize(
    ("variant", "bits"),
    [(DYNAMIC, 8), (INT8, 8), (FLOAT8, 8), (INT4, 4), (INT3, 8), (INT1, 8)],
)
def test_what_a_weight_takes_on_disk(variant: Any, bits: int, baseline: Path, tmp_path: Path) -> None:
    """A format that is said to be packed is not: 3 bits take a byte, as its docstring says."""
    common.saved(baseline, variant, tmp_path / "saved")
    tensors = load_file(tmp_path / "saved/model.safetensors")
    assert tensors[f"{LAYER}._weight_qdata"].nbytes * 8 == 64 * 128 * bits
    scale = tensors[f"{LAYER}._weight_scale"]
    groups, size = (2, 2) if variant.bits == 4 else (2 if variant.bits < 8 else 1, 4)
    assert (scale.numel(), scale.element_size()) == (64 * groups, size)


@pytest.mark.parametrize("variant", [DYNAMIC, INT4])
def test_everything_else_is_the_baselines(variant: Any, baseline: Path, tmp_path: Path) -> None:
    chosen = ["model.encoder.layers.1.fc1", "model.decoder.layers.1.fc1"]
    only = dataclasses.replace(variant, include=["*.layers.1.fc1"])
    assert common.saved(baseline, only, tmp_path / "saved").manifest["layers"] == chosen
    before, after = (load_file(folder / "model.safetensors") for folder in (baseline, tmp_path / "saved"))
    replaced = {f"{layer}.weight" for layer in chosen}
    assert before.keys() - after.keys() == replaced
    assert all(torch.equal(after[name], before[name]) for name in before.keys() - replaced)
    kinds = ("qdata", "scale", "zero_point")
    assert after.keys() - before.keys() == {f"{layer}._weight_{kind}" for layer in chosen for kind in kinds}


def test_int4_is_the_same_on_a_processor_that_packs_it_otherwise(baseline: Path, tmp_path: Path) -> None:
    """Packed for AVX512 and read with AVX2, the weights are others: of finite values, and the text is nonsense."""
    expected = toy.logits(common.saved(baseline, INT4, tmp_path / "saved").model)
    command = [sys.executable, "-m", "tests.backends.reload", str(tmp_path / "logits"), str(tmp_path / "saved")]
    subprocess.run(command, cwd=ROOT, check=True, env=os.environ | {"ATEN_CPU_CAPABILITY": "default"})
    found = load_file(tmp_path / "logits")["saved"]
    assert (found - expected).norm() / expected.norm() < 0.005  # it differs by 0.02 from fp32


def test_a_token_does_not_hear_its_neighbours(baseline: Path) -> None:
    """One scale for all tokens of a batch, as torch.ao has, changes what each of them becomes."""
    model, _, _ = common.quantized(baseline, DYNAMIC)
    layer = model.get_submodule(LAYER)
    sound = torch.randn(5, 128, generator=torch.Generator().manual_seed(2)) * torch.tensor([[1], [1], [1], [1], [100]])
    assert torch.equal(layer(sound)[:2], layer(sound[:2]))


def test_int4_keeps_fp32_around_its_kernel(baseline: Path) -> None:
    model, _, _ = common.quantized(baseline, INT4)
    layer: Any = model.get_submodule(LAYER)
    layer.bias.data.fill_(1 + 2**-12)  # 1 in bfloat16
    assert torch.equal(layer(torch.zeros(1, 128)), torch.full((1, 64), 1 + 2**-12))


def test_rows_that_the_packed_kernel_cannot_hold(baseline: Path) -> None:
    """The head of Whisper has 51,864 rows or more."""
    model = weights.load(baseline)
    torchao = backends.get("torchao")
    with pytest.raises(UserError) as error:
        torchao.quantize(model, [LAYER, "proj_out"], torchao.supports(INT4), common.calibrate)
    assert str(error.value) == (
        "torchao: int4 does not pack the 261 rows of proj_out, which are no multiple of 16 "
        "(choose other bits, or put it in exclude)"
    )
    assert type(model.get_submodule(LAYER).weight) is torch.nn.Parameter
    assert model.get_submodule(LAYER).weight.dtype == torch.float32


@pytest.mark.parametrize(
    ("bits", "size", "widths", "refusal"),
    [
        (4, 128, [128, 64], "128 does not divide the 64 inputs of 1 (choose 32 or 64"),
        (3, 64, [96, 64], "64 does not divide the 96 inputs of 0 (choose 8, 16 or 32"),
    ],
)
def test_groups_that_do_not_fill_a_row(bits: int, size: int, widths: list[int], refusal: str) -> None:
    model: Any = torch.nn.ModuleList(torch.nn.Linear(width, 64) for width in widths)
    torchao = backends.get("torchao")
    with pytest.raises(UserError) as error:
        torchao.quantize(model, ["0", "1"], torchao.supports(make("torchao", bits, group_size=size)), common.calibrate)
    assert str(error.value) == f"torchao: group_size {refusal}, or put such layers in exclude)"


@pytest.mark.parametrize("lost", ["the metadata", "a scale"])
def test_a_checkpoint_that_lost_a_part_is_one_sentence(lost: str, baseline: Path, tmp_path: Path) -> None:
    """Another program has written the file anew, without torchao's metadata."""
    folder = common.saved(baseline, INT8, tmp_path / "saved").folder
    with safe_open(folder / "model.safetensors", "pt") as file:
        metadata = file.metadata()
    tensors = load_file(folder / "model.safetensors")
    if lost == "a scale":
        del tensors[f"{LAYER}._weight_scale"]
    save_file(tensors, folder / "model.safetensors", metadata if lost == "a scale" else {"format": "pt"})
    with pytest.raises(UserError, match=r"model\.safetensors lacks part of 'model\.\S+\.weight'; quantize it again"):
        backends.get("torchao").load(folder, "cpu")


def test_nothing_is_said_of_kernels_that_need_a_gpu(baseline: Path, tmp_path: Path) -> None:
    common.saved(baseline, INT8, tmp_path / "saved")
    command = [sys.executable, "-m", "tests.backends.reload", str(tmp_path / "logits"), str(tmp_path / "saved")]
    assert subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stderr == b""
