"""Sound toy Whisper checkpoints, each drawn at random from a seed, with what is true of it."""

import collections
import copy
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

HEAD, EMBEDDING, POSITIONS = "proj_out.weight", "model.decoder.embed_tokens.weight", "decoder.embed_positions.weight"
CONFIG, GENERATION = "config.json", "generation_config.json"
FEATURES, TOKENIZER, INDEX = "preprocessor_config.json", "tokenizer.json", "model.safetensors.index.json"
END, START, SILENT = "<|endoftext|>", "<|startoftranscript|>", "<|notimestamps|>"
TYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
SIDES = ("encoder", "decoder")
DIMENSIONS = [f"{side}_{key}" for side in SIDES for key in ("layers", "ffn_dim", "attention_heads")]
DIMENSIONS += ["d_model", "vocab_size", "num_mel_bins", "max_source_positions", "max_target_positions"]
ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())


@dataclass
class Checkpoint:
    """A drawn checkpoint: what its folder will hold, and the truth, which the folder may leave out or contradict."""

    rng: np.random.Generator
    tokens: dict[str, int]
    """The special tokens' ids."""
    ordinary: set[int]
    """The tokens that are text."""
    language: str | None
    """To be asked for, or `auto`; None where the model knows English only."""
    untied: bool
    model: Any
    """Transformers' Whisper with the true weights and generation config."""
    first: list[list[int] | None]
    """What may not come first: the list that is stated, or where none is, each that one may take for it."""
    readable: bool
    """Whether Transformers can read everything from the folder: nothing is left out."""
    json: dict[str, Any]
    """The JSON files by name."""
    tensors: dict[str, torch.Tensor]
    shards: dict[str, str]
    """The file of each tensor, where that is not model.safetensors."""
    odd: dict[str, str] = field(default_factory=dict)
    """What is wrong with it, and a pattern of what a sentence about that must name."""
    verdict: str = "works"
    """What must become of it: works, refused, or either of them."""

    def write(self, folder: Path) -> None:
        """Write the files as they were drawn."""
        folder.mkdir()
        for name, document in self.json.items():
            (folder / name).write_text("{" if document == "text" else json.dumps(document))
        stored: dict[str, dict[str, torch.Tensor]] = collections.defaultdict(dict)
        for name, tensor in self.tensors.items():
            stored[self.shards.get(name, next(iter(self.shards.values()), "model.safetensors"))][name] = tensor
        for name, tensors in stored.items():
            save_file(tensors, folder / name, {"format": "pt"})


def pick(rng: np.random.Generator, *values: Any) -> Any:
    return values[rng.integers(len(values))]


