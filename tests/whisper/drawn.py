"""Toy Whisper checkpoints drawn at random, sound and broken ones, each from a seed.

Usage: python -m tests.whisper.drawn 300 [--seed N]

Draws so many, from seed N on, holds each against the property of test_drawn.py, and tells how many were equal to
Transformers, refused and wrong. What may be wrong with a checkpoint stands in `REFUSED` and `EITHER`.
"""

import argparse
import collections
import contextlib
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from tests.whisper import sound
from tests.whisper.sound import (
    CONFIG,
    DIMENSIONS,
    EMBEDDING,
    END,
    FEATURES,
    GENERATION,
    HEAD,
    INDEX,
    POSITIONS,
    SILENT,
    START,
    TOKENIZER,
    Checkpoint,
    lively,
    pick,
)

Spoil = Callable[[Checkpoint], str | None]
"""Makes a checkpoint odd; returns a pattern of what a refusal must name, or None where it does not apply."""
Change = Callable[[np.random.Generator, torch.Tensor], torch.Tensor | None]


def _json(file: str, key: str, *values: Any, named: str = "") -> Spoil:
    """Set a key to one of the values; a function makes its value of the present one, where there is one.

    A refusal must name the key, its file, or what is `named`.
    """

    def spoil(it: Checkpoint) -> str | None:
        value, document = pick(it.rng, *values), it.json.get(file)
        if callable(value):
            if not isinstance(document, dict) or document.get(key) is None:
                return None
            value = value(document[key])
        if isinstance(document, dict) or document is None:
            it.json[file] = (document or {}) | {key: value}
        return "|".join([key, *([] if file in (CONFIG, GENERATION) else [file]), *filter(None, [named])])

    return spoil


def _dimension(*changes: Callable[[int], Any], named: str = "") -> Spoil:
    def spoil(it: Checkpoint) -> str | None:
        key = str(it.rng.choice([key for key in DIMENSIONS if type(it.json[CONFIG].get(key)) is int]))
        return _json(CONFIG, key, *changes, named=named)(it)

    return spoil


def _no_dimension(it: Checkpoint) -> str:
    key = str(it.rng.choice(DIMENSIONS))
    it.json[CONFIG].pop(key)
    return key


def _no_object(it: Checkpoint) -> str:
    name = str(it.rng.choice(sorted(it.json)))
    it.json[name] = pick(it.rng, [], None, "text")
    return name


def _no_token(it: Checkpoint) -> str:
    lost = str(pick(it.rng, END, START, SILENT, "<|transcribe|>"))
    for token in it.json[TOKENIZER]["added_tokens"]:
        if token["content"] == lost:
            token["content"] = "<|other|>"
    return re.escape(lost)


def _other_kind(it: Checkpoint) -> str | None:
    """Contradict the tokenizer about languages."""
    if "lang_to_id" not in it.json.get(GENERATION, {}) and (it.language or "<|en|>" in it.tokens):
        return None  # nothing tells this from a model that knows English only, and its tokenizer more
    return _json(GENERATION, "is_multilingual", lambda _: not it.language)(it) and "multilingual"


def _tensor(change: Change) -> Spoil:
    """Change a tensor other than the head, or leave it out."""

    def spoil(it: Checkpoint) -> str:
        name = str(it.rng.choice(sorted(it.tensors.keys() - {HEAD})))
        changed = change(it.rng, it.tensors.pop(name))
        it.tensors |= {} if changed is None else {name: changed}
        return f"{name}|layers in the" if ".fc1." in name else name  # layers are counted by fc1

    return spoil


def _infinite(rng: np.random.Generator, tensor: torch.Tensor) -> torch.Tensor:
    tensor.view(-1)[rng.integers(tensor.numel())] = pick(rng, float("nan"), float("inf"), float("-inf"))
    return tensor


def _shorter(key: str, name: str, length: Callable[[Checkpoint], int]) -> Spoil:
    """Make the tensors of that name shorter, and config.json say so."""

    def spoil(it: Checkpoint) -> str:
        it.json[CONFIG][key] = length(it)
        for tensor in it.tensors.keys() & {name, HEAD if name == EMBEDDING else name}:
            it.tensors[tensor] = it.tensors[tensor][: it.json[CONFIG][key]].clone()
        return key

    return spoil


def _no_head(it: Checkpoint) -> str | None:
    return "proj_out|tie_word" if it.untied and it.tensors.pop(HEAD, None) is not None else None


def _other_head(it: Checkpoint) -> str | None:
    if it.untied:
        return None
    it.tensors[HEAD] = lively(HEAD, it.tensors[EMBEDDING]).to(it.tensors[EMBEDDING].dtype)
    it.model.proj_out.weight = torch.nn.Parameter(it.tensors[HEAD].float())  # Transformers takes it, too
    return "proj_out|tie_word"


def _more_tensors(it: Checkpoint) -> str:
    name = str(pick(it.rng, "model.decoder.adapter.weight", "model.encoder.layers.0.self_attn.k_proj.bias"))
    it.tensors[name] = torch.zeros(it.model.config.d_model)
    return name


