"""Measure how much the text depends on each layer: curvature of the KL divergence on the calibration speech."""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pipeline.core import files, stage

if TYPE_CHECKING:
    from pipeline.whisper.model.network import Whisper
    from pipeline.whisper.quantization.sensitivity import Layer

_KINDS = {"self_attn": "self", "encoder_attn": "cross"}


def main() -> None:
    """Write data/sensitivity.safetensors, and what it says of each layer for people: reports/sensitivity.csv."""
    from tqdm import tqdm

    from pipeline.core import params
    from pipeline.results import tables
    from pipeline.whisper import BASELINE
    from pipeline.whisper.inference import decoding
    from pipeline.whisper.model import weights
    from pipeline.whisper.quantization import calibration, sensitivity

    how = params.read().decoding
    model = weights.load(BASELINE)
    vocabulary = decoding.Vocabulary.read(BASELINE, how.language, how.task)
    count = len(calibration.ids())
    heard = tqdm(calibration.read(), total=count, unit="utt", desc="sensitivity", disable=None)
    layers = sensitivity.measure(model, heard, vocabulary)
    sensitivity.write(layers)
    files.write_text(tables.SENSITIVITY, tables.to_csv(rows(model, layers)))
    print(f"{sensitivity.PATH}: {len(layers)} layers, by {count:,} utterances")


def rows(model: "Whisper", layers: "Mapping[str, Layer]") -> list[dict[str, Any]]:
    """Return the lines of sensitivity.csv: each layer's place in the model, and what rounding it to 4 bits would do."""
    from pipeline.whisper.quantization import rounding

    found = []
    for name, layer in layers.items():
        weight = model.get_parameter(f"{name}.weight")
        kl = layer.divergence(rounding.nearest(weight, 4).weight() - weight)
        found.append({"layer": name, **place(name), "weights": weight.numel(), "kl_4bit": float(f"{kl:.6g}")})
    return found


def place(name: str) -> dict[str, Any]:
    """Return the part, number and kind of a layer.

    >>> place("model.decoder.layers.3.encoder_attn.q_proj")
    {'part': 'decoder', 'number': 3, 'kind': 'cross q'}
    """
    inside = re.fullmatch(r"model\.(encoder|decoder)\.layers\.(\d+)\.(?:(\w+)\.)?(\w+)", name)
    if not inside:
        return {"part": "decoder", "number": None, "kind": "head"}
    part, number, attention, last = inside.groups()
    kind = f"{_KINDS[attention]} {last.removesuffix('_proj')}" if attention else last
    return {"part": part, "number": int(number), "kind": kind}


if __name__ == "__main__":
    stage.run(main)