def sound(rng: np.random.Generator, seed: int) -> Checkpoint:
    """Draw a checkpoint in which nothing is wrong, though much may be left out."""
    # "taught" models know English only but have the language tokens, as OpenAI's: the generation config tells.
    kind = pick(rng, "multilingual", "multilingual", "english", "taught")
    languages = ["en", "de", "fr"][: rng.integers(1, 4)] if kind != "english" else []
    language = str(pick(rng, *languages, "auto")) if kind == "multilingual" else None
    tokenizer, tokens, late = _tokenizer(rng, languages)
    end, size = tokens[END], tokenizer.get_vocab_size()

    heads, others = (int(n) for n in rng.choice([1, 2, 3, 4, 6, 8], 2))
    step = int(np.lcm.reduce([heads, others, 2]))
    config: dict[str, Any] = {
        "d_model": step * int(rng.integers(-(-8 // step), 96 // step + 1)),
        "vocab_size": size + pick(rng, 0, 0, 7),
        "num_mel_bins": pick(rng, 80, 80, 128, 40),
        "max_source_positions": pick(rng, 50, 100, 100, 500, 500, 1500),
        "max_target_positions": int(rng.integers(5, 65)),
        "encoder_attention_heads": heads,
        "decoder_attention_heads": others,
    }
    config |= {f"{side}_layers": int(rng.integers(1, 4)) for side in SIDES}
    config |= {f"{side}_ffn_dim": int(rng.integers(8, 129)) for side in SIDES}
    ends = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), end) | {
        "decoder_start_token_id": tokens[START]
    }
    space = ALPHABET.index("Ġ")
    spoken = {*rng.choice(end, 7, replace=False).tolist(), *range(late, size), end}
    silenced = [token for token in range(config["vocab_size"]) if token not in spoken]
    generation: dict[str, Any] = {
        **ends,
        "begin_suppress_tokens": pick(rng, [space, end], [space, end], [end], [], None),
        "is_multilingual": language is not None,
        "max_length": config["max_target_positions"],
        "no_timestamps_token_id": tokens[SILENT],
        "return_timestamps": False,
        "suppress_tokens": pick(rng, silenced, silenced, list(range(end + 1, tokens[SILENT] + 1)), [], None),
    }
    if language:
        generation["lang_to_id"] = {f"<|{name}|>": tokens[f"<|{name}|>"] for name in languages}
        generation["task_to_id"] = {task: tokens[f"<|{task}|>"] for task in ("translate", "transcribe")}
        generation |= pick(rng, {}, {"forced_decoder_ids": [[1, None], [2, tokens["<|transcribe|>"]]]})

    from transformers import GenerationConfig, WhisperConfig, WhisperForConditionalGeneration

    torch.manual_seed(seed)
    untied = bool(rng.random() < 0.3)
    told: dict[str, Any] = config | ends | {"tie_word_embeddings": not untied, "begin_suppress_tokens": None}
    model: Any = WhisperForConditionalGeneration(WhisperConfig(**told)).eval()
    types = pick(rng, *([one] for one in TYPES), TYPES)  # the last is a mixture
    tensors = {name: lively(name, tensor).to(pick(rng, *types)) for name, tensor in model.state_dict().items()}
    if not untied or rng.random() < 0.2:
        tensors[HEAD] = tensors[EMBEDDING].clone()
    model.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    if not untied and rng.random() < 0.7:
        del tensors[HEAD]
    count = pick(rng, 1, 1, 2, 5)
    shards = {name: f"model-0000{n % count + 1}-of-0000{count}.safetensors" for n, name in enumerate(tensors)}

    # From here on: what may be left out of the files, or be said in more than one way.
    readable = bool(rng.random() < 0.5) or kind == "taught"
    config |= {
        "architectures": ["WhisperForConditionalGeneration"],
        "model_type": "whisper",
        "is_encoder_decoder": True,
    }
    config |= pick(rng, {}, {"activation_function": "gelu"}) | pick(rng, {}, {"scale_embedding": False})
    config |= pick(rng, {}, {"dtype": "float32"}, {"torch_dtype": "float16"})
    config |= pick(rng, {}, {"num_hidden_layers": config["encoder_layers"], "hidden_size": config["d_model"]})
    config |= {"tie_word_embeddings": False} if untied else pick(rng, {}, {"tie_word_embeddings": True})
    config |= ends if readable else pick(rng, {}, ends, {"pad_token_id": 50256, "bos_token_id": 50256})
    truth, first = copy.deepcopy(generation), [generation["begin_suppress_tokens"]]
    if rng.random() < 0.2:  # neither is used, and published checkpoints have odd ones
        generation |= {"bos_token_id": int(rng.integers(size)), "pad_token_id": int(rng.integers(size))}
    if not readable:
        some = {key: value for key, value in generation.items() if rng.random() < 0.6}
        generation = pick(rng, some, some, {"_from_model_config": True, **ends}, {})
        if not generation and rng.random() < 0.5:  # old checkpoints keep both lists in config.json
            config |= {key: truth[key] for key in ("suppress_tokens", "begin_suppress_tokens")}
        else:
            truth["suppress_tokens"] = generation.get("suppress_tokens")
            first += [[], [end], [space, end]] if generation.get("begin_suppress_tokens") is None else []
        generation |= pick(rng, {}, {"eos_token_id": [end]}) if generation else {}
    model.generation_config = GenerationConfig(**truth)
    documents: dict[str, Any] = {CONFIG: config, TOKENIZER: json.loads(tokenizer.to_str())}
    documents |= {GENERATION: generation} if generation else {}
    extractor = {"feature_size": config["num_mel_bins"], "sampling_rate": 16000}
    documents |= pick(rng, {}, {FEATURES: extractor}, {"processor_config.json": {"feature_extractor": extractor}})
    documents |= {INDEX: {"metadata": {}, "weight_map": shards}} if count > 1 else {}
    shards = shards if count > 1 else {}
    ordinary = {*range(end), *range(late, size)}
    return Checkpoint(rng, tokens, ordinary, language, untied, model, first, readable, documents, tensors, shards)


def _tokenizer(rng: np.random.Generator, languages: list[str]) -> tuple[Tokenizer, dict[str, int], int]:
    """Return a tokenizer of bytes, its special tokens, and the first token after them and the timestamps."""
    tokenizer = Tokenizer(models.BPE({letter: n for n, letter in enumerate(ALPHABET)}, []))
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([f"early{n}" for n in range(pick(rng, 0, 0, 3))])
    names = ["endoftext", "startoftranscript", *languages, "translate", "transcribe"]
    names += [*pick(rng, [], ["startoflm", "startofprev", "nospeech"]), "notimestamps"]
    tokenizer.add_special_tokens([f"<|{name}|>" for name in names])
    tokenizer.add_tokens([f"<|{n / 50:.2f}|>" for n in range(pick(rng, 0, 20))])
    late = tokenizer.get_vocab_size()
    tokenizer.add_tokens([f"late{n}" for n in range(pick(rng, 0, 0, 3))])
    return tokenizer, {f"<|{name}|>": tokenizer.get_vocab()[f"<|{name}|>"] for name in names}, late


def lively(name: str, like: torch.Tensor) -> torch.Tensor:
    """Return weights under which other sound and other positions bring other tokens, in float64."""
    drawn: torch.Tensor = torch.randn(like.shape, dtype=torch.float64)
    if like.dim() == 1:
        return drawn / 5 + ("norm.weight" in name)
    if "embed" in name or name == HEAD:
        return drawn * (1 if POSITIONS in name else 0.1)
    return drawn * ((3 if "encoder_attn" in name else 1) / float(like[0].numel() ** 0.5))
