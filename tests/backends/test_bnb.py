import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pipeline import backends
from pipeline.core.errors import UserError
from tests import toy
from tests.backends import common

VARIANTS = [name for name, variant in common.VARIANTS.items() if variant.backend == "bnb" and variant.embedding is None]
"""Those that Transformers can load: it does not know our packed embeddings."""


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("name", VARIANTS)
def test_transformers_loads_the_checkpoint(name: str, tied: bool, baseline: Path, tmp_path: Path) -> None:
    """Each layer is the same to the bit; kernels that round to bfloat16 or int8 widen what lies between."""
    from transformers import WhisperForConditionalGeneration

    variant = common.VARIANTS[name]
    with_head = not tied and variant.bits == 8
    if with_head:
        variant = dataclasses.replace(variant, exclude=[])
    made = common.saved(baseline if tied else common.untied(baseline, tmp_path / "made"), variant, tmp_path / "saved")
    ours = backends.get("bnb").load(tmp_path / "saved", "cpu")
    theirs: Any = WhisperForConditionalGeneration.from_pretrained(tmp_path / "saved")
    found, expected = toy.logits_of_transformers(theirs), toy.logits(ours)
    near = 5e-3 if variant.bits == 8 else 1e-3  # int8: the last digit of an input decides whether it is an outlier
    assert (found - expected).norm() / expected.norm() < near
    for layer in made.manifest["layers"]:
        mine: Any = ours.get_submodule(layer)
        other: Any = theirs.get_submodule(layer)
        assert type(mine) is type(other)
        sound = torch.randn(5, other.in_features, generator=torch.Generator().manual_seed(2))
        assert torch.equal(mine(sound), other(sound)), layer
    assert len(made.manifest["layers"]) == 32 + with_head


def test_transformers_leaves_excluded_layers_alone(baseline: Path, tmp_path: Path) -> None:
    from transformers import WhisperForConditionalGeneration

    variant = common.make("bnb", 4, "nf", include=["model.decoder.*"], rest="float32")
    common.saved(baseline, variant, tmp_path / "saved")
    theirs: Any = WhisperForConditionalGeneration.from_pretrained(tmp_path / "saved")
    assert type(theirs.model.encoder.layers[0].fc1) is torch.nn.Linear
    expected = toy.logits(backends.get("bnb").load(tmp_path / "saved", "cpu"))
    assert (toy.logits_of_transformers(theirs) - expected).norm() / expected.norm() < 1e-3


def test_transformers_has_to_widen_what_is_stored_as_float16(baseline: Path, tmp_path: Path) -> None:
    """It leaves some of it in float16, whatever it is told, and fails at the first convolution: docs/formats.md."""
    from transformers import WhisperForConditionalGeneration

    common.saved(baseline, common.make("bnb", 4, "nf"), tmp_path / "saved")
    theirs: Any = WhisperForConditionalGeneration.from_pretrained(tmp_path / "saved")
    for parameter in theirs.parameters():
        if parameter.dtype == torch.float16:
            parameter.data = parameter.data.float()
    expected = toy.logits(backends.get("bnb").load(tmp_path / "saved", "cpu"))
    assert (toy.logits_of_transformers(theirs) - expected).norm() / expected.norm() < 1e-3


def test_config_json_tells_transformers_how(baseline: Path, tmp_path: Path) -> None:
    common.saved(baseline, common.VARIANTS["bnb-nf4-dq"], tmp_path / "saved")
    config = json.loads((tmp_path / "saved/config.json").read_text())
    assert config.pop("quantization_config") == {
        "quant_method": "bitsandbytes",
        "load_in_8bit": False,
        "load_in_4bit": True,
        "llm_int8_threshold": 6.0,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_compute_dtype": "float32",
        "bnb_4bit_quant_storage": "uint8",
        "llm_int8_skip_modules": ["proj_out"],
    }
    assert config == json.loads((baseline / "config.json").read_text())


def test_the_tied_head_is_refused(baseline: Path) -> None:
    with pytest.raises(UserError) as error:
        common.quantized(baseline, common.make("bnb", 4, "nf", exclude=[]))
    assert str(error.value) == ("bnb: proj_out is tied to the token embedding, which stays in fp32; put it in exclude")


@pytest.mark.parametrize("kind", ["nf", "fp"])
def test_four_bits_need_rows_in_thirty_twos(kind: str, baseline: Path, tmp_path: Path) -> None:
    """N must be divisible by block_n: a head of 51,865 rows quantizes, and fails at its first token on a newer CPU."""
    source = common.untied(baseline, tmp_path / "untied")
    with pytest.raises(UserError) as error:
        common.quantized(source, common.make("bnb", 4, kind, exclude=[]))
    assert str(error.value) == (
        f"bnb: {kind}4 needs a multiple of 32 rows, and proj_out has 261; put it in exclude, or choose int8"
    )


@pytest.mark.parametrize("block", [64, 128])
def test_a_block_is_as_large_as_is_asked_for(block: int, baseline: Path, tmp_path: Path) -> None:
    variant = common.make("bnb", 4, "nf", group_size=block, include=["*.fc2"])
    common.saved(baseline, variant, tmp_path / "saved")
    tensors = load_file(tmp_path / "saved/model.safetensors")
    assert tensors["model.decoder.layers.1.fc2.weight.absmax"].numel() == 64 * 128 / block
