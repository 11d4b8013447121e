"""How much the text depends on each layer: the curvature of the KL divergence, measured on calibration speech.

Where a layer's weights (outputs, inputs) change by `e`, the next-token distribution moves by about
`sum_i outputs[i] * e_i H e_i / 2` nats a token, with H = `inputs`: Kronecker's form of the Fisher information (Martens
and Grosse 2015, arXiv 1503.05671). Positions of the sound count by how much the text depends on them, as with the
guided Hessians of Kim et al. 2025 (arXiv 2505.07004): of most recordings half is padding.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from pipeline.core import files
from pipeline.core.errors import UserError
from pipeline.whisper.model.network import Whisper

if TYPE_CHECKING:
    from pipeline.whisper.inference.decoding import Vocabulary
    from pipeline.whisper.quantization.calibration import Heard

PATH = Path("data/sensitivity.safetensors")
HEAD = "proj_out"
_PARTS = ("inputs", "outputs")

_EVEN = 0.3
"""Share of the gradient that all outputs get alike: where GELU is flat an output has none, until a large error."""

_COVERED = 0.998
"""Positions that make up so much of a layer's gradient are enough: padding costs time and tells nothing."""


@dataclass(frozen=True)
class Layer:
    """What the text's dependence on a Linear layer is made of."""

    inputs: Tensor
    """(inputs, inputs): second moments of the layer's inputs, weighted by the gradient at its outputs."""
    outputs: Tensor
    """(outputs,): each output's share of that gradient, about; they add up to 1."""

    def divergence(self, error: Tensor) -> float:
        """Return the KL divergence, in nats a token, to expect of an error (outputs, inputs) of the weights."""
        return float(0.5 * ((error @ self.inputs) * error).sum(1) @ self.outputs)


class Sums:
    """Sums over the tokens of what has come through one layer."""

    def __init__(self, layer: nn.Linear) -> None:
        self.inputs = torch.zeros(layer.in_features, layer.in_features)
        self.outputs = torch.zeros(layer.out_features)
        self.apart = self.together = 0.0

    def add(self, inputs: Tensor, gradient: Tensor) -> None:
        """Add positions: inputs (positions, inputs), gradient (positions, outputs)."""
        weights = gradient.square().sum(1)
        order = weights.argsort(descending=True)
        kept = order[: int((weights[order].cumsum(0) < _COVERED * weights.sum()).sum()) + 1]
        weighted = inputs[kept] * weights[kept].sqrt()[:, None]
        self.inputs += weighted.T @ weighted
        self.outputs += gradient.square().sum(0)
        self.apart += float(weights @ inputs.square().sum(1))
        self.together += float((gradient[kept].T @ inputs[kept]).square().sum())

    @property
    def coherence(self) -> float:
        """Return how much more an error does than positions one by one would tell: those of a recording share it."""
        return max(1.0, self.together / self.apart) if self.apart else 1.0

    def layer(self, tokens: int) -> Layer:
        """Return the means a token."""
        even = torch.full_like(self.outputs, 1 / len(self.outputs))
        shares = self.outputs / self.outputs.sum().clamp(min=torch.finfo(torch.float32).tiny)
        return Layer(self.inputs * (self.coherence / tokens), _EVEN * even + (1 - _EVEN) * shares)


def measure(model: Whisper, heard: "Iterable[Heard]", vocabulary: "Vocabulary") -> dict[str, Layer]:
    """Return every Linear layer's sensitivity, the output head's among them."""
    sums, tokens = gather(model, heard, vocabulary)
    return {name: found.layer(tokens) for name, found in sums.items()}


def gather(
    model: Whisper, heard: "Iterable[Heard]", vocabulary: "Vocabulary", seed: int = 0
) -> tuple[dict[str, Sums], int]:
    """Return the sums of every Linear layer, the output head's among them, and over how many tokens they are.

    One backward pass for each utterance. Log-likelihoods of all tokens, weighted with the root of their probability and
    a random sign, have the Fisher information as the expectation of their squared gradient.
    """
    linear = {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear) and name != HEAD}
    sums = {name: Sums(layer) for name, layer in [*linear.items(), (HEAD, model.proj_out)]}
    generator = torch.Generator().manual_seed(seed)
    hooks = [layer.register_forward_hook(_watch(sums[name])) for name, layer in linear.items()]
    sources = [model.model.encoder.conv1.weight, model.model.decoder.embed_positions.weight]
    for source in sources:  # from here gradients flow through every layer
        source.requires_grad_(True)
    tokens = 0
    for features, text in heard:
        states = model.model.decoder(text, model.caches(features, text.shape[1]))[0, len(vocabulary.prompt) - 1 :]
        allowed = torch.ones(model.config.vocab_size, dtype=torch.bool)
        allowed[vocabulary.suppressed] = False
        likelihood = model.proj_out(states)[:, allowed].log_softmax(1)
        share = likelihood.detach().exp()
        signs = torch.randint(2, share.shape, generator=generator) * 2.0 - 1
        (likelihood * share.sqrt() * signs).sum().backward()
        for source in sources:
            source.grad = None
        spread = share * (1 - share)  # the expected square of the gradient at each logit
        certain = spread.sum(1)
        found, states = sums[HEAD], states.detach()
        found.inputs += (states * certain[:, None]).T @ states
        found.outputs += 1.0  # rare words are words too: every row of the head counts the same
        tokens += len(states)
    for hook in hooks:
        hook.remove()
    for source in sources:
        source.requires_grad_(False)
    return sums, tokens


def write(layers: Mapping[str, Layer], path: Path = PATH) -> None:
    """Write the layers' sensitivities."""
    tensors = {f"{name}.{key}": tensor for name, layer in layers.items() for key, tensor in vars(layer).items()}
    with files.aside(path) as partial:
        save_file(tensors, partial)


class Stored(Mapping[str, Layer]):
    """Sensitivities in a file, each read when it is asked for: of a large model they are gigabytes."""

    def __init__(self, path: Path) -> None:
        opened: Any = safe_open(path, "pt")  # it has no types
        self._file = opened
        self._names = dict.fromkeys(str(key).rpartition(".")[0] for key in opened.keys())  # noqa: SIM118  # no mapping

    def __getitem__(self, name: str) -> Layer:
        if name not in self._names:
            raise KeyError(name)
        return Layer(*(self._file.get_tensor(f"{name}.{key}") for key in _PARTS))

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape (outputs, inputs) of a layer's weight."""
        inputs, outputs = (self._file.get_slice(f"{name}.{key}").get_shape()[0] for key in _PARTS)
        return outputs, inputs


def read(model: Whisper, path: Path = PATH) -> Stored:
    """Read the sensitivities of this model's layers; raise UserError where they are not there, or another model's."""
    try:
        found = Stored(path)
        shapes = {name: found.shape(name) for name in found}
    except FileNotFoundError:
        raise UserError(f"{path} is not here; run 'python -m pipeline.sensitivity' first") from None
    except SafetensorError:
        raise UserError(f"{path} is cut short or damaged; run 'python -m pipeline.sensitivity' again") from None
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and shapes.get(name) != module.weight.shape:
            raise UserError(
                f"{path} is of another model, as {name} differs; run 'python -m pipeline.sensitivity' again"
            )
    return found


def damping(layer: str) -> float:
    """Return what share of the mean second moment to add to each: the more, the fewer positions were seen."""
    return 0.01 if layer.startswith("model.encoder.") else 0.1


def _watch(sums: Sums) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
    def forward(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen = inputs[0].detach().flatten(0, -2)
        output.register_hook(lambda gradient: sums.add(seen, gradient.flatten(0, -2)))

    return forward
