"""Read, check and write Whisper checkpoints in Hugging Face's layout: safetensors, config.json, tokenizer.json."""

import json
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.core import files
from pipeline.core.errors import UserError
from pipeline.whisper.formats import configs

if TYPE_CHECKING:
    import torch

_IN_CONFIG = (
    *("eos_token_id", "decoder_start_token_id", "suppress_tokens", "begin_suppress_tokens"),
    *("bos_token_id", "pad_token_id"),
)
"""What config.json says of generation, where there is no generation_config.json."""


def read_json(where: str, path: Path) -> dict[str, Any]:
    """Read a JSON object; raise UserError when it is missing or none."""
    try:
        return parse(f"{where}: {path}", path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{where}: {path} is missing; a Whisper checkpoint in Hugging Face's layout has it") from None
    except OSError as error:
        raise UserError(f"{where}: {path} cannot be read ({error.strerror})") from None


def parse(what: str, data: bytes) -> dict[str, Any]:
    """Return the JSON object in `data`; raise UserError when it is none."""
    try:
        value = files.parse_json(data)
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
                    if tensor.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
                        raise UserError(f"{where}: {name} is {tensor.dtype}, a quantized weight is no baseline")
                    tensors[name] = tensor.to(torch.float32)
                    if not tensors[name].isfinite().all():
                        raise UserError(f"{where}: {name} holds values that are not finite; train or save it again")
        except FileNotFoundError:
            raise UserError(f"{where}: {path} is missing, though the index of the weights names it") from None
        except (SafetensorError, OSError, ValueError) as error:  # the latter of names that no file has
            raise UserError(f"{where}: {path} is no whole safetensors file ({error})") from None
    if not any(name.startswith("model.") for name in tensors):  # those of Transformers' WhisperModel, without a head
        tensors = {name if name == "proj_out.weight" else f"model.{name}": tensor for name, tensor in tensors.items()}
    return tensors


def _weights(where: str, folder: Path) -> list[Path]:
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        shards = read_json(where, index).get("weight_map")
        if not isinstance(shards, dict) or not shards or not all(isinstance(name, str) for name in shards.values()):
            raise UserError(f"{where}: {index} has no weight_map of tensors to files; save the model again")
        names = sorted(set(shards.values()))
        for name in names:
            if not name or Path(name).name != name:
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
    if config.get("quantization_config") is not None:
        raise UserError(f"{where}: {source} is quantized already; a baseline has its full weights")
    tensors = read_tensors(where, source)
    tensors = _head(where, config, tensors)

    def optional(name: str) -> dict[str, Any]:
        return read_json(where, source / name) if (source / name).is_file() else {}

    generation = optional("generation_config.json") or {key: config.get(key) for key in _IN_CONFIG}
    features = optional("preprocessor_config.json") or optional("processor_config.json").get("feature_extractor") or {}
    config = {key: value for key, value in config.items() if key != "torch_dtype"} | {"dtype": "float32"}
    tokenizer, tokenizer_config = _tokenizer(where, source), optional("tokenizer_config.json")
    return write(where, target, config, generation, tokenizer, tensors, tokenizer_config, features)


def _head(where: str, config: Mapping[str, Any], tensors: "dict[str, torch.Tensor]") -> "dict[str, torch.Tensor]":
    """Return the tensors without a head that is the token embedding; raise UserError where it only ought to be.

    Transformers would take such a head for untied, earlier versions of it for tied.
    """
    from pipeline.whisper.model.weights import EMBEDDING, HEAD

    tied = config.get("tie_word_embeddings", True)
    if not isinstance(tied, bool):
        raise UserError(f"{where}: config.json: tie_word_embeddings is {tied!r}, but it must be true or false")
    if not tied or HEAD not in tensors:
        return tensors
    if not tensors[HEAD].equal(tensors.get(EMBEDDING, tensors[HEAD])):
        what = f"config.json ties {HEAD} to the token embedding, but their values differ"
        raise UserError(f"{where}: {what}; set tie_word_embeddings to false, or remove the tensor")
    return {name: tensor for name, tensor in tensors.items() if name != HEAD}


def _tokenizer(where: str, source: Path) -> bytes:
    """Return tokenizer.json, made by Transformers where only the files of a slow tokenizer are there."""
    if (source / "tokenizer.json").is_file():
        return (source / "tokenizer.json").read_bytes()
    slow = [name for name in ("vocab.json", "merges.txt") if not (source / name).is_file()]
    if slow:
        raise UserError(
            f"{where}: {source} has no tokenizer.json (nor {slow[0]}, to make it of); save the tokenizer there"
        )
    from transformers import WhisperTokenizer

    with tempfile.TemporaryDirectory() as folder:
        try:
            WhisperTokenizer.from_pretrained(source, local_files_only=True).save_pretrained(folder)
        except Exception as error:  # of many kinds
            reason = " ".join(str(error).split())
            raise UserError(f"{where}: no tokenizer can be made of vocab.json and merges.txt ({reason})") from None
        made = json.loads((Path(folder) / "tokenizer.json").read_bytes())
    for token in made["added_tokens"]:  # a slow tokenizer does not say which of them are special; timestamps are not
        token["special"] = re.fullmatch(r"<\|[^\d|][^|]*\|>", token["content"]) is not None
    return json.dumps(made, ensure_ascii=False).encode()


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

    Raises UserError when tensors, tokenizer, `generation` or `features` do not fit `config`, or one another.
    """
    from pipeline.whisper.model import weights

    check(where, config, {name: tuple(tensor.shape) for name, tensor in tensors.items()})
    generation = _generation(where, config["vocab_size"], tokenizer, generation)
    bins, positions = config["num_mel_bins"], config["max_source_positions"]
    features = configs.preprocessor_config(where, bins, positions, features or {})
    target.mkdir()
    files.write_json(target / "config.json", config)
    files.write_json(target / "generation_config.json", generation)
    files.write_json(target / "tokenizer_config.json", tokenizer_config or configs.tokenizer_config())
    files.write_json(target / "preprocessor_config.json", features)
    (target / "tokenizer.json").write_bytes(tokenizer)
    weights.save(tensors, target)
    return sum(tensor.numel() for tensor in tensors.values())


def _generation(where: str, size: int, tokenizer: bytes, given: dict[str, Any]) -> dict[str, Any]:
    read = configs.read_tokenizer(where, tokenizer)
    last = max(read.get_vocab().values(), default=0)
    if last >= size:
        what = f"tokenizer.json has tokens up to {last:,}, but the model has {size:,} (vocab_size)"
        raise UserError(f"{where}: {what}; one of them is another model's")
    return configs.generation_config(where, configs.special_tokens(where, read), size, given)


def check(where: str, config: Mapping[str, Any], shapes: configs.Shapes) -> None:
    """Raise UserError when the tensors are not exactly those of the Whisper that `config` describes."""
    import torch

    from pipeline.whisper.model import weights
    from pipeline.whisper.model.network import Config, Whisper

    dimensions = Config.of(where, config)
    for side in ("encoder", "decoder"):  # before that many are built
        told, there = config[f"{side}_layers"], configs.layers(shapes, side)
        if told != there:
            raise UserError(f"{where}: the weights have {there} layers in the {side}, but config.json says {told}")
    with torch.device("meta"):  # without memory for its weights
        model = Whisper(dimensions)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if config.get("tie_word_embeddings", True):
        del expected[weights.HEAD]
    for name in sorted(expected.keys() | shapes.keys()):
        if name not in shapes:
            raise UserError(f"{where}: the weights lack the tensor {name}")
        if name not in expected:
            raise UserError(f"{where}: the weights have a tensor {name}, which is no part of Whisper")
        if tuple(shapes[name]) != expected[name]:
            found, made = (" x ".join(map(str, shape)) for shape in (shapes[name], expected[name]))
            raise UserError(f"{where}: the tensor {name} is {found}, but config.json makes it {made}")
