"""Write one variant as a folder that a runtime opens without this project, with a model card.

Usage: python -m pipeline.export VARIANT --to hf|ct2|ggml|gguf FOLDER
"""

import argparse
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import backends
from pipeline.backends import ct2, ggml
from pipeline.core import files, manifest, params, stage
from pipeline.core.errors import UserError
from pipeline.core.variant import Variant
from pipeline.results import card, tables

if TYPE_CHECKING:
    from torch import Tensor

Writer = Callable[[Path, Variant, Path], None]

_TOKENS = ("generation_config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json")
"""Files of a checkpoint that say how sound becomes features, and tokens text."""

_TARGETS = {
    "hf": "Transformers, from what the weights stand for",
    "ct2": "CTranslate2 and faster-whisper",
    "ggml": "whisper.cpp",
    "gguf": "readers of GGUF, such as candle: ggml's weights under Hugging Face's names",
}


def main(variant: str, target: str, folder: Path) -> None:
    """Write `folder`, whole or not at all; raise UserError where the target has no form for the variant's weights."""
    settings = params.read()
    settings.variant(variant)
    source = Path("models") / variant
    made = Variant(**manifest.verify(source)["variant"])
    if reason := cannot(made, target):
        raise UserError(f"{variant} cannot be exported to {target}: {reason}")
    if folder.exists():
        raise UserError(f"{folder} is there already; name a folder that is not")
    measured = tables.read(tables.RESULTS)
    with files.aside(folder) as partial:
        partial.mkdir(parents=True)
        {"hf": hf, "ct2": to_ct2, "ggml": to_ggml, "gguf": gguf}[target](source, made, partial)
        rows = list(measured[measured["variant"] == variant].itertuples())
        files.write_text(partial / "README.md", card.text(variant, target, folder.name, made, settings, rows))
    total = sum(file.stat().st_size for file in folder.iterdir()) / 1e6
    print(f"{folder}: {variant} for {_TARGETS[target]}, {total:.1f} MB; its README.md says how to load it")


def cannot(made: Variant, target: str) -> str:
    """Return why a target cannot take a variant, and which it takes instead; "" where it can."""
    exact = made.backend == "none" and (made.embedding, made.conv) == (None, None)
    if target == "hf":
        instead = "export a variant that quantizes weights alone"
        if backends.runtime(backends.get(made.backend)):
            return f"it is a file of another runtime; {instead}"
        if made.activations != "none":
            return f"its kernels round activations, and no other runtime's do it as they do; {instead}"
        return ""
    if made.backend == {"ct2": "ct2"}.get(target, "ggml"):
        return ""
    if target == "ct2":
        holds = "CTranslate2 holds float32, float16, int16 and int8 by row"
        return "" if exact else f"{holds}; export fp32, fp16 or a variant of backend ct2"
    holds = "ggml holds float16, q8_0, q5_1, q5_0, q4_1 and q4_0"
    return "" if exact and made.bits == 16 else f"{holds}; export fp16 or a variant of backend ggml"


def hf(source: Path, made: Variant, folder: Path) -> None:
    """Write the weights as they are computed with: float32, or float16 where that holds them all exactly."""
    import torch

    from pipeline.whisper.model import weights

    tensors = dequantized(source, made)
    half = all(tensor.half().float().equal(tensor) for tensor in tensors.values())
    tied = torch.equal(tensors[weights.HEAD], tensors[weights.EMBEDDING])
    if tied:
        tensors[weights.HEAD] = tensors[weights.EMBEDDING]
    if half:
        tensors = {name: tensor.half() for name, tensor in tensors.items() if not (tied and name == weights.HEAD)}
    weights.save(tensors, folder)
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    config.pop("quantization_config", None)
    config |= {"dtype": "float16" if half else "float32", "tie_word_embeddings": tied}
    files.write_json(folder / "config.json", config)
    _copy(source, folder, *_TOKENS)


def dequantized(source: Path, made: Variant) -> "dict[str, Tensor]":
    """Return a checkpoint's tensors under Hugging Face's names, in float32: quantized ones as what they stand for."""
    import torch

    from pipeline.whisper.model import weights

    backend = backends.get(made.backend)
    model = backend.load(source, "cpu")
    tensors = {}
    for name in weights.skeleton(source).state_dict():
        place, _, leaf = name.rpartition(".")
        module = model.get_submodule(place)
        value = getattr(module, leaf, None)
        if type(value) not in (torch.Tensor, torch.nn.Parameter):
            assert isinstance(backend, backends.Dequantizing)
            value = backend.dequantize(module)
        assert isinstance(value, torch.Tensor)
        tensors[name] = value.detach().float()
    return tensors


def to_ct2(source: Path, made: Variant, folder: Path) -> None:
    """Copy the file that was measured, or convert the baseline."""
    _copy(source, folder, "config.json", *_TOKENS)
    if made.backend == "ct2":
        _copy(source, folder, ct2.FILE, "vocabulary.json")
    else:
        ct2.save(backends.get("none").load(source, "cpu"), Variant("ct2", made.bits, "float", rest=made.rest), folder)


def to_ggml(source: Path, made: Variant, folder: Path) -> None:
    """Copy the file that was measured, or write the baseline's weights in float16."""
    if made.backend == "ggml":
        return _copy(source, folder, ggml.FILE)
    _copy(source, folder, "tokenizer.json")
    ggml.save(backends.get("none").load(source, "cpu"), Variant("ggml", 16, "float"), folder)
    (folder / "tokenizer.json").unlink()  # its tokens are in the file
    return None


def gguf(source: Path, made: Variant, folder: Path) -> None:
    """Write the tensors of the ggml file, byte for byte, and the dimensions of config.json."""
    from gguf import GGUFWriter

    from pipeline.whisper.model import weights

    to_ggml(source, made, folder)
    names = {ggml.openai_name(name): name for name in weights.skeleton(source).state_dict()}
    writer = GGUFWriter(folder / "model.gguf", "whisper")
    for name, values, kind in ggml.tensors(folder / ggml.FILE):
        writer.add_tensor(names[name], values, raw_dtype=kind)
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    for key, value in config.items():
        if type(value) is int:
            writer.add_uint32(f"whisper.{key}", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    (folder / ggml.FILE).unlink()
    _copy(source, folder, "config.json", *_TOKENS)


def _copy(source: Path, folder: Path, *names: str) -> None:
    for name in names:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m pipeline.export", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("variant", help="a key of `variants` in params.yaml, or `candidate`, that 'dvc repro' has made")
    told = "; ".join(f"{target}: {what}" for target, what in _TARGETS.items())
    parser.add_argument("--to", required=True, choices=_TARGETS, help=told)
    parser.add_argument("folder", type=Path, help="a folder that is not there yet")
    arguments = parser.parse_args()
    with stage.guarded("export"):
        main(arguments.variant, arguments.to, arguments.folder)
