"""Whisper as plain PyTorch modules, with the module and parameter names of Hugging Face's checkpoints.

Why not Transformers' class: importing it takes four times as long as torch, twice for every variant, and a loop over
preallocated caches decodes faster than `generate` (see benchmarks/). Tests hold the logits of both together.
Architecture: Radford et al. 2022, "Robust Speech Recognition via Large-Scale Weak Supervision" (arXiv 2212.04356).
"""

import functools
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.core.errors import UserError

_LEAST = {"max_source_positions": 50, "max_target_positions": 5}
"""A second of sound; the longest prompt, and a token after it."""
_MOST = 1_000_000
"""More than any dimension of a Whisper: whatever is beyond is a slip, and would never end."""

_ONLY = {"activation_function": "gelu", "scale_embedding": False, "position_embedding_type": "absolute"}
"""Settings that change what a model computes, and the one value that is built here: every published Whisper's."""

_SAME = {
    "hidden_size": "d_model",
    "num_attention_heads": "encoder_attention_heads",
    "num_hidden_layers": "encoder_layers",
}
"""Transformers' other names of dimensions: where both stand in a file, it takes these."""


@dataclass(frozen=True)
class Config:
    """The dimensions in a Whisper checkpoint's config.json."""

    d_model: int
    encoder_layers: int
    encoder_attention_heads: int
    encoder_ffn_dim: int
    decoder_layers: int
    decoder_attention_heads: int
    decoder_ffn_dim: int
    vocab_size: int
    num_mel_bins: int
    max_source_positions: int
    max_target_positions: int

    @classmethod
    def read(cls, folder: Path) -> "Config":
        """Read config.json of a checkpoint; raise UserError when it is not Whisper's."""
        try:
            raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UserError(f"{folder} holds no checkpoint: config.json is missing") from None
        return cls.of(str(folder), raw)

    @classmethod
    def of(cls, where: str, raw: Mapping[str, Any]) -> "Config":
        """Take the dimensions out of what config.json holds; raise UserError for what the network below cannot be."""
        config = {}
        for key in cls.__dataclass_fields__:
            if key not in raw:
                raise UserError(f"{where}: config.json has no key {key!r}, so it is not Whisper's")
            config[key] = raw[key]
            if type(raw[key]) is not int or not _LEAST.get(key, 1) <= raw[key] <= _MOST:
                needed = f"a whole number from {_LEAST.get(key, 1)} to {_MOST:,} is needed"
                raise UserError(f"{where}: config.json: {key} is {raw[key]!r}, but {needed}")
        for side in ("encoder", "decoder"):
            if config["d_model"] % (heads := config[f"{side}_attention_heads"]):
                width = f"d_model {config['d_model']}"
                raise UserError(f"{where}: config.json: {heads} {side}_attention_heads do not divide {width}")
        for key, only in _ONLY.items():
            if raw.get(key, only) != only:
                raise UserError(f"{where}: config.json: {key} is {raw[key]!r}, but this Whisper has {only!r} alone")
        for key, same in _SAME.items():
            if raw.get(key, config[same]) != config[same]:
                raise UserError(
                    f"{where}: config.json: {key} is {raw[key]!r}, but {same} is {config[same]}; correct one"
                )
        return cls(**config)


@dataclass
class Cache:
    """Keys and values of one attention, (batch, heads, positions, head width); `length` positions are filled."""

    keys: Tensor
    values: Tensor
    length: int = 0

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write new positions in place and return views of all that are filled."""
        end = self.length + keys.shape[2]
        self.keys[:, :, self.length : end] = keys
        self.values[:, :, self.length : end] = values
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def drop(self, empty: Sequence[int], last: Sequence[int], rows: int) -> None:
        """Keep `rows` rows of the batch: those `last` move to the places of the `empty`, nothing else is copied."""
        for tensor in (self.keys, self.values):
            tensor[empty] = tensor[last]
        self.keys, self.values = self.keys[:rows], self.values[:rows]


def _room(like: Tensor, rows: int, positions: int) -> Cache:
    """Make an empty cache for keys and values that look like these (any batch, heads, any positions, head width)."""
    shape = (rows, like.shape[1], positions, like.shape[3])
    return Cache(like.new_empty(shape), like.new_empty(shape))


_MANY, _SCORES = 256, 750 * 1500 * 4
"""Queries from which attention goes by blocks; bytes of a block's scores, which stay in the cores' caches."""


def _by_onednn(x: Tensor) -> bool:
    """Tell whether oneDNN shall multiply: on a CPU, where no gradients are asked for; it has none.

    PyTorch leaves float32 to MKL, which takes AVX2 on AMD's processors: oneDNN's AVX-512 is more than twice as fast
    there, and the output head, most of the weights that a token reads, four times (benchmarks/products.py).
    """
    return x.device.type == "cpu" and not torch.is_grad_enabled()


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return `functional.linear`, by oneDNN where it can."""
    if _by_onednn(x):
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")  # type: ignore[no-any-return]
    return functional.linear(x, weight, bias)


