"""Compare torchao with torch.ao, which it succeeds: int8 weights per channel, dynamic activations, the same layers.

Both quantize every Linear layer but the head of the same fp32 checkpoint, are saved and reloaded, and read the same
tokens, fp32's own: the encoder once for each utterance, the decoder once for all its tokens. They take turns within one
process, so that a drift of the machine's speed hits all of them; a ratio is the median of the rounds' own ratios.
Prints the size of model.safetensors, the root mean square and the largest difference of the logits to fp32's, and the
time as a ratio to fp32's.

Usage: python -m benchmarks.torchao [MODEL] [--utterances 5] [--rounds 5]
Needs `dvc repro prepare fetch`.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor

from pipeline import backends, quantize
from pipeline.core.variant import Variant
from pipeline.speech import corpus
from pipeline.whisper import BASELINE
from pipeline.whisper.inference import decoding, mel
from pipeline.whisper.model import weights
from pipeline.whisper.model.network import Whisper

VARIANTS = {"torch.ao": Variant("torch", activations="dynamic"), "torchao": Variant("torchao", activations="dynamic")}

Sound = tuple[Tensor, Tensor]
"""The features of an utterance, and the tokens that fp32 hears in it."""


def reloaded(model: Path, variant: Variant, folder: Path) -> Whisper:
    """Quantize a checkpoint, save it in the folder, and load it again."""
    backend = backends.get(variant.backend)
    whisper, variant = weights.load(model), backend.supports(variant)
    layers = quantize.select(whisper, variant.include, variant.exclude)
    made = backend.quantize(whisper, layers, variant, lambda _: None)
    folder.mkdir()
    (folder / "config.json").write_bytes((model / "config.json").read_bytes())
    backend.save(whisper, made, folder)
    return backend.load(folder, "cpu")


@torch.no_grad()
def sounds(model: Path, number: int) -> list[Sound]:
    """Return utterances of the corpus as the models read them; of a long one its first 30 s."""
    whisper, vocabulary = weights.load(model), decoding.Vocabulary.read(model, "en", "transcribe")
    made = []
    for utterance in corpus.some(corpus.CORPUS, number):
        features = mel.log_mel([corpus.samples(utterance)[: mel.WINDOW]], whisper.config.num_mel_bins)
        room = whisper.config.max_target_positions - len(vocabulary.prompt)
        (heard,) = decoding.greedy(whisper, features, vocabulary, room)
        made.append((features, torch.tensor([vocabulary.prompt + heard])))
    return made


@torch.no_grad()
def read(model: Whisper, heard: list[Sound]) -> tuple[Tensor, float]:
    """Return the logits of all tokens, and the seconds that they took."""
    started = time.perf_counter()
    logits = [model(features, tokens)[0] for features, tokens in heard]
    spent = time.perf_counter() - started
    return torch.cat(logits), spent


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", nargs="?", type=Path, default=BASELINE, help=f"fp32 checkpoint, {BASELINE} by default")
    parser.add_argument("--utterances", type=int, default=5, help="drawn at random, the same ones each time")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()

    heard = sounds(arguments.model, arguments.utterances)
    models = {"fp32": weights.load(arguments.model)}
    files = {"fp32": arguments.model / "model.safetensors"}
    with tempfile.TemporaryDirectory() as folder:
        for name, variant in VARIANTS.items():
            models[name] = reloaded(arguments.model, variant, Path(folder) / name)
            files[name] = Path(folder) / name / "model.safetensors"
        megabytes = {name: file.stat().st_size / 1e6 for name, file in files.items()}
    logits = {name: read(model, heard)[0] for name, model in models.items()}  # warms up, too
    rounds = [{name: read(model, heard)[1] for name, model in models.items()} for _ in range(arguments.rounds)]

    tokens = sum(len(row[0]) for _, row in heard)
    threads = torch.get_num_threads()
    print(f"{len(heard)} utterances, {tokens} tokens, {threads} threads, {arguments.rounds} rounds")
    for name in models:
        difference = logits[name] - logits["fp32"]
        ratio = statistics.median(spent[name] / spent["fp32"] for spent in rounds)
        print(
            f"{name:10} {megabytes[name]:7.1f} MB  difference {difference.square().mean().sqrt():.4f} RMS,"
            f" {difference.abs().max():.3f} at most  time {ratio:.2f} of fp32's"
        )


if __name__ == "__main__":
    main()
