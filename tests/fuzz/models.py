"""Models: the files of a checkpoint in either layout, through `fetch`, and then decoding."""

import functools
import io
import json
import struct
import tempfile
import zipfile
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from pipeline import fetch
from pipeline.speech import corpus
from pipeline.whisper import BASELINE
from tests import toy
from tests.fuzz.project import MODEL, SOUNDS, settings, whole, write
from tests.fuzz.spoil import document, garble, zips
from tests.whisper import test_ctranslate2


@functools.cache
def model_bin() -> dict[str, bytes]:
    """Return a small Whisper as CTranslate2 keeps it."""
    variables = test_ctranslate2.tiny() | {
        "encoder/position_encodings/encodings": np.ones((50, 4), np.float16),
        "decoder/position_encodings/encodings": np.ones((8, 4), np.float16),
        "decoder/embeddings/weight": np.arange(4 * 263, dtype=np.float16).reshape(263, 4),
    }
    variables = {name: values / 100 if values.dtype == np.float16 else values for name, values in variables.items()}
    given = {"suppress_ids": [1, 2], "suppress_ids_begin": [220], "alignment_heads": [[0, 0]]}
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = (toy.write(Path(folder) / "toy", toy.MULTILINGUAL) / "tokenizer.json").read_bytes()
    found = {"config.json": json.dumps(given).encode(), "tokenizer.json": tokenizer}
    return found | {"model.bin": test_ctranslate2.model_bin(variables)}


@functools.cache
def checkpoint() -> dict[str, bytes]:
    """Return the same as Hugging Face keeps it, in one file and in two shards."""
    from safetensors.torch import load, save

    with tempfile.TemporaryDirectory() as folder:
        fetch.convert("toy", model_bin(), Path(folder) / "toy")
        found = {path.name: path.read_bytes() for path in (Path(folder) / "toy").iterdir()}
    tensors = load(found["model.safetensors"])
    files = {name: f"model-0000{1 + n % 2}.safetensors" for n, name in enumerate(tensors)}
    for file in set(files.values()):
        found[file] = save({name: tensor for name, tensor in tensors.items() if files[name] == file})
    return found | {"model.safetensors.index.json": json.dumps({"weight_map": files}).encode()}


def fetched(model: Mapping[str, Any]) -> None:
    """Fetch the model, load what comes out, and let it write."""
    from pipeline.whisper.inference import decoding
    from pipeline.whisper.model import weights

    settings(model=model)
    with whole(BASELINE):
        fetch.main()
    loaded = weights.load(BASELINE)
    assert all(parameter.isfinite().all() for parameter in loaded.parameters())
    vocabulary = decoding.Vocabulary.read(BASELINE, "auto", "transcribe")
    heard = decoding.transcribe(loaded, [corpus.Utterance("a", "t", "a", 0.1, "", SOUNDS["FLAC"])], vocabulary, 3, 1)
    assert isinstance(heard[0].line(vocabulary)["pred_text"], str)


def config(draw: Random) -> None:
    """The JSON files of a checkpoint."""
    files = dict(checkpoint())
    name = draw.choice([name for name in files if name.endswith(".json")])
    if name.endswith("index.json") or draw.random() < 0.2:
        del files["model.safetensors"]
    write({f"checkpoint/{of}": data for of, data in (files | {name: document(draw, files[name])}).items()})
    fetched(MODEL)


def tensors(draw: Random) -> None:
    """The weights of a checkpoint: the header of safetensors, or any of their bytes."""
    files = dict(checkpoint())
    data = files["model.safetensors"]
    (length,) = struct.unpack_from("<Q", data)
    if draw.random() < 0.5:
        header = document(draw, data[8 : 8 + length])
        types = (b"F16", b"BF16", b"F64", b"I32", b"U32", b"BOOL", b"F8_E4M3", b"F8_E8M0", b"F4", b"C64", b"I64")
        if draw.random() < 0.3:
            header = data[8 : 8 + length].replace(b"F32", draw.choice(types), draw.choice((1, 100)))
        files["model.safetensors"] = struct.pack("<Q", len(header)) + header + data[8 + length :]
    else:
        files["model.safetensors"] = garble(draw, data, files["model-00001.safetensors"])
    if draw.random() < 0.2:  # other weights
        place = draw.randrange(8 + length, len(data) - 4)
        files["model.safetensors"] = data[:place] + draw.randbytes(4) + data[place + 4 :]
    write({f"checkpoint/{of}": data for of, data in files.items()})
    fetched(MODEL)


def binary(draw: Random) -> None:
    """A CTranslate2 model in a wheel."""
    files = dict(model_bin())
    name = draw.choice(("config.json", "tokenizer.json", "model.bin", "model.bin", "wheel"))
    if name in files:
        files[name] = garble(draw, files[name]) if name == "model.bin" else document(draw, files[name])
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for of, data in files.items():
            archive.writestr(of, data)
    data = zips(draw, files) if name == "wheel" else file.getvalue()
    write({"models/.cache/toy/toy-1.0-py3-none-any.whl": data})
    fetched({"source": "package", "files": {"toy-1.0-py3-none-any.whl": sha256(data).hexdigest()}})
