"""The model card of an exported variant: what it is, how it was made, what was measured, and how to load it (pure)."""

import json
from collections.abc import Sequence

from pipeline.core.params import Params
from pipeline.core.variant import Variant
from pipeline.results import page, tables
from pipeline.results.tables import Row

LOADED = {
    "hf": """\
from transformers import pipeline
listen = pipeline("automatic-speech-recognition", "{folder}")
print(listen(samples)["text"])
""",
    "ct2": """\
from faster_whisper import WhisperModel
model = WhisperModel("{folder}", device="cpu")
print("".join(segment.text for segment in model.transcribe(samples)[0]))
""",
    "ggml": """\
from pywhispercpp.model import Model
model = Model("{folder}/ggml-model.bin")
print(" ".join(segment.text for segment in model.transcribe(samples)))
""",
    "gguf": """\
from gguf import GGUFReader, dequantize
tensors = GGUFReader("{folder}/model.gguf").tensors
print({tensor.name: dequantize(tensor.data, tensor.tensor_type).shape for tensor in tensors})
""",
}
"""The lines that load each target; `samples` are float32, 16 kHz."""

PACKAGES = {"hf": "transformers torch", "ct2": "faster-whisper", "ggml": "pywhispercpp", "gguf": "gguf"}
"""What to install for them."""


def text(name: str, target: str, folder: str, made: Variant, settings: Params, rows: Sequence[Row], size: int) -> str:
    """Return the card of variant `name`, as it was made; `rows` are its lines of results.csv, `size` bytes here."""
    return page.render(
        "card.md.j2",
        name=name,
        target=target,
        made=page.not_default(made) | {"bits": made.bits},
        model=settings.models[settings.model],
        settings=settings,
        rows=rows,
        lines=LOADED[target].replace("{folder}", json.dumps(folder, ensure_ascii=False)[1:-1]),
        size=size / 1e6,
        package=PACKAGES[target],
        measures=tables.MEASURES,
    )
