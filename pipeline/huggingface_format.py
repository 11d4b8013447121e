"""Read, check and write Whisper checkpoints in Hugging Face's layout: safetensors, config.json, tokenizer.json."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import files, whisper_config
from pipeline.errors import UserError

if TYPE_CHECKING:
    import torch

HEAD = "proj_out.weight"
EMBEDDING = "model.decoder.embed_tokens.weight"


def read_json(where: str, path: Path) -> dict[str, Any]:
    """Read a JSON object; raise UserError when it is missing or none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{where}: {path} is missing; a Whisper checkpoint in Hugging Face's layout has it") from None
    except ValueError as error:
        raise UserError(f"{where}: {path} is not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise UserError(f"{where}: {path} is no JSON object")
    return value


def read_tensors(where: str, folder: Path) -> "dict[str, torch.Tensor]":
    """Read model.safetensors, or the shards its index names, as float32; raise UserError where that is not possible."""
    import torch
    from safetensors import SafetensorError, safe_open

    tensors = {}
    for path in _weights(where, folder):
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 (not a dict)
                    tensor = file.get_tensor(name)
                    if not tensor.is_floating_point():
                        raise UserError(f"{where}: {name} is {tensor.dtype}, a quantized weight is no baseline")
                    tensors[name] = tensor.to(torch.float32)
        except FileNotFoundError:
            raise UserError(f"{where}: {path} is missing, though the index of the weights names it") from None
        except SafetensorError as error:
            raise UserError(f"{where}: {path} is no whole safetensors file ({error})") from None
    return tensors


def _weights(where: str, folder: Path) -> list[Path]:
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = sorted(set(read_json(where, index).get("weight_map", {}).values()))
        for name in names:
            if Path(name).name != name:
                raise UserError(f"{where}: {index} names the file {name!r}, outside of its folder")
        return [folder / name for name in names]
    if list(folder.glob("*.bin")) or list(folder.glob("*.pt")):
        raise UserError(f"{where}: {folder} has pickled weights only, and no pickle is loaded; save it as safetensors")
    raise UserError(f"{where}: {folder} has no model.safetensors")


def normalize(where: str, source: Path, target: Path) -> int:
    """Write the checkpoint in `source` to the folder `target` as float32 with all its JSON files; count its parameters.

    Raises UserError when `source` is not a whole Whisper checkpoint.
    """
    from safetensors.torch import save_file

    config = read_json(where, source / "config.json")
    if config.get("model_type") != "whisper":
        raise UserError(
            f"{where}: {source} holds a model of type {config.get('model_type')!r}, but only whisper is known"
        )
    if "quantization_config" in config:
        raise UserError(f"{where}: {source} is quantized already; a baseline has its full weights")
    tokens = whisper_config.special_tokens(read_json(where, source / "tokenizer.json"))
    tensors = read_tensors(where, source)
    if config.get("tie_word_embeddings", True):
        tensors.pop(HEAD, None)  # the same values as the embedding
    check(where, config, {name: tuple(tensor.shape) for name, tensor in tensors.items()})
    target.mkdir()
    config = {key: value for key, value in config.items() if key != "torch_dtype"} | {"dtype": "float32"}
    files.write_json(target / "config.json", config)
    (target / "tokenizer.json").write_bytes((source / "tokenizer.json").read_bytes())
    generation = _optional(where, source, "generation_config.json")
    if "no_timestamps_token_id" not in generation:  # a bare one, as a model without training has
        generation = whisper_config.generation_config(tokens, config | generation)
    files.write_json(target / "generation_config.json", generation)
    tokenizer_config = _optional(where, source, "tokenizer_config.json") or whisper_config.TOKENIZER_CONFIG
    files.write_json(target / "tokenizer_config.json", tokenizer_config)
    features = (
        _optional(where, source, "preprocessor_config.json")
        or _optional(where, source, "processor_config.json").get("feature_extractor")
        or whisper_config.preprocessor_config(config["num_mel_bins"])
    )
    files.write_json(target / "preprocessor_config.json", features)
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()}, target / "model.safetensors", {"format": "pt"}
    )
    return sum(tensor.numel() for tensor in tensors.values())


def _optional(where: str, folder: Path, name: str) -> dict[str, Any]:
    return read_json(where, folder / name) if (folder / name).is_file() else {}


def check(where: str, config: Mapping[str, Any], shapes: whisper_config.Shapes) -> None:
    """Raise UserError when the tensors are not exactly those of the Whisper that `config` describes."""
    try:
        expected = dict(_expected(config))
    except KeyError as error:
        raise UserError(f"{where}: config.json has no key {error}") from None
    if not config.get("tie_word_embeddings", True):
        expected[HEAD] = expected[EMBEDDING]
    for name in sorted(expected.keys() | shapes.keys()):
        if name not in shapes:
            raise UserError(f"{where}: the weights lack the tensor {name}")
        if name not in expected:
            raise UserError(f"{where}: the weights have a tensor {name}, which is no part of Whisper")
        if tuple(shapes[name]) != expected[name]:
            raise UserError(
                f"{where}: the tensor {name} is {_times(shapes[name])}, "
                f"but config.json makes it {_times(expected[name])}"
            )


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _expected(config: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    width = config["d_model"]

    def linear(name: str, rows: int, columns: int, bias: bool = True) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield f"{name}.weight", (rows, columns)
        if bias:
            yield f"{name}.bias", (rows,)

    def norm(name: str) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield f"{name}.weight", (width,)
        yield f"{name}.bias", (width,)

    for number, bins in ((1, config["num_mel_bins"]), (2, width)):
        yield f"model.encoder.conv{number}.weight", (width, bins, 3)
        yield f"model.encoder.conv{number}.bias", (width,)
    yield "model.encoder.embed_positions.weight", (config["max_source_positions"], width)
    yield "model.decoder.embed_positions.weight", (config["max_target_positions"], width)
    yield EMBEDDING, (config["vocab_size"], width)
    for side, attentions in (("encoder", ("self_attn",)), ("decoder", ("self_attn", "encoder_attn"))):
        yield from norm(f"model.{side}.layer_norm")
        for layer in range(config[f"{side}_layers"]):
            prefix = f"model.{side}.layers.{layer}"
            for attention in attentions:
                yield from norm(f"{prefix}.{attention}_layer_norm")
                for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
                    yield from linear(f"{prefix}.{attention}.{part}", width, width, bias=part != "k_proj")
            yield from norm(f"{prefix}.final_layer_norm")
            yield from linear(f"{prefix}.fc1", config[f"{side}_ffn_dim"], width)
            yield from linear(f"{prefix}.fc2", width, config[f"{side}_ffn_dim"])
