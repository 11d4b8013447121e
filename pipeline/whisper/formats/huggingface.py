"""Read, check and write Whisper checkpoints in Hugging Face's layout: safetensors, config.json, tokenizer.json."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.core import files
from pipeline.core.errors import UserError
from pipeline.whisper.formats import configs

if TYPE_CHECKING:
    import torch

HEAD = "proj_out.weight"


def read_json(where: str, path: Path) -> dict[str, Any]:
    """Read a JSON object; raise UserError when it is missing or none."""
    try:
        return parse(f"{where}: {path}", path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{where}: {path} is missing; a Whisper checkpoint in Hugging Face's layout has it") from None


def parse(what: str, data: bytes) -> dict[str, Any]:
    """Return the JSON object in `data`; raise UserError when it is none."""
    try:
        value = json.loads(data)
    except ValueError as error:
        raise UserError(f"{what} is not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise UserError(f"{what} is no JSON object")
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

    config = read_json(where, source / "config.json")
    if config.get("model_type") != "whisper":
        kind = repr(config.get("model_type"))
        raise UserError(f"{where}: {source} holds a model of type {kind}, but only whisper is known")
    if "quantization_config" in config:
        raise UserError(f"{where}: {source} is quantized already; a baseline has its full weights")
    tokens = configs.special_tokens(read_json(where, source / "tokenizer.json"))
    tensors = read_tensors(where, source)
    if config.get("tie_word_embeddings", True):
        tensors.pop(HEAD, None)  # the same values as the embedding

    def optional(name: str) -> dict[str, Any]:
        return read_json(where, source / name) if (source / name).is_file() else {}

    generation = optional("generation_config.json")
    if "no_timestamps_token_id" not in generation:  # a bare one, as a model without training has
        generation = configs.generation_config(tokens, config | generation)
    tokenizer, tokenizer_config = (source / "tokenizer.json").read_bytes(), optional("tokenizer_config.json")
    features = optional("preprocessor_config.json") or optional("processor_config.json").get("feature_extractor")
    config = {key: value for key, value in config.items() if key != "torch_dtype"} | {"dtype": "float32"}
    return write(where, target, config, generation, tokenizer, tensors, tokenizer_config, features)


def write(
    where: str,
    target: Path,
    config: dict[str, Any],
    generation: dict[str, Any],
    tokenizer: bytes,
    tensors: "dict[str, torch.Tensor]",
    tokenizer_config: dict[str, Any] | None = None,
    features: dict[str, Any] | None = None,
) -> int:
    """Write a checkpoint to the folder `target`, with Whisper's usual settings for what is not given; count parameters.

    Raises UserError when the tensors do not fit `config`.
    """
    from pipeline.whisper import weights

    check(where, config, {name: tuple(tensor.shape) for name, tensor in tensors.items()})
    target.mkdir()
    files.write_json(target / "config.json", config)
    files.write_json(target / "generation_config.json", generation)
    files.write_json(target / "tokenizer_config.json", tokenizer_config or configs.tokenizer_config())
    features = features or configs.preprocessor_config(config["num_mel_bins"])
    files.write_json(target / "preprocessor_config.json", features)
    (target / "tokenizer.json").write_bytes(tokenizer)
    weights.save(tensors, target)
    return sum(tensor.numel() for tensor in tensors.values())


def check(where: str, config: Mapping[str, Any], shapes: configs.Shapes) -> None:
    """Raise UserError when the tensors are not exactly those of the Whisper that `config` describes."""
    import torch

    from pipeline.whisper.network import Config, Whisper

    with torch.device("meta"):  # without memory for its weights
        model = Whisper(Config.of(where, config))
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if config.get("tie_word_embeddings", True):
        del expected[HEAD]
    for name in sorted(expected.keys() | shapes.keys()):
        if name not in shapes:
            raise UserError(f"{where}: the weights lack the tensor {name}")
        if name not in expected:
            raise UserError(f"{where}: the weights have a tensor {name}, which is no part of Whisper")
        if tuple(shapes[name]) != expected[name]:
            found, made = (" x ".join(map(str, shape)) for shape in (shapes[name], expected[name]))
            raise UserError(f"{where}: the tensor {name} is {found}, but config.json makes it {made}")
