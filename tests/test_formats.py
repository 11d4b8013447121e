"""docs/formats.md says how checkpoints are stored: its loader is run as it stands there."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pipeline import backends
from pipeline.core.variant import Variant
from tests import toy
from tests.backends import common
from tests.backends.common import make
from tests.conftest import ROOT

(CODE,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/formats.md").read_text(encoding="utf-8"), re.DOTALL)


PAGE: dict[str, Any] = {}
exec(CODE, PAGE)  # noqa: S102  # our own page


def agree(baseline: Path, variant: Variant, folder: Path) -> None:
    common.saved(baseline, variant, folder)
    ours, theirs = backends.get(variant.backend).load(folder, "cpu"), PAGE["load"](folder)
    assert type(theirs).__name__ == "WhisperForConditionalGeneration"
    read = theirs.state_dict()
    for name, weight in ours.state_dict().items():
        assert torch.equal(read[name], weight), name
    assert (toy.logits_of_transformers(theirs) - toy.logits(ours)).abs().max() <= 1e-4
    assert theirs.generation_config.to_dict()["begin_suppress_tokens"] == [256]


@pytest.mark.parametrize(
    "variant",
    [
        make("gptq", 4, embedding=5),
        make("gptq", 3, group_size=32, encoder=6, layers=["*.fc2=8"], embedding=8, conv=8, rest="float32"),
        make("mixed", budget=20.0),
        make("none", 16, "float", embedding=8, conv=8),
        make("none", 16, "float"),
        make("none", 32, "float"),
    ],
    ids=lambda variant: f"{variant.backend}-{variant.bits}-{variant.embedding}-{variant.rest}",
)
def test_transformers_computes_the_same_with_the_pages_loader(variant: Variant, baseline: Path, tmp_path: Path) -> None:
    agree(baseline, variant, tmp_path / "saved")


@pytest.mark.parametrize(
    "variant", [make("gptq", 4, embedding=5), make("gptq", 4, exclude=[]), make("mixed", budget=25.0)]
)
def test_a_head_of_its_own_is_loaded_too(variant: Variant, baseline: Path, tmp_path: Path) -> None:
    agree(common.untied(baseline, tmp_path / "baseline"), variant, tmp_path / "saved")


def test_quanto_loads_what_the_page_has_read(baseline: Path, tmp_path: Path) -> None:
    """The variant quanto-int8-whole: quanto's own loader does not know a packed embedding."""
    from optimum import quanto
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    folder = tmp_path / "saved"
    common.saved(baseline, make("quanto", embedding=8, conv=8), folder)
    theirs: Any = WhisperForConditionalGeneration(WhisperConfig.from_pretrained(folder)).eval()
    quantization_map = json.loads((folder / "quanto_qmap.json").read_text())
    quanto.requantize(theirs, PAGE["read"](folder), quantization_map)
    theirs.tie_weights()
    expected = toy.logits(backends.get("quanto").load(folder, "cpu"))
    assert (toy.logits_of_transformers(theirs) - expected).abs().max() <= 1e-4 < expected.std()


def test_a_head_that_was_tied_and_rounded_by_itself_is_not_the_embedding(baseline: Path, tmp_path: Path) -> None:
    agree(baseline, make("gptq", 4, exclude=[]), tmp_path / "saved")
    assert "proj_out.weight.codes" in load_file(tmp_path / "saved/model.safetensors")


def test_the_loader_is_short_and_needs_nothing_of_ours() -> None:
    assert len(CODE.splitlines()) <= 40
    assert "pipeline" not in CODE
    assert max(map(len, CODE.splitlines())) <= 120
