"""CTranslate2, the engine of faster-whisper: its own converter writes the file, its own kernels compute.

Linear layers and the token embedding are quantized by row, symmetrically, and what comes into them on the fly; the rest
is float. It gets our features, as it has none of its own, and decodes greedily with the study's suppressed tokens.
"""

import contextlib
import dataclasses
import functools
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import backends
from pipeline.core import files, manifest
from pipeline.core.errors import UserError
from pipeline.core.variant import Variant

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.whisper.inference.decoding import Vocabulary
    from pipeline.whisper.inference.mel import Samples

DEVICES = ("cpu",)
LEARNS = None
FILE = "model.bin"
_TYPES = {
    ("float", 32, "float32"): "float32",
    ("float", 16, "float16"): "float16",
    ("int", 8, "float32"): "int8_float32",
    ("int", 8, "float16"): "int8_float16",
    ("int", 16, "float32"): "int16",
}
"""Format, bits and `rest` of a variant, and what CTranslate2 calls that."""
_COMPUTED = {"float16": "float32", "int8_float16": "int8_float32"}
"""What a CPU computes in where the file holds float16: such weights are exact in float32."""


def supports(variant: Variant) -> Variant:
    """float32, float16, int8 and int16; integers with dynamic activations."""
    backends.whole("ct2", variant)
    backends.limit("ct2", variant, format=("int", "float"), group_size=(None,))
    if variant.format == "float":
        backends.limit("ct2", variant, " with format float", bits=(32, 16), activations=("none",))
        backends.limit("ct2", variant, " without quantization", granularity=(None,), symmetric=(None,))
        if variant.bits == 16:
            backends.limit("ct2", variant, " with 16 bits", rest=("float16",))
        return dataclasses.replace(variant, rest="float32" if variant.bits == 32 else "float16")
    backends.limit("ct2", variant, bits=(16, 8))
    backends.limit("ct2", variant, ": it quantizes what comes in, too", activations=("dynamic",))
    backends.limit("ct2", variant, granularity=(None, "channel"), symmetric=(None, True))
    rest = "float32" if variant.bits == 16 else variant.rest
    return dataclasses.replace(variant, granularity="channel", symmetric=True, rest=rest)


def quantize(
    model: "backends.Whisper", layers: list[str], variant: Variant, calibrate: "backends.Calibrate"
) -> Variant:
    """Leave the model as it is: `save` quantizes. Raises UserError where this processor has no kernels for the type."""
    _check(_name(variant))
    return variant


def save(model: "backends.Whisper", variant: Variant, folder: Path) -> None:
    """Write model.bin and vocabulary.json; config.json gets CTranslate2's keys beside Hugging Face's."""
    from pipeline.whisper.model import weights

    with tempfile.TemporaryDirectory(dir=folder.parent) as space:
        plain, converted = Path(space) / "plain", Path(space) / "converted"
        plain.mkdir()
        for file in folder.glob("*.json"):
            (plain / file.name).write_bytes(file.read_bytes())
        weights.save(model.state_dict(), plain)
        with _silent():  # Transformers' bars, and what torchao cannot load
            from ctranslate2.converters import TransformersConverter

            TransformersConverter(str(plain)).convert(str(converted), quantization=_name(variant))
        for name in (FILE, "vocabulary.json"):
            (converted / name).rename(folder / name)
        theirs = files.parse_json((converted / "config.json").read_bytes())
    files.write_json(folder / "config.json", files.parse_json((folder / "config.json").read_bytes()) | theirs)


def measure(model: "backends.Whisper", variant: Variant) -> "tuple[dict[str, int], float]":
    """Return the weights of each layer that is quantized, and the bits of one: a row has a scale in float32."""
    from torch import nn

    if variant.format == "float":
        return {}, variant.bits
    linear = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, nn.Linear)]
    layers = {name: layer.weight.numel() for name, layer in linear}
    scales = sum(32 * len(layer.weight) for _, layer in linear) if variant.bits == 8 else 32 * len(linear)
    return layers, variant.bits + scales / sum(layers.values())


def load(folder: Path, device: str) -> "Engine":
    """Open the folder; raise UserError where CTranslate2 would compute in another type than the file's, or cannot."""
    return Engine(folder)


