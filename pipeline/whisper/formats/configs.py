"""The JSON files around Whisper's weights, in the shape they have on the hub, derived from weights and tokenizer."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.core.errors import UserError

Shapes = Mapping[str, tuple[int, ...]]

TASKS = ("translate", "transcribe")
START, TRANSLATE = "<|startoftranscript|>", "<|translate|>"  # the language tokens lie between these two

DEFAULTS = Path(__file__).parent / "defaults"
"""The files that are the same for every Whisper."""


def special_tokens(tokenizer: Mapping[str, Any]) -> dict[str, int]:
    """Return the ids of Whisper's special tokens, by content; raise UserError when a tokenizer.json lacks one."""
    tokens = {entry["content"]: int(entry["id"]) for entry in tokenizer.get("added_tokens", [])}
    for needed in ("<|endoftext|>", START, TRANSLATE, "<|transcribe|>", "<|notimestamps|>"):
        if needed not in tokens:
            raise UserError(f"tokenizer.json has no token {needed}; it is not Whisper's tokenizer")
    return tokens


def model_config(shapes: Shapes, heads: int, tokens: Mapping[str, int]) -> dict[str, Any]:
    """Return config.json for weights of these shapes (Hugging Face's names); raise UserError when one is missing."""

    def shape(name: str) -> tuple[int, ...]:
        if f"model.{name}.weight" not in shapes:
            raise UserError(f"the weights lack the tensor model.{name}.weight; they are not Whisper's")
        return shapes[f"model.{name}.weight"]

    def layers(side: str) -> int:
        return sum(name.startswith(f"model.{side}.layers.") and name.endswith(".fc1.weight") for name in shapes)

    width, bins, _kernel = shape("encoder.conv1")
    return {
        "architectures": ["WhisperForConditionalGeneration"],
        "model_type": "whisper",
        "is_encoder_decoder": True,
        "activation_function": "gelu",
        "d_model": width,
        "num_mel_bins": bins,
        "vocab_size": shape("decoder.embed_tokens")[0],
        "max_source_positions": shape("encoder.embed_positions")[0],
        "max_target_positions": shape("decoder.embed_positions")[0],
        "encoder_layers": layers("encoder"),
        "encoder_attention_heads": heads,
        "encoder_ffn_dim": shape("encoder.layers.0.fc1")[0],
        "decoder_layers": layers("decoder"),
        "decoder_attention_heads": heads,
        "decoder_ffn_dim": shape("decoder.layers.0.fc1")[0],
        "scale_embedding": False,
        "tie_word_embeddings": True,
        "dtype": "float32",
        **_start_and_end(tokens),
    }


def generation_config(tokens: Mapping[str, int], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return generation_config.json; `given` may hold alignment_heads, suppress_tokens, begin_suppress_tokens."""
    end, start = tokens["<|endoftext|>"], tokens[START]
    config: dict[str, Any] = {
        "alignment_heads": given.get("alignment_heads"),
        "begin_suppress_tokens": given.get("begin_suppress_tokens") or [end],
        **_start_and_end(tokens),
        "is_multilingual": is_multilingual(tokens),
        "max_initial_timestamp_index": 50,
        "max_length": 448,
        "no_timestamps_token_id": tokens["<|notimestamps|>"],
        "prev_sot_token_id": tokens.get("<|startofprev|>"),
        "return_timestamps": False,
        "suppress_tokens": given.get("suppress_tokens") or [],
    }
    if config["is_multilingual"]:
        languages = {token: place for token, place in tokens.items() if start < place < tokens[TRANSLATE]}
        config["lang_to_id"] = dict(sorted(languages.items()))
        config["task_to_id"] = {task: tokens[f"<|{task}|>"] for task in TASKS}
    return {key: value for key, value in config.items() if value is not None}


def is_multilingual(tokens: Mapping[str, int]) -> bool:
    """Tell the multilingual tokenizer from the English one: that is GPT-2's, whose end of text is 50256."""
    return tokens["<|endoftext|>"] != 50256


def tokenizer_config() -> dict[str, Any]:
    """Return tokenizer_config.json."""
    return dict(json.loads((DEFAULTS / "tokenizer_config.json").read_text(encoding="utf-8")))


def preprocessor_config(bins: int) -> dict[str, Any]:
    """Return preprocessor_config.json: log-mel spectra of 30 s in `bins` bands, 100 frames a second."""
    default = dict(json.loads((DEFAULTS / "preprocessor_config.json").read_text(encoding="utf-8")))
    return default | {"feature_size": bins}


def _start_and_end(tokens: Mapping[str, int]) -> dict[str, int]:
    ends = ("bos_token_id", "eos_token_id", "pad_token_id")
    return dict.fromkeys(ends, tokens["<|endoftext|>"]) | {"decoder_start_token_id": tokens[START]}
