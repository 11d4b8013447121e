"""Time each variant's kernels beside fp32's: one utterance through the encoder, and a decoder step at two batch sizes.

Tells where a variant's time goes: weight-only formats unpack every weight at every decoder step, which a large batch
shares among its utterances, and the encoder, whose matrices are large, hardly notices. fp32 is timed again beside each
variant, so that a drift of the machine's speed hits both.

Usage: python -m benchmarks.kernels [VARIANT ...] [--batch-size 16]
Needs the variants' checkpoints: `dvc repro quantize quantize_candidate`.
"""

import argparse
import gc
from functools import partial
from pathlib import Path

import torch

from benchmarks.full_study import median
from pipeline import backends
from pipeline.core import manifest, params
from pipeline.core.params import BASELINE
from pipeline.whisper.model.network import Whisper

POSITIONS = 64
"""Tokens that the caches have room for: more than the steps timed."""


def load(name: str) -> Whisper:
    """Load a variant's checkpoint on the CPU."""
    folder = Path("models") / name
    return backends.get(manifest.verify(folder)["variant"]["backend"]).load(folder, "cpu")


@torch.no_grad()
def times(model: Whisper, batch: int) -> dict[str, float]:
    """Return the milliseconds of encoding one utterance, and of a decoder step with one row and with `batch` rows."""
    features = torch.randn(1, model.config.num_mel_bins, 3000, generator=torch.Generator().manual_seed(0))
    found = {"encode": median(lambda: model.caches(features, 1))}
    for rows in (1, batch):
        caches = model.caches(features.expand(rows, -1, -1), POSITIONS)
        tokens = torch.ones(rows, 1, dtype=torch.long)
        found[f"step of {rows}"] = median(partial(model.next_logits, tokens, caches), rounds=15)
    return {what: 1000 * seconds for what, seconds in found.items()}


def main() -> None:
    """Print a line for each variant: milliseconds, and ratios to fp32 timed just before."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("variants", nargs="*", metavar="VARIANT", help="all of params.yaml if none is named")
    parser.add_argument("--batch-size", type=int, default=16)
    arguments = parser.parse_args()
    baseline = load(BASELINE)
    print(f"{torch.get_num_threads()} threads; milliseconds (ratio to {BASELINE})")
    for name in arguments.variants or params.read().names:
        usual = times(baseline, arguments.batch_size)
        model = load(name)
        found = times(model, arguments.batch_size)
        del model
        gc.collect()
        cells = [f"{what} {spent:7.1f} ({spent / usual[what]:5.2f})" for what, spent in found.items()]
        print(f"{name:26}  {'  '.join(cells)}", flush=True)


if __name__ == "__main__":
    main()
