"""Estimate how long the full study (all variants, whole LibriSpeech test sets) takes on this machine.

Times one utterance through the encoder and one decoder step of a batch, of a randomly initialised Whisper of the asked
size: weights do not matter for time. The estimate multiplies them with LibriSpeech's 5,559 test utterances of about 25
tokens each, and with the number of variants in params.yaml. It is of decoding everything: the draft of fp32's text
saves some of it, loops and slow kernels add to it.

Usage: python -m benchmarks.full_study [--size small] [--batch-size 16]
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from pipeline.core import params
from pipeline.whisper.model.network import Config, Whisper

SIZES = {"tiny": (384, 4, 6), "base": (512, 6, 8), "small": (768, 12, 12), "medium": (1024, 24, 16)}
"""Width, layers and heads (Radford et al. 2022, table 1)."""

UTTERANCES = 2620 + 2939
"""Of test-clean and test-other."""

TOKENS = 25
"""Of an utterance, about: 105,000 words in all, and four tokens for three words."""


def model(size: str) -> Whisper:
    """Return a Whisper of this size with random weights."""
    width, layers, heads = SIZES[size]
    config = Config(
        d_model=width,
        encoder_layers=layers,
        encoder_attention_heads=heads,
        encoder_ffn_dim=4 * width,
        decoder_layers=layers,
        decoder_attention_heads=heads,
        decoder_ffn_dim=4 * width,
        vocab_size=51865,
        num_mel_bins=80,
        max_source_positions=1500,
        max_target_positions=448,
    )
    return Whisper(config).eval()


def median(action: Callable[[], object], rounds: int = 5) -> float:
    """Return the median seconds of an action, after one to warm up."""
    action()
    spent = []
    for _ in range(rounds):
        started = time.perf_counter()
        action()
        spent.append(time.perf_counter() - started)
    return statistics.median(spent)


def main() -> None:
    """Print the two times and what they come to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--batch-size", type=int, default=16)
    arguments = parser.parse_args()
    whisper, batch = model(arguments.size), arguments.batch_size
    with torch.no_grad():
        features = torch.randn(1, 80, 3000)
        encode = median(lambda: whisper.caches(features, 1))
        caches = whisper.caches(features.expand(batch, -1, -1), 64)
        step = median(lambda: whisper.next_logits(torch.ones(batch, 1, dtype=torch.long), caches))
    hours = UTTERANCES * (encode + TOKENS * step / batch) / 3600
    variants = len(params.read().names)
    print(
        f"{arguments.size}, {torch.get_num_threads()} threads: {1000 * encode:.0f} ms to encode an utterance, ", end=""
    )
    print(f"{1000 * step:.0f} ms a decoder step of {batch}")
    print(f"estimate: {hours:.1f} hours for fp32, {variants * hours:.0f} for {variants} variants at fp32's speed")


if __name__ == "__main__":
    main()
