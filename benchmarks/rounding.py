"""Show what each part of `mixed` is worth: change one, round anew within the same bytes, measure on held-out speech.

Three of four utterances of the calibration speech calibrate; the fourth judges. What is scored is never read. Prints
for each way of rounding the bytes of all rounded weights, and the KL divergence from fp32 along fp32's own tokens, mean
a token with its standard error over utterances. And how many bits each kind of layer gets.

Usage: python -m benchmarks.rounding [--budget 15.5]
Needs `dvc repro calibrate`, with 30 or more utterances (`calibration` in params.yaml): few judge nothing.
"""

import argparse
import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from unittest import mock

import torch
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks.sensitivity import barred, sound
from pipeline import backends
from pipeline.backends import mixed
from pipeline.core import params
from pipeline.sensitivity import place
from pipeline.whisper import BASELINE, agreement
from pipeline.whisper.inference import decoding
from pipeline.whisper.model import packing, weights
from pipeline.whisper.quantization import allocation, calibration, rounding, sensitivity
from pipeline.whisper.quantization.calibration import Heard
from pipeline.whisper.quantization.sensitivity import HEAD, Layer, Sums

Found = dict[str, Layer]


class Trial:
    """The baseline, to be rounded and judged again and again."""

    def __init__(self, budget: float) -> None:
        how = params.read().decoding
        self.vocabulary = decoding.Vocabulary.read(BASELINE, how.language, how.task)
        self.model = weights.load(BASELINE)
        heard = list(calibration.read())
        self.heard = [pair for number, pair in enumerate(heard) if number % 4]
        self.judges = [
            sound(self.model, self.vocabulary, str(number), *pair)
            for number, pair in enumerate(heard)
            if not number % 4
        ]
        self.head = self.model.proj_out.weight.clone()
        self.barred = barred(self.vocabulary, len(self.head))
        full = 4 * sum(parameter.numel() for parameter in self.model.parameters())
        linear = [name for name, module in self.model.named_modules() if type(module) is nn.Linear and name != HEAD]
        self.modules: dict[str, nn.Module] = {**backends.linear_layers(self.model, linear)}
        self.modules[HEAD] = self.model.model.decoder.embed_tokens
        encoder, decoder = self.model.model.encoder, self.model.model.decoder
        for module in (encoder.conv1, encoder.conv2, encoder.embed_positions, decoder.embed_positions):
            packing.attach(module, rounding.nearest(module.weight, 8))
        self.room = full * budget / 100 - mixed.other_bytes(self.model, self.modules)
        self.originals: dict[str, Tensor] = {name: module.weight for name, module in self.modules.items()}  # type: ignore[misc]
        self.biases = {name: layer.bias for name, layer in backends.linear_layers(self.model, linear).items()}

    def gather(self, heard: Sequence[Heard]) -> tuple[dict[str, Sums], int]:
        """Return what the model's layers see and pass on, as it is at the moment."""
        return sensitivity.gather(
            self.model, tqdm(heard, unit="utt", desc="sensitivity", disable=None), self.vocabulary
        )

    def use(self, packed: Mapping[str, packing.Packed]) -> None:
        """Let the model compute with these weights."""
        for name, each in packed.items():
            packing.attach(self.modules[name], each)
        self.model.tie()

    def restore(self) -> None:
        """Let the model compute with its own weights."""
        for name, module in self.modules.items():
            module.weight = self.originals[name]
            if name in self.biases:
                module.bias = self.biases[name]
        self.model.tie()

    def judge(self, way: str, packed: Mapping[str, packing.Packed], biases: Mapping[str, Tensor] | None = None) -> None:
        """Print how far the model is from fp32 with these weights, and biases in place of its own."""
        self.use(packed)
        for name, bias in (biases or {}).items():
            self.modules[name].bias = nn.Parameter(bias, requires_grad=False)
        kls = [agreement.compare(self.model, *judge, self.head, self.barred)[:, 0] for judge in self.judges]
        self.restore()
        tokens, sums = torch.tensor([len(kl) for kl in kls]), torch.stack([kl.sum() for kl in kls])
        mean = sums.sum() / tokens.sum()
        error = ((sums - mean * tokens).square().sum() * len(kls) / (len(kls) - 1)).sqrt() / tokens.sum()
        size = sum(each.size() for each in packed.values()) / 1e6
        print(f"{way:62}  {size:6.2f} MB   KL {mean:.5f} ± {error:.5f}", flush=True)


def changed(found: Found, how: Callable[[str, Layer], Layer]) -> Found:
    """Return sensitivities with each layer's changed."""
    return {name: how(name, layer) for name, layer in found.items()}


