"""Hold what the stage `sensitivity` predicts against what happens: each kind of layer alone rounded to 4 bits.

The prediction is that of data/sensitivity.safetensors, made by calibration speech; the KL divergence from fp32 is
measured on other speech, along fp32's own tokens. All layers of a kind are rounded at once, in groups of 64, and the
predictions for them are added. Prints both in nats a token, and how many times too large the prediction is.

Usage: python -m benchmarks.sensitivity [--corpus data/corpus] [--utterances 20]
Needs `dvc repro prepare sensitivity`.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn

from pipeline.core import params
from pipeline.sensitivity import place
from pipeline.speech import corpus
from pipeline.whisper import BASELINE, agreement
from pipeline.whisper.inference import decoding
from pipeline.whisper.model import packing, weights
from pipeline.whisper.model.network import Whisper
from pipeline.whisper.quantization import rounding, sensitivity

BITS = 4

Sound = tuple[Tensor, agreement.Window]
"""The features of an utterance, and what fp32 hears in it."""


def heard(model: Whisper, vocabulary: decoding.Vocabulary, folder: Path, number: int) -> list[Sound]:
    """Return utterances of prepared speech with fp32's tokens and states; of a long one its first 30 s."""
    found = []
    for utterance in corpus.some(folder, number):
        features, tokens = decoding.transcript(model, utterance, vocabulary)
        found.append(sound(model, vocabulary, utterance.id, features, tokens))
    return found


def sound(model: Whisper, vocabulary: decoding.Vocabulary, name: str, features: Tensor, tokens: Tensor) -> Sound:
    """Return what fp32 wrote, prompt and tokens (1, positions) without the end, as `agreement.compare` takes it."""
    said = [*tokens[0].tolist(), vocabulary.end]
    states = agreement.states(model, features, said, len(said) - len(vocabulary.prompt))
    return features, agreement.Window(name, said, states)


def barred(vocabulary: decoding.Vocabulary, size: int) -> Tensor:
    """Return which of `size` tokens may not come: (2, size), in the first place and in later ones."""
    mask = torch.zeros(2, size, dtype=torch.bool)
    mask[:, vocabulary.suppressed] = mask[0, vocabulary.suppressed_first] = True
    return mask


def divergence(model: Whisper, sounds: list[Sound], head: Tensor, barred: Tensor) -> float:
    """Return the mean KL divergence from fp32, in nats a token."""
    return float(torch.cat([agreement.compare(model, *sound, head, barred)[:, 0] for sound in sounds]).mean())


def main() -> None:
    """Print a line for each kind of layer."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--corpus", type=Path, default=corpus.CORPUS, help=f"prepared speech, {corpus.CORPUS} if not given"
    )
    parser.add_argument("--utterances", type=int, default=20, help="drawn at random, the same ones each time")
    arguments = parser.parse_args()

    how = params.read().decoding
    model, vocabulary = weights.load(BASELINE), decoding.Vocabulary.read(BASELINE, how.language, how.task)
    layers, sounds = sensitivity.read(model), heard(model, vocabulary, arguments.corpus, arguments.utterances)
    head = model.proj_out.weight
    suppressed = barred(vocabulary, len(head))
    kinds: dict[str, dict[str, nn.Module]] = {}
    for name, module in model.named_modules():
        if name in layers:
            kinds.setdefault("{part} {kind}".format(**place(name)), {})[name] = module
    print(f"{len(sounds)} utterances, {sum(len(window.states) for _, window in sounds):,} tokens, {BITS} bits")
    for kind, modules in kinds.items():
        predicted, whole = 0.0, {name: module.weight for name, module in modules.items()}
        for name, weight in whole.items():
            assert isinstance(weight, nn.Parameter)
            rounded = rounding.nearest(weight, BITS)
            packing.attach(modules[name], rounded)
            predicted += layers[name].divergence(rounded.weight() - weight)
        measured = divergence(model, sounds, head, suppressed)
        for name, weight in whole.items():
            modules[name].weight = weight
        ratio = predicted / measured
        print(f"{kind:18}  predicted {predicted:.6f}  measured {measured:.6f}  ratio {ratio:5.2f}", flush=True)


if __name__ == "__main__":
    main()
