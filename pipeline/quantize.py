"""Quantize the baseline as one variant says, and save the checkpoint.

Usage: python -m pipeline.quantize VARIANT
"""

import argparse
from pathlib import Path

from pipeline import backends, errors, params
from pipeline.errors import UserError

BASELINE = Path("models/baseline")


def main(name: str) -> None:
    """Write models/<name>."""
    settings = params.read()
    variant = settings.variant(name)
    backend = backends.get(variant.backend)
    try:
        variant = backend.supports(variant)
    except UserError as error:
        raise UserError(f"variant {name!r}: {error}") from None

    import torch
    from tqdm import tqdm

    from pipeline import checkpoint, corpus, decoding, whisper

    model = whisper.load(BASELINE)
    calibration = list(corpus.read(corpus.CALIBRATION)) if variant.activations == "static" else []
    heard = []
    if calibration:
        # The baseline's own transcripts drive the decoder: calibration needs no reference text, and a model that is
        # half calibrated does not get to babble.
        vocabulary = decoding.Vocabulary.read(BASELINE, settings.decoding.language, settings.decoding.task)
        heard = [decoding.transcript(model, utterance, vocabulary) for utterance in calibration]

    def calibrate(watched: whisper.Whisper) -> None:
        with torch.no_grad():
            for features, tokens in tqdm(heard, unit="utt", desc="calibration", disable=None):
                watched(features, tokens)

    try:
        chosen = backends.select(model, variant.include, variant.exclude) if variant.backend != "none" else []
        layers = {layer: model.get_submodule(layer).weight.numel() for layer in chosen}  # type: ignore[operator]
        backend.quantize(model, chosen, variant, calibrate)
    except UserError as error:
        raise UserError(f"variant {name!r}: {error}") from None
    unchanged = [layer for layer in layers if type(model.get_submodule(layer)) is torch.nn.Linear]
    if unchanged:
        raise UserError(
            f"variant {name!r}: {variant.backend} left {len(unchanged)} of {len(layers)} layers as they were, "
            f"the first is {unchanged[0]}; put them in exclude"
        )
    manifest = checkpoint.save(
        model, variant, layers, [utterance.id for utterance in calibration], BASELINE, Path("models") / name
    )
    size = manifest["bytes"]["total"] / 1e6
    print(f"models/{name}: {len(layers)} layers quantized by {variant.backend}, {size:.1f} MB")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("variant", help="a key of `variants` in params.yaml, or 'candidate'")
    arguments = parser.parse_args()
    with errors.stage("quantize"):
        main(arguments.variant)