@contextlib.contextmanager
def like_columns() -> Iterator[None]:
    """Give all columns of a matrix the same scale."""
    own = rounding.Order.importance.fget  # type: ignore[attr-defined]
    mean = property(lambda order: torch.full_like(own(order), own(order).log().mean().exp()))
    with mock.patch.object(rounding.Order, "importance", mean):
        yield


def mean_inputs(trial: Trial) -> dict[str, Tensor]:
    """Return the mean of what each Linear layer reads, over the calibration speech."""
    sums: dict[str, Tensor] = {}
    places: dict[str, int] = {}

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def forward(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            read = inputs[0].flatten(0, -2)
            sums[name], places[name] = sums.get(name, 0) + read.sum(0), places.get(name, 0) + len(read)

        return forward

    hooks = [trial.modules[name].register_forward_pre_hook(watch(name)) for name in trial.biases]
    with torch.no_grad():
        for features, tokens in trial.heard:
            trial.model.model.decoder(tokens, trial.model.caches(features, tokens.shape[1]))
    for hook in hooks:
        hook.remove()
    return {name: sums[name] / places[name] for name in sums}


def main() -> None:
    """Print a line for each way."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--budget", type=float, default=15.5, help="per cent of fp32's size, 15.5 if not given")
    trial = Trial(parser.parse_args().budget)
    originals, room = trial.originals, trial.room
    spoken = sum(len(window.states) for _, window in trial.judges)
    print(f"{len(trial.heard)} utterances calibrate, {len(trial.judges)} with {spoken:,} tokens judge", flush=True)

    begun = time.perf_counter()
    sums, tokens = trial.gather(trial.heard)
    found = {name: each.layer(tokens) for name, each in sums.items()}
    measured = time.perf_counter()
    best = allocation.fill(originals, found, room)
    print(
        f"{measured - begun:.0f} s for sensitivities, {time.perf_counter() - measured:.0f} s for rounding", flush=True
    )
    trial.judge("mixed", best)
    kinds: dict[str, list[packing.Packed]] = {}
    for name, packed in best.items():
        kinds.setdefault("{part} {kind}".format(**place(name)), []).append(packed)
    spent = {kind: 8 * sum(p.size() for p in of) / sum(p.codes.numel() for p in of) for kind, of in kinds.items()}
    told = ", ".join(f"{kind} {each:.1f}" for kind, each in sorted(spent.items(), key=lambda item: -item[1]))
    print(f"its bits a weight, scales included: {told}", flush=True)

    with mock.patch.object(rounding, "entropy_coded", lambda weight, _, *grid: rounding.rounded(weight, *grid)):
        trial.judge("each weight to its nearest code, without GPTQ", allocation.fill(originals, found, room))
    with like_columns():
        trial.judge("columns of a matrix alike", allocation.fill(originals, found, room))
    alike = changed(found, lambda _, layer: Layer(layer.inputs, torch.full_like(layer.outputs, 1 / len(layer.outputs))))
    trial.judge("rows of a matrix alike", allocation.fill(originals, alike, room))
    uneven = changed(found, lambda name, layer: Layer(layer.inputs, sums[name].outputs / sums[name].outputs.sum()))
    trial.judge("rows by their gradient alone", allocation.fill(originals, uneven, room))
    apart = changed(found, lambda name, layer: Layer(layer.inputs / sums[name].coherence, layer.outputs))
    trial.judge("positions of a recording as if they erred apart", allocation.fill(originals, apart, room))
    for part in (2, 4, 8):
        fewer, words = trial.gather(trial.heard[::part])
        less = {name: each.layer(words) for name, each in fewer.items()}
        trial.judge(f"with a share of the calibration speech: 1/{part}", allocation.fill(originals, less, room))

    means = mean_inputs(trial)
    shifts = {name: (best[name].weight() - originals[name]) @ mean for name, mean in means.items()}
    biases = {name: bias - shifts[name] for name, bias in trial.biases.items() if bias is not None}
    trial.judge("mixed, and biases corrected for the mean error", best, biases)
    trial.use(best)
    rounded_sums, rounded_tokens = trial.gather(trial.heard)
    trial.restore()
    again = {name: each.layer(rounded_tokens) for name, each in rounded_sums.items()}
    trial.judge("mixed again, by what layers see in the rounded model", allocation.fill(originals, again, room))

    orders = {name: rounding.Order.of(layer.inputs, sensitivity.damping(name)) for name, layer in found.items()}
    for bits in (4, 3):
        uniform = {name: rounding.gptq(weight, orders[name], bits, 64) for name, weight in originals.items()}
        trial.judge(f"GPTQ: {bits} bits everywhere, groups of 64", uniform)
        nearest = {name: rounding.nearest(weight, bits) for name, weight in originals.items()}
        trial.judge(f"round to nearest: {bits} bits everywhere, groups of 64", nearest)


if __name__ == "__main__":
    main()
