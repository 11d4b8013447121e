"""A Whisper small enough for any test: random weights, but every file and every kind of layer that a real one has."""

import contextlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from pipeline import calibrate
from pipeline.core import files, manifest
from pipeline.speech.corpus import Utterance
from pipeline.whisper.formats import configs
from pipeline.whisper.inference import decoding
from pipeline.whisper.model import network

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from tests.conftest import Project

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
_TOKENS = torch.arange(2 * 9).reshape(2, 9)
MULTILINGUAL = [*ENGLISH[:2], "<|en|>", "<|de|>", *ENGLISH[2:]]


def write(folder: Path, specials: list[str] = ENGLISH, **sizes: int) -> Path:
    """Write a checkpoint as `fetch` does: weights, config, generation config, tokenizer; return the folder.

    The tokenizer's first 256 tokens are the bytes; `specials` follow. `sizes` take the place of SIZES'.
    """
    folder.mkdir(parents=True)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: n for n, letter in enumerate(alphabet)}, []))
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(specials)
    tokenizer.save(str(folder / "tokenizer.json"))
    tokens = {token: 256 + n for n, token in enumerate(specials)}

    torch.manual_seed(0)
    model = network.Whisper(network.Config(**SIZES | sizes, vocab_size=256 + len(specials)))
    tensors = {name: tensor for name, tensor in model.state_dict().items() if name != "proj_out.weight"}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    files.write_json(folder / "config.json", configs.model_config(shapes, (2, 2), tokens))
    given = {"begin_suppress_tokens": [tokens["<|endoftext|>"]]}
    generation = configs.generation_config("toy", tokens, 256 + len(specials), given)
    files.write_json(folder / "generation_config.json", generation)
    files.write_json(folder / "preprocessor_config.json", configs.preprocessor_config("toy", 80, 1500, {}))
    return folder


def talkative(folder: Path) -> Path:
    """Change the toy so that it says words of few letters: other ones to other sound, or with weights of other bits."""
    tensors = load_file(folder / "model.safetensors")
    for name, tensor in tensors.items():
        if name in ("model.decoder.embed_tokens.weight", "model.encoder.embed_positions.weight"):
            # The head is tied to the tokens, so that it says its last one again; positions drown the sound.
            tensor *= 0.03
        elif "embed" not in name and tensor.dim() == 2:
            tensor *= 6 if "encoder_attn" in name else 3
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    letters = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    spoken = [letters[letter] for letter in "abcdefgĠ"]  # the last is the space of byte-level tokenizers
    generation = json.loads((folder / "generation_config.json").read_text())
    generation["suppress_tokens"] = [token for token in range(256 + len(ENGLISH)) if token not in spoken]
    files.write_json(folder / "generation_config.json", generation)
    return folder


def retrain(folder: Path) -> None:
    """Change the toy's weights, in place."""
    tensors = load_file(folder / "model.safetensors")
    tensors["model.decoder.layers.0.fc1.weight"] *= 2
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def features(batch: int = 2) -> torch.Tensor:
    """Return something for the encoder to hear, the same in every process."""
    return torch.randn(batch, 80, 3000, generator=torch.Generator().manual_seed(1))


def logits(model: network.Whisper) -> torch.Tensor:
    """Return the model's logits for fixed features and tokens."""
    with torch.no_grad():
        return model(features().to(model.device), _TOKENS.to(model.device)).cpu()  # type: ignore[no-any-return]


def texts(
    model: network.Whisper, batch: Sequence[Utterance], vocabulary: decoding.Vocabulary, max_new_tokens: int = 444
) -> list[str]:
    """Return what a transcript would say of each utterance."""
    heard = decoding.transcribe(model, batch, vocabulary, max_new_tokens, size=16)
    return [each.line(vocabulary)["pred_text"] for each in heard]


def logits_of_transformers(model: Any) -> torch.Tensor:
    """Return the same of Transformers' Whisper."""
    with torch.no_grad():
        return model.eval()(input_features=features(), decoder_input_ids=_TOKENS).logits  # type: ignore[no-any-return]


def project(project: "Project", baseline: Path) -> None:
    """Fill a project's folders: a talkative toy, five utterances of noise in two splits, and two to calibrate on."""
    shutil.copytree(baseline, project.root / "models/baseline")
    talkative(project.root / "models/baseline")
    speech(project.root / "data/corpus/test-b/00000.parquet", "test-b", {"b-2": 0.5, "b-3": 1.5, "b-1": 1.0})
    speech(project.root / "data/corpus/test-b/00001.parquet", "test-b", {"b-0": 0.25})
    speech(project.root / "data/corpus/test-a/00000.parquet", "test-a", {"a-1": 2.0})
    speech(project.root / "data/calibration/00000.parquet", "train", {"c-1": 0.5, "c-2": 0.75})
    project.set(decoding__batch_size=2, decoding__max_new_tokens=6, latency__threads=1, device="cpu")
    with contextlib.chdir(project.root):
        calibrate.main()


def speech(shard: Path, split: str, seconds: dict[str, float]) -> None:
    """Write a shard of noise: ids and durations."""
    from tests.conftest import noise

    write_shard(shard, split, {name: noise(length, seed) for seed, (name, length) in enumerate(seconds.items())})


def write_shard(shard: Path, split: str, sounds: "Mapping[str, NDArray[np.int16]]") -> None:
    """Write a shard of sounds: ids and samples."""
    import pyarrow
    import pyarrow.parquet

    from pipeline import prepare
    from tests.conftest import encode

    rows = [
        {
            "id": name,
            "split": split,
            "speaker": name[0],
            "duration": len(samples) / 16000,
            "text": f"THE WORDS OF {name}",
            "audio": {"bytes": encode(samples), "path": f"{name}.flac"},
        }
        for name, samples in sounds.items()
    ]
    shard.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, schema=prepare.schema(len(rows))), shard)


def break_weights(checkpoint: Path) -> None:
    """Put a NaN among a quantized checkpoint's weights, and record the file as it is now: its logits are all NaN."""
    tensors = load_file(checkpoint / "model.safetensors")
    tensors["model.decoder.layer_norm.weight"][0] = float("nan")
    save_file(tensors, checkpoint / "model.safetensors", {"format": "pt"})
    facts = json.loads((checkpoint / "checkpoint.json").read_text())
    del facts["files"]
    (checkpoint / "checkpoint.json").unlink()
    manifest.write(checkpoint, facts)


class Interrupted:
    """`decoding.transcribe`, interrupted after `left` batches."""

    def __init__(self, left: int) -> None:
        self.left, self._hear = left, decoding.transcribe

    def __call__(self, *arguments: Any) -> list[decoding.Heard]:
        if not self.left:
            raise KeyboardInterrupt
        self.left -= 1
        return self._hear(*arguments)