_NO_IDS = [lambda _, wrong=wrong: [wrong] for wrong in (-1, "1", 2.5, None)]
REFUSED: dict[str, Spoil] = {
    "NaN or infinity": _tensor(_infinite),
    "a tensor is missing": _tensor(lambda *_: None),
    "a tensor has another shape": _tensor(lambda _, tensor: torch.cat([tensor, tensor[-1:]])),
    "a tensor is of integers": _tensor(lambda _, tensor: tensor.to(torch.int8)),
    "the head is neither tied nor there": _no_head,
    "heads do not divide the width": _json(CONFIG, "decoder_attention_heads", 97),
    "other heads by another name": _json(CONFIG, "num_attention_heads", 97),
    "another activation": _json(CONFIG, "activation_function", "relu", "gelu_new"),
    "scaled embeddings": _json(CONFIG, "scale_embedding", True),
    "no number for a dimension": _dimension(lambda _: None, lambda _: [], lambda _: 0, lambda n: -n, lambda n: n + 0.5),
    "another dimension than the weights'": _dimension(lambda n: n + 97, named="but config.json"),
    "another type of model": _json(CONFIG, "model_type", "bart", None, named="type"),
    "fewer rows than tokens": _shorter(
        "vocab_size", EMBEDDING, lambda it: int(it.rng.integers(256, max(it.tokens.values())))
    ),
    "no position for a token": _shorter(
        "max_target_positions", f"model.{POSITIONS}", lambda it: int(it.rng.integers(1, 5 if it.language else 3))
    ),
    "other features": _json(FEATURES, "feature_size", 79, 129),
    "another sampling rate": _json(FEATURES, "sampling_rate", 8000),
    "suppresses what is no token": _json(GENERATION, "suppress_tokens", *_NO_IDS),
    "suppresses first what is no token": _json(GENERATION, "begin_suppress_tokens", *_NO_IDS),
    "a special token is missing": _no_token,
    "no added tokens": _json(TOKENIZER, "added_tokens", None, [], [{"content": END}]),
    "a tokenizer without a model": _json(TOKENIZER, "model", None, {}, {"type": "BPE", "vocab": {}, "merges": []}),
    "shards without a list": _json(INDEX, "weight_map", lambda _: None, lambda _: {}, lambda _: {HEAD: 1}),
    "a shard is missing": _json(
        INDEX, "weight_map", lambda files: files | {EMBEDDING: "model-9.safetensors"}, named="model-9"
    ),
    "a file is no JSON object": _no_object,
}
"""Where running on would end in a crash or in wrong numbers."""

EITHER: dict[str, Spoil] = {
    "tied, but the stored head differs": _other_head,
    "more tensors than Whisper has": _more_tensors,
    "a dimension as text or fraction": _dimension(str, float),
    "a dimension is missing": _no_dimension,
    "another width by another name": _json(CONFIG, "hidden_size", 7, None),
    "other layers by another name": _json(CONFIG, "num_hidden_layers", 7),
    "another start in config.json": _json(CONFIG, "decoder_start_token_id", 0, 50258),
    "another end in config.json": _json(CONFIG, "eos_token_id", 0, 50257, None),
    "another start": _json(GENERATION, "decoder_start_token_id", lambda n: n + 1, lambda _: 50258),
    "another end": _json(GENERATION, "eos_token_id", lambda _: 0, lambda _: [0, 1], lambda _: 50257),
    "another end of timestamps": _json(GENERATION, "no_timestamps_token_id", lambda n: n - 1, lambda _: 50363),
    "other languages": _json(GENERATION, "lang_to_id", lambda ids: {name: n + 1 for name, n in ids.items()}, list),
    "another kind of model": _other_kind,
    "suppresses what the model has not": _json(GENERATION, "suppress_tokens", lambda ids: [*ids, 99999]),
}
"""Where a statement contradicts the weights or the tokenizer, which decide if it is not refused."""


def draw(seed: int) -> Checkpoint:
    """Draw a checkpoint; about half of them are sound."""
    rng = np.random.default_rng(seed)
    checkpoint, oddities = sound.sound(rng, seed), EITHER | REFUSED
    for name, spoil in oddities.items():
        if rng.random() > 0.5 ** (1 / len(oddities)):
            pattern = spoil(checkpoint)
            if pattern is not None:
                checkpoint.odd[name] = pattern
    if checkpoint.odd:
        checkpoint.verdict = "refused" if checkpoint.odd.keys() & REFUSED.keys() else "either"
    return checkpoint


def main() -> int:
    """Draw checkpoints and tell what became of them; return 1 where one was not as it must be."""
    parser = argparse.ArgumentParser(prog="python -m tests.whisper.drawn", description=__doc__)
    parser.add_argument("count", type=int)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    from tests.whisper import test_drawn

    seeds = range(arguments.seed, arguments.seed + arguments.count)
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        test_drawn.prepare(Path(folder))
        outcomes = {seed: test_drawn.judge(draw(seed)) for seed in tqdm(seeds, unit="checkpoint")}
    faults = {seed: outcome for seed, outcome in outcomes.items() if outcome.fault}
    refused = [outcome.refusal for outcome in outcomes.values() if outcome.refusal and not outcome.fault]
    print(f"{len(seeds) - len(refused) - len(faults)} equal, {len(refused)} refused, {len(faults)} wrong")
    alike = (re.sub(r"model\.\w+\.\S*(weight|bias)|-?\d[\d,.]*", "…", sentence) for sentence in refused)
    for sentence, count in collections.Counter(alike).most_common():
        print(f"{count:4} {sentence}")
    for seed, outcome in faults.items():
        print(f"seed {seed} ({', '.join(outcome.odd) or 'nothing odd'}): {outcome.fault}")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
