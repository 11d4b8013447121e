"""The sizes that arithmetic foretells for Whisper small, 241.73 M parameters: 967 MB, and what quantizing leaves.

All weights are zeros: what is stored depends on the architecture, not on the values, and HQQ's optimization stops at
its first step instead of taking a minute.
"""

import gc
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline import quantize
from pipeline.core.variant import Variant
from pipeline.whisper.model import network, packing
from pipeline.whisper.quantization import rounding
from tests.backends.common import VARIANTS, calibrate, make

SMALL = network.Config(
    d_model=768,
    encoder_layers=12,
    encoder_attention_heads=12,
    encoder_ffn_dim=3072,
    decoder_layers=12,
    decoder_attention_heads=12,
    decoder_ffn_dim=3072,
    vocab_size=51865,
    num_mel_bins=80,
    max_source_positions=1500,
    max_target_positions=448,
)
HEAD = 51865 * 768
LINEAR = 12 * (4 * 768**2 + 2 * 768 * 3072) + 12 * (8 * 768**2 + 2 * 768 * 3072)


def small() -> network.Whisper:
    with torch.device("meta"):
        model = network.Whisper(SMALL)
    model.to_empty(device="cpu").eval().requires_grad_(False)
    model.tie()
    for parameter in model.parameters():
        parameter.zero_()
    return model


def stored(model: network.Whisper, made: Variant, layers: dict[str, int]) -> dict[str, Any]:
    """Return the manifest of a checkpoint, which is not kept: pytest would keep gigabytes of it in tmp_path."""
    with tempfile.TemporaryDirectory() as folder:
        baseline = Path(folder) / "baseline"
        baseline.mkdir()
        (baseline / "config.json").write_text("{}")
        return quantize.save(model, made, layers, [], baseline, Path(folder) / "made")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "megabytes", "layers", "bits"),
    [
        ("fp32", 966.9, 0, 32.0),
        ("fp16", 483.5, 0, 16.0),
        ("quanto-int8", 412.2, 193, 8.04),  # the head is quantized too, as a copy
        ("quanto-int8-whole", 247.0, 195, 8.03),  # the convolutions and the embedding, which is the head
        ("hqq-int4", 298.1, 192, 5.0),  # a scale and a zero point of 32 bits for 64 weights
        ("hqq-int3", 278.3, 192, 4.2),  # ten weights of 3 bits in 32
        ("bnb-nf4", 285.7, 192, 4.5),
        ("bnb-nf4-dq", 276.5, 192, 4.13),
    ],
)
def test_whisper_small(name: str, megabytes: float, layers: int, bits: float) -> None:
    model = small()
    manifest = stored(model, *quantize.quantize(model, VARIANTS[name], calibrate))
    del model
    gc.collect()
    assert len(manifest["layers"]) == layers
    assert manifest["bytes"]["total"] / 1e6 == pytest.approx(megabytes, rel=0.01)
    assert manifest["bits_per_weight"] == pytest.approx(bits, rel=0.01)


@pytest.mark.slow
def test_whisper_small_in_groups_of_64_of_our_own() -> None:
    """What `gptq` stores with a head of 8 bits: the nearest codes are found sooner, and take as many bytes."""
    model = small()
    layers = {}
    for layer in quantize.select(model, ["*"], ["proj_out"]):
        packed = rounding.nearest(model.get_parameter(f"{layer}.weight"), 4)
        packing.attach(model.get_submodule(layer), packed)
        layers[layer] = packed.codes.numel()
    packed = rounding.nearest(model.model.decoder.embed_tokens.weight, 8)
    packing.attach(model.model.decoder.embed_tokens, packed)
    model.tie()
    layers["model.decoder.embed_tokens"] = packed.codes.numel()
    assert (sum(layers.values()), len(layers)) == (LINEAR + HEAD, 193)
    manifest = stored(model, make("gptq", 4, embedding=8), layers)
    del model, packed
    gc.collect()
    assert manifest["bytes"]["total"] / 1e6 == pytest.approx(160.3, rel=0.01)
    assert manifest["bits_per_weight"] == pytest.approx(5.09, rel=0.01)  # 32 bits more for 64 weights; the head has 8
