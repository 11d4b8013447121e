"""Write one variant as a folder that a runtime opens without this project, with a model card (`whisper-ptq export`)."""

import json
import shutil
from pathlib import Path
from typing import Any

from pipeline import backends
from pipeline.agree import dequantized
from pipeline.backends import ct2, ggml
from pipeline.compare import TIMINGS
from pipeline.core import files, manifest, params
from pipeline.core.errors import UserError
from pipeline.core.variant import Variant
from pipeline.results import card, tables
from pipeline.results.tables import Row

_TOKENS = ("generation_config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json")
"""Files of a checkpoint that say how sound becomes features, and tokens text."""

_MEASURED = {"ct2": ("config.json", "vocabulary.json", ct2.FILE, *_TOKENS), "ggml": (ggml.FILE,)}
"""The files of a checkpoint that a runtime opens as they were measured."""

_CT2 = "ct2", "CTranslate2 holds float32, float16, int16 and int8 by row"
_GGML = "ggml", "ggml holds float16, q8_0, q5_1, q5_0, q4_1 and q4_0"
_HOLDS = {"ct2": _CT2, "ggml": _GGML, "gguf": _GGML}
"""The backend whose files a target takes, and what they hold."""

TARGETS = {
    "hf": "Transformers, from what the weights stand for",
    "ct2": "CTranslate2 and faster-whisper",
    "ggml": "whisper.cpp",
    "gguf": "readers of GGUF, such as candle: ggml's weights under Hugging Face's names",
}


def main(variant: str, target: str, folder: Path) -> None:
    """Write `folder`, whole or not at all; raise UserError where the target has no form for the variant's weights."""
    settings = params.read()
    settings.variant(variant)
    check_made_of(settings)
    source = Path("models") / variant
    checkpoint = manifest.verify(source)
    made = Variant(**checkpoint["variant"])
    if reason := cannot(made, target):
        raise UserError(f"{variant} cannot be exported to {target}: {reason}")
    if folder.exists() or folder.is_symlink():
        raise UserError(f"{folder} is there already; name a folder that is not")
    rows = measured(variant, checkpoint)
    try:
        with files.aside(folder) as partial:
            partial.mkdir(parents=True)
            if target == "hf":
                hf(source, made.backend, partial)
            elif target == "gguf":
                gguf(source, partial)
            else:
                _copy(source, partial, *_MEASURED[target])
            for file in partial.iterdir():
                file.chmod(0o644)  # safetensors' files are their owner's alone
            size = sum(file.stat().st_size for file in partial.iterdir())
            files.write_text(partial / "README.md", card.text(variant, target, folder.name, made, settings, rows, size))
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror}); name a folder elsewhere") from None
    print(f"{folder}: {variant} for {TARGETS[target]}, {size / 1e6:.1f} MB; its README.md says how to load it")


def check_made_of(settings: params.Params) -> None:
    """Raise UserError where the last run, as dvc.lock tells, was of another model or corpus than params.yaml has."""
    from ruamel.yaml import YAML

    lock = Path("dvc.lock")
    stages = YAML(typ="safe").load(lock.read_text(encoding="utf-8"))["stages"] if lock.exists() else {}
    for stage_name, key, wanted in (("fetch", "model", settings.model), ("prepare", "corpus", settings.corpus)):
        made_of = stages.get(stage_name, {}).get("params", {}).get(str(params.FILE), {}).get(key, wanted)
        if made_of != wanted:
            raise UserError(f"{key} is {wanted!r}, but the last run was of {made_of!r}; run 'dvc repro' first")


def measured(variant: str, checkpoint: "dict[str, Any]") -> "list[Row]":
    """Return the lines of results.csv that are about this very checkpoint: none where it was made anew since."""
    try:
        timed = files.parse_json((TIMINGS / f"{variant}.json").read_bytes())["checkpoint"]
        table = tables.read(tables.RESULTS)
    except (OSError, UserError, LookupError, TypeError, ValueError):
        return []
    if any(timed[key] != checkpoint[key] for key in ("variant", "calibration", "bytes", "bits_per_weight")):
        return []
    return list(table[table["variant"] == variant].itertuples())


def cannot(made: Variant, target: str) -> str:
    """Return why a target cannot take a variant, and which it takes instead; "" where it can."""
    if target != "hf":
        needed, holds = _HOLDS[target]
        return "" if made.backend == needed else f"{holds}; export a variant of backend {needed}"
    instead = "export a variant that quantizes weights alone"
    if backends.runtime(backends.get(made.backend)):
        return f"it is a file of another runtime; {instead}"
    if made.activations != "none":
        return f"its kernels round activations, and no other runtime's do it as they do; {instead}"
    return ""


def hf(source: Path, backend: str, folder: Path) -> None:
    """Write the weights as they are computed with: float32, or float16 where that holds them all exactly."""
    import torch

    from pipeline.whisper.model import weights

    tensors = dequantized(backend, source, "cpu").state_dict()
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


def gguf(source: Path, folder: Path) -> None:
    """Write the tensors of the ggml file, byte for byte, and the dimensions of config.json."""
    from gguf import GGUFWriter

    from pipeline.whisper.model import weights

    names = {ggml.openai_name(name): name for name in weights.skeleton(source).state_dict()}
    writer = GGUFWriter(folder / "model.gguf", "whisper")
    for name, values, kind in ggml.tensors(source / ggml.FILE):
        writer.add_tensor(names[name], values, raw_dtype=kind)
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    for key, value in config.items():
        if type(value) is int:
            writer.add_uint32(f"whisper.{key}", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    _copy(source, folder, "config.json", *_TOKENS)


def _copy(source: Path, folder: Path, *names: str) -> None:
    for name in names:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
