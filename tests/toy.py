"""A Whisper small enough for any test: random weights, but every file and every kind of layer that a real one has."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from pipeline import files, whisper, whisper_config

SIZES: dict[str, Any] = {
    "d_model": 64,  # the smallest width that groups and blocks of 64 weights divide
    "encoder_layers": 2,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 128,
    "decoder_layers": 2,
    "decoder_attention_heads": 2,
    "decoder_ffn_dim": 128,
    "num_mel_bins": 80,
    "max_source_positions": 1500,
    "max_target_positions": 32,
}
ENGLISH = ["<|endoftext|>", "<|startoftranscript|>", "<|translate|>", "<|transcribe|>", "<|notimestamps|>"]
MULTILINGUAL = [*ENGLISH[:2], "<|en|>", "<|de|>", *ENGLISH[2:]]


def write(folder: Path, specials: list[str] = ENGLISH) -> Path:
    """Write a checkpoint as `fetch` does: weights, config, generation config, tokenizer; return the folder.

    The tokenizer's first 256 tokens are the bytes; `specials` follow.
    """
    folder.mkdir(parents=True)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: n for n, letter in enumerate(alphabet)}, []))
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(specials)
    tokenizer.save(str(folder / "tokenizer.json"))
    tokens = {token: 256 + n for n, token in enumerate(specials)}

    torch.manual_seed(0)
    model = whisper.Whisper(whisper.Config(**SIZES, vocab_size=256 + len(specials)))
    tensors = {name: tensor for name, tensor in model.state_dict().items() if name != "proj_out.weight"}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    files.write_json(folder / "config.json", whisper_config.model_config(shapes, 2, tokens))
    generation = whisper_config.generation_config(tokens, {})
    if specials == ENGLISH:
        generation["is_multilingual"] = False
        del generation["lang_to_id"], generation["task_to_id"]
    files.write_json(folder / "generation_config.json", generation)
    files.write_json(folder / "preprocessor_config.json", whisper_config.preprocessor_config(80))
    return folder


def features(batch: int = 2) -> torch.Tensor:
    """Return something for the encoder to hear, the same in every process."""
    return torch.randn(batch, 80, 3000, generator=torch.Generator().manual_seed(1))


def logits(model: whisper.Whisper) -> torch.Tensor:
    """Return the model's logits for fixed features and tokens."""
    tokens = torch.arange(2 * 9).reshape(2, 9)
    with torch.no_grad():
        return model(features().to(model.device), tokens.to(model.device)).cpu()  # type: ignore[no-any-return]