def _linear(layer: nn.Linear, x: Tensor) -> Tensor:
    plain = type(layer.weight) is nn.Parameter  # libraries put tensors of their own in its place
    return (linear if plain else functional.linear)(x, layer.weight, layer.bias)


# In place where nobody asks for gradients: new memory for the positions of sound takes longer than the arithmetic.


def _gelu(x: Tensor) -> Tensor:
    return functional.gelu(x) if torch.is_grad_enabled() else torch.ops.aten.gelu_(x)


def _add(x: Tensor, new: Tensor) -> Tensor:
    return x + new if torch.is_grad_enabled() else new.add_(x)


def _attention(query: Tensor, keys: Tensor, values: Tensor, precision: torch.dtype) -> Tensor:
    """Return what `functional.scaled_dot_product_attention` does, of (batch, heads, positions, width).

    `precision` is that of the products. In bfloat16 a processor that multiplies it takes half the time, and values need
    not be transposed.
    """
    mixed = torch.empty_like(query)
    query, keys = (query * query.shape[-1] ** -0.5).to(precision), keys.to(precision).contiguous()
    half = precision == torch.bfloat16
    values = values.to(precision) if half else values.transpose(2, 3).contiguous()
    block = _SCORES // (keys.shape[2] * keys.itemsize)
    for batch, head in itertools.product(*map(range, query.shape[:2])):
        for start in range(0, query.shape[2], block):
            rows = batch, head, slice(start, start + block)
            weights = linear(query[rows].contiguous(), keys[batch, head]).softmax(dim=-1)
            heard = values[batch, head]
            mixed[rows] = weights @ heard if half else linear(weights, heard)
    return mixed


class Attention(nn.Module):
    """Multi-head attention; keys have no bias, as in every Whisper."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.precision = torch.float32
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def keys_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Project (batch, positions, width) to keys and values by heads."""
        return self._split(self.k_proj(x)), self._split(self.v_proj(x))

    def attend(self, x: Tensor, keys: Tensor, values: Tensor, causal: bool = False) -> Tensor:
        """Attend from `x` (batch, positions, width) to the keys and values."""
        query = self._split(self.q_proj(x))
        if x.shape[1] >= _MANY and not causal and _by_onednn(x):
            mixed = _attention(query, keys, values, self.precision)
        else:
            mixed = functional.scaled_dot_product_attention(query, keys, values, is_causal=causal)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]  # nn.Module is untyped

    def _split(self, x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:2], self.heads, -1).transpose(1, 2)


class EncoderLayer(nn.Module):
    """Self-attention and a feed-forward network, each with a pre-norm and a residual."""

    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.self_attn = Attention(width, heads)
        self.self_attn_layer_norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, inner)
        self.fc2 = nn.Linear(inner, width)
        self.final_layer_norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.self_attn_layer_norm(x)
        x = _add(x, self.self_attn.attend(normed, *self.self_attn.keys_values(normed)))
        return _add(x, self.feed_forward(x))

    def feed_forward(self, x: Tensor) -> Tensor:
        """Return what the feed-forward network adds to `x`."""
        return self.fc2(_gelu(self.fc1(self.final_layer_norm(x))))  # type: ignore[no-any-return]


class DecoderLayer(EncoderLayer):
    """An encoder layer with cross-attention to the audio in its middle."""

    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__(width, heads, inner)
        self.encoder_attn = Attention(width, heads)
        self.encoder_attn_layer_norm = nn.LayerNorm(width)

    def step(self, x: Tensor, own: Cache, audio: Cache) -> Tensor:
        """Decode new positions: `own` caches the text so far, `audio` the encoder's keys and values."""
        normed = self.self_attn_layer_norm(x)
        causal = x.shape[1] > 1  # only the prompt has several positions, and it comes first
        keys, values = own.append(*self.self_attn.keys_values(normed))
        x = _add(x, self.self_attn.attend(normed, keys, values, causal))
        x = _add(x, self.encoder_attn.attend(self.encoder_attn_layer_norm(x), audio.keys, audio.values))
        return _add(x, self.feed_forward(x))


