"""The sizes that arithmetic foretells for Whisper small, 241.73 M parameters: 967 MB, and what quantizing leaves.

All weights are zeros: what is stored depends on the architecture, not on the values, and HQQ's optimization stops at
its first step instead of taking a minute.
"""

import gc
import tempfile
from pathlib import Path

import pytest
import torch

from pipeline import backends, quantize
from pipeline.whisper import checkpoint, network
from tests.backends.common import VARIANTS, calibrate

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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "megabytes", "layers", "bits"),
    [
        ("fp32", 966.9, 0, 32.0),
        ("quanto-int8", 412.2, 193, 8.04),  # the head is quantized too, as a copy
        ("hqq-int4", 298.1, 192, 5.0),  # a scale and a zero point of 32 bits for 64 weights
        ("hqq-int3", 278.3, 192, 4.2),  # ten weights of 3 bits in 32
        ("bnb-nf4", 285.7, 192, 4.5),
        ("bnb-nf4-dq", 276.5, 192, 4.13),
    ],
)
def test_whisper_small(name: str, megabytes: float, layers: int, bits: float) -> None:
    variant = VARIANTS[name]
    model = small()
    chosen = quantize.select(model, variant.include, variant.exclude) if layers else []
    weights = {layer: HEAD if layer == "proj_out" else LINEAR // 192 for layer in chosen}  # on average
    backend = backends.get(variant.backend)
    variant = backend.supports(variant)
    backend.quantize(model, chosen, variant, calibrate)
    with tempfile.TemporaryDirectory() as folder:  # not tmp_path: pytest would keep gigabytes
        (Path(folder) / "config.json").write_text("{}")
        backend.save(model, variant, Path(folder))
        measured = checkpoint.measure(Path(folder) / "model.safetensors", weights)
    del model
    gc.collect()
    assert len(chosen) == layers
    assert measured["bytes"]["total"] / 1e6 == pytest.approx(megabytes, rel=0.01)
    assert measured["bits_per_weight"] == pytest.approx(bits, rel=0.01)
