"""The JSON files around Whisper's weights, in the shape they have on the hub, derived from weights and tokenizer."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.core.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Shapes = Mapping[str, tuple[int, ...]]

TASKS = ("translate", "transcribe")
START, TRANSLATE = "<|startoftranscript|>", "<|translate|>"  # the language tokens lie between these two

ENGLISH_END, MULTILINGUAL_END = 50256, 50257
"""Ids of the end of text in OpenAI's two vocabularies: the English one is GPT-2's."""

DEFAULTS = Path(__file__).parent / "defaults"
"""The files that are the same for every Whisper."""


def read_tokenizer(where: str, data: bytes) -> "Tokenizer":
    """Return the tokenizer of a tokenizer.json; raise UserError when it cannot be read."""
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_buffer(data)
    except Exception as error:  # the library raises no narrower class
        reason = " ".join(str(error).split())
        raise UserError(f"{where}: tokenizer.json cannot be read ({reason}); save the tokenizer again") from None


def special_tokens(where: str, tokenizer: "Tokenizer") -> dict[str, int]:
    """Return the ids of tokens that are added to the vocabulary, by content; raise UserError when one is missing."""
    tokens = {token.content: place for place, token in tokenizer.get_added_tokens_decoder().items()}
    for needed in ("<|endoftext|>", START, TRANSLATE, "<|transcribe|>", "<|notimestamps|>"):
        if needed not in tokens:
            raise UserError(f"{where}: tokenizer.json has no token {needed}; it is not Whisper's tokenizer")
    return tokens


def model_config(shapes: Shapes, heads: tuple[int, int], tokens: Mapping[str, int]) -> dict[str, Any]:
    """Return config.json for weights of these shapes (Hugging Face's names); raise UserError when one is missing.

    `heads` are those of encoder and decoder.
    """

    def shape(name: str) -> tuple[int, ...]:
        if f"model.{name}.weight" not in shapes:
            raise UserError(f"the weights lack the tensor model.{name}.weight; they are not Whisper's")
        return shapes[f"model.{name}.weight"]

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
        "encoder_layers": layers(shapes, "encoder"),
        "encoder_attention_heads": heads[0],
        "encoder_ffn_dim": shape("encoder.layers.0.fc1")[0],
        "decoder_layers": layers(shapes, "decoder"),
        "decoder_attention_heads": heads[1],
        "decoder_ffn_dim": shape("decoder.layers.0.fc1")[0],
        "scale_embedding": False,
        "tie_word_embeddings": True,
        "dtype": "float32",
        **_start_and_end(tokens),
    }


def layers(shapes: Shapes, side: str) -> int:
    """Count the layers of the encoder or decoder that these tensors are of."""
    return sum(name.startswith(f"model.{side}.layers.") and name.endswith(".fc1.weight") for name in shapes)


def generation_config(where: str, tokens: Mapping[str, int], size: int, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return generation_config.json: what is `given`, and what that leaves out, by the tokenizer's special tokens.

    `size` is the model's number of tokens; ids beyond it are passed over. Raises UserError where `given` and the
    tokenizer contradict each other.
    """
    config: dict[str, Any] = {
        "alignment_heads": None,
        "begin_suppress_tokens": [],
        **_start_and_end(tokens),
        "is_multilingual": is_multilingual(where, tokens, given.get("is_multilingual")),
        "max_initial_timestamp_index": 50,
        "max_length": 448,
        "no_timestamps_token_id": tokens["<|notimestamps|>"],
        "prev_sot_token_id": tokens.get("<|startofprev|>"),
        "return_timestamps": False,
        "suppress_tokens": [],
    }
    if config["is_multilingual"]:
        config["lang_to_id"] = _languages(tokens)
        config["task_to_id"] = {task: tokens[f"<|{task}|>"] for task in TASKS}
    elif given.get("lang_to_id") and tokens["<|endoftext|>"] != ENGLISH_END:
        raise UserError(f"{where}: is_multilingual is False, but there are languages in lang_to_id; correct one")
    for key, value in given.items():
        if value is None or value == {} or key == "_from_model_config":  # this would let Transformers make it anew
            continue
        if key in ("eos_token_id", "decoder_start_token_id", "no_timestamps_token_id"):
            impossible = isinstance(value, int) and value >= size  # Transformers' defaults, in a smaller vocabulary
            if not impossible and value not in (config[key], [config[key]]):
                raise UserError(f"{where}: {key} is {value!r}, but tokenizer.json shows {config[key]}; correct one")
        elif key in ("lang_to_id", "task_to_id"):
            if config["is_multilingual"]:
                config[key] = _names(where, key, value, tokens)
        elif key in ("suppress_tokens", "begin_suppress_tokens"):
            config[key] = _suppressed(where, key, value, size)
        else:
            config[key] = value
    return {key: value for key, value in config.items() if value is not None}


def _names(where: str, key: str, given: Any, tokens: Mapping[str, int]) -> dict[str, int]:
    """Check the ids of languages, by token, or of tasks, by name."""
    if not isinstance(given, dict):
        raise UserError(f"{where}: {key} is {given!r}, but a map of names to the ids of tokens is needed")
    for name, place in given.items():
        token = name if key == "lang_to_id" else f"<|{name}|>"
        if type(place) is not int or tokens.get(token) != place:
            shown = f"shows {tokens[token]}" if token in tokens else "has no such token"
            raise UserError(f"{where}: {key} has {token} at {place!r}, but tokenizer.json {shown}; correct one")
    return given


def _suppressed(where: str, key: str, given: Any, size: int) -> list[int]:
    """Return the tokens but for those that the model has not: Transformers passes over them, and writes some itself."""
    listed = given if isinstance(given, list) else [given]
    for token in listed:
        if type(token) is not int or token < 0:
            raise UserError(f"{where}: {key} has {token!r}, but a list of tokens' ids is needed; correct it")
    return [token for token in listed if token < size]


def is_multilingual(where: str, tokens: Mapping[str, int], told: object = None) -> bool:
    """Tell the multilingual tokenizer from the English one, by the end of text.

    With any other vocabulary it is as `told`, or where that is None, as there are languages among the tokens. Raises
    UserError where they contradict `told`.
    """
    end, languages = tokens["<|endoftext|>"], _languages(tokens)
    if told is not None and not isinstance(told, bool):
        raise UserError(f"{where}: is_multilingual is {told!r}, but it must be true or false")
    shown = {ENGLISH_END: False, MULTILINGUAL_END: True}.get(end, bool(languages) if told is None else told)
    if told is not None and told != shown:
        kind = "a multilingual" if shown else "an English"
        what = f"tokenizer.json, whose <|endoftext|> is {end}, is that of {kind} model"
        raise UserError(f"{where}: is_multilingual is {told}, but {what}; correct one")
    if shown and not languages:
        raise UserError(f"{where}: the model is multilingual, but tokenizer.json has no languages, such as <|en|>")
    return shown


def _languages(tokens: Mapping[str, int]) -> dict[str, int]:
    return dict(sorted((token, place) for token, place in tokens.items() if tokens[START] < place < tokens[TRANSLATE]))


def tokenizer_config() -> dict[str, Any]:
    """Return tokenizer_config.json."""
    return dict(json.loads((DEFAULTS / "tokenizer_config.json").read_text(encoding="utf-8")))


def preprocessor_config(where: str, bins: int, positions: int, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return preprocessor_config.json: log-mel spectra in `bins` bands, 100 frames a second, two of them a position.

    Raises UserError where the `given` one asks for other features than are made here (see `mel`).
    """
    default = dict(json.loads((DEFAULTS / "preprocessor_config.json").read_text(encoding="utf-8")))
    default["feature_size"] = bins
    made = {key: default[key] for key in ("feature_size", "sampling_rate", "hop_length", "n_fft", "padding_value")}
    for key, only in (made | {"do_normalize": False, "dither": 0.0}).items():
        if given.get(key, only) != only:
            what = f"preprocessor_config.json: {key} is {given[key]!r}, but the model gets {only!r}"
            raise UserError(f"{where}: {what}; correct it, or remove the file")
    window = {"chunk_length": positions // 50, "n_samples": 320 * positions, "nb_max_frames": 2 * positions}
    return default | dict(given) | window


def _start_and_end(tokens: Mapping[str, int]) -> dict[str, int]:
    ends = ("bos_token_id", "eos_token_id", "pad_token_id")
    return dict.fromkeys(ends, tokens["<|endoftext|>"]) | {"decoder_start_token_id": tokens[START]}