class Encoder(nn.Module):
    """Log-mel features (batch, mels, frames) to audio states (batch, frames / 2, width)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        width = config.d_model
        self.conv1 = nn.Conv1d(config.num_mel_bins, width, kernel_size=3, padding=1)
        self.conv2 = nn.Conv1d(width, width, kernel_size=3, stride=2, padding=1)
        self.embed_positions = nn.Embedding(config.max_source_positions, width)
        sizes = width, config.encoder_attention_heads, config.encoder_ffn_dim
        self.layers = nn.ModuleList(EncoderLayer(*sizes) for _ in range(config.encoder_layers))
        self.layer_norm = nn.LayerNorm(width)

    def forward(self, features: Tensor) -> Tensor:
        x = _gelu(self.conv2(_gelu(self.conv1(features)))).transpose(1, 2).contiguous()
        x = x + self.embed_positions.weight[: x.shape[1]]
        for layer in self.layers:
            x = layer(x)
        return self.layer_norm(x)  # type: ignore[no-any-return]


class Decoder(nn.Module):
    """Token ids and audio states to states of the text."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        width = config.d_model
        self.embed_tokens = nn.Embedding(config.vocab_size, width)
        self.embed_positions = nn.Embedding(config.max_target_positions, width)
        sizes = width, config.decoder_attention_heads, config.decoder_ffn_dim
        self.layers = nn.ModuleList(DecoderLayer(*sizes) for _ in range(config.decoder_layers))
        self.layer_norm = nn.LayerNorm(width)

    def forward(self, tokens: Tensor, caches: list[tuple[Cache, Cache]]) -> Tensor:
        start = caches[0][0].length
        x = self.embed_tokens(tokens) + self.embed_positions.weight[start : start + tokens.shape[1]]
        for layer, (own, audio) in zip(self.layers, caches, strict=True):
            x = layer.step(x, own, audio)  # type: ignore[operator]  # ModuleList forgets its items' type
        return self.layer_norm(x)  # type: ignore[no-any-return]


class Body(nn.Module):
    """Encoder and decoder, under the prefix `model.` that the checkpoints have."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)


class Whisper(nn.Module):
    """Whisper with its output head `proj_out`, tied to the token embedding unless a backend replaces it."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.model = Body(config)
        self.proj_out = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.tie()
        for layer in self.modules():
            if isinstance(layer, nn.Linear):  # and no subclass, for libraries look for this very type
                layer.forward = functools.partial(_linear, layer)  # type: ignore[method-assign]

    def tie(self) -> None:
        """Share the head's weight with the token embedding."""
        self.proj_out.weight = self.model.decoder.embed_tokens.weight

    @property
    def tied(self) -> bool:
        """Whether the head is the token embedding; what a library has put in its place may have no weight."""
        return getattr(self.proj_out, "weight", None) is self.model.decoder.embed_tokens.weight

    @property
    def device(self) -> torch.device:
        return self.model.decoder.layer_norm.weight.device

    def caches(self, features: Tensor, positions: int) -> list[tuple[Cache, Cache]]:
        """Encode the audio and make each decoder layer's caches, with room for `positions` tokens."""
        # One utterance at a time on a CPU: 1,500 positions keep its cores busy, and an encoder layer's activations stay
        # in its caches. That takes less time and memory than a batch, and dynamic activations keep their own scales.
        together = 1 if self.device.type == "cpu" else len(features)
        made: list[tuple[Cache, Cache]] = []
        for start in range(0, len(features), together):
            part = slice(start, start + together)
            states = self.model.encoder(features[part])
            for number, layer in enumerate(self.model.decoder.layers):
                assert isinstance(layer, DecoderLayer)
                keys, values = layer.encoder_attn.keys_values(states)
                if number == len(made):
                    made.append((_room(keys, len(features), positions), _room(keys, len(features), keys.shape[2])))
                made[number][1].keys[part], made[number][1].values[part] = keys, values
        return made

    def next_logits(self, tokens: Tensor, caches: list[tuple[Cache, Cache]]) -> Tensor:
        """Decode new tokens (batch, positions) and return the logits (batch, vocabulary) of what follows them."""
        return self.proj_out(self.model.decoder(tokens, caches)[:, -1])  # type: ignore[no-any-return]

    def forward(self, features: Tensor, tokens: Tensor) -> Tensor:
        """Return the logits (batch, positions, vocabulary) of whole token sequences."""
        return self.proj_out(self.model.decoder(tokens, self.caches(features, tokens.shape[1])))  # type: ignore[no-any-return]