class Engine:
    """A model of CTranslate2, as `pipeline.whisper.inference.decoding.Engine` describes it."""

    def __init__(self, folder: Path) -> None:
        from pipeline.whisper.model.network import Config

        self.config = Config.read(folder)
        self._folder = folder
        told = json.loads((folder / manifest.NAME).read_text(encoding="utf-8"))["variant"]
        self._type = _check(_name(Variant(**told)))
        self._threads = 0
        self._model = self._loaded()

    @functools.cached_property
    def kernels(self) -> str:
        """The instructions and the library that CTranslate2 takes for the type of numbers, and that type.

        It says so in its log alone, once in a process, so that a process of its own is asked.
        """
        script = "import sys, ctranslate2; ctranslate2.models.Whisper(sys.argv[1], compute_type=sys.argv[2])"
        command = [sys.executable, "-c", script, str(self._folder), self._type]
        verbose = os.environ | {"CT2_VERBOSE": "1"}
        log = subprocess.run(command, env=verbose, stderr=subprocess.PIPE, text=True, check=True).stderr
        said = dict(re.findall(r"- (.+?): (\S+)", log))
        library = said["GEMM_S8 backend" if "int8" in self._type else "SGEMM backend"]
        return f"{said['Selected ISA']} {library} {self._type}"

    def _loaded(self) -> Any:
        """Return the model with as many threads as PyTorch would take now: they are fixed when it is loaded."""
        import ctranslate2
        import torch

        threads = torch.get_num_threads()
        if threads != self._threads:
            try:
                self._model = ctranslate2.models.Whisper(
                    str(self._folder), compute_type=self._type, intra_threads=threads
                )
            except RuntimeError as error:
                raise UserError(f"{self._folder}: CTranslate2 cannot read it ({error}); quantize it again") from None
            self._threads = threads
        return self._model

    def decode(
        self,
        sounds: "Sequence[Samples]",
        vocabulary: "Vocabulary",
        most: int,
        names: Sequence[str],  # noqa: ARG002  # it tells of no broken logits
        told: Sequence[int],
    ) -> tuple[Sequence[int], list[list[int]]]:
        """Return each sound's language, where that is to be detected and not `told`, and its tokens: `most` of them."""
        view = self._features(sounds)
        spoken = told or self._languages(view, vocabulary)
        results = self._loaded().generate(
            view,
            vocabulary.prompts(len(sounds), spoken),
            beam_size=1,
            max_length=max(2 * most, most + len(vocabulary.prompt)),  # of which it takes half, less the prompt
            suppress_tokens=vocabulary.suppressed,
        )
        return spoken, [result.sequences_ids[0] for result in results]

    def logits(self, sound: "Samples", tokens: list[int], places: int) -> "Tensor":
        """Return the logits (places, vocabulary) that predict the last `places` of the tokens, forced one by one."""
        import numpy as np
        import torch

        (result,) = self._loaded().generate(
            self._features([sound]),
            [tokens],
            beam_size=1,
            max_length=2 * (len(tokens) + places),
            suppress_blank=False,
            suppress_tokens=[],
            return_logits_vocab=True,
        )
        return torch.from_numpy(np.stack([np.array(each).reshape(-1) for each in result.logits[0][:places]]))

    def _languages(self, view: Any, vocabulary: "Vocabulary") -> list[int]:
        if not vocabulary.languages:
            return []
        places = {f"<|{code}|>": token for token, code in vocabulary.languages.items()}
        found = self._loaded().detect_language(view)  # of each sound, languages by falling probability
        return [next(places[language] for language, _ in of if language in places) for of in found]

    def _features(self, sounds: "Sequence[Samples]") -> Any:
        import ctranslate2

        from pipeline.whisper.inference import mel

        window = mel.window(self.config.max_source_positions)
        features = mel.log_mel(list(sounds), self.config.num_mel_bins, window)
        return ctranslate2.StorageView.from_array(features.numpy())


def _check(name: str) -> str:
    """Return the type that a CPU computes a file in; raise UserError where CTranslate2 would silently take another."""
    backends.installed("ct2", "ctranslate2")
    import ctranslate2

    computed = _COMPUTED.get(name, name)
    possible = ctranslate2.get_supported_compute_types("cpu")
    if computed not in possible:
        what = f"this processor has no kernels of CTranslate2 for {computed} (it has {', '.join(sorted(possible))})"
        raise UserError(f"ct2: {what}; leave the variant out")
    return computed


def _name(variant: Variant) -> str:
    return _TYPES[variant.format, variant.bits, variant.rest]


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Keep from the terminal what libraries write to stderr, in C++, too."""
    sys.stderr.flush()
    own = os.dup(2)
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(own, 2)
            os.close(own)
