"""whisper.cpp: a file as its converter writes one, matrices quantized by the package gguf; its kernels compute.

The engine is the library in the package pywhispercpp, called by whisper.cpp's C interface: features and network are its
own, and the study's loop chooses the tokens, so that no rule of decoding differs. Linear layers and the token embedding
are quantized in blocks of 32, convolutions are float16; what comes into a quantized layer is rounded to 8 bits.
"""

import ctypes
import dataclasses
import functools
import json
import struct
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import backends
from pipeline.core import machine
from pipeline.core.errors import UserError
from pipeline.core.variant import Variant

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from pipeline.whisper.inference.decoding import Vocabulary
    from pipeline.whisper.inference.mel import Samples

DEVICES = ("cpu",)
LEARNS = None
FILE = "ggml-model.bin"
_BLOCK = 32
_TYPES = {
    ("float", 16, None): ("F16", 1),
    ("int", 8, True): ("Q8_0", 7),
    ("int", 5, False): ("Q5_1", 9),
    ("int", 5, True): ("Q5_0", 8),
    ("int", 4, False): ("Q4_1", 3),
    ("int", 4, True): ("Q4_0", 2),
}
"""Format, bits and symmetry: ggml's type, and its number of a file of that type (ggml.h, `ggml_ftype`)."""
_VERSION = 2
"""Of ggml's quantized formats, as a file names it: in thousands, before the number of its type."""
_NEEDED = ("avx2", "fma", "f16c", "bmi2")
"""What the package's library is compiled for; a processor without them would end the process."""
_MAGIC = 0x67676D6C
_NAMES = {
    "encoder.embed_positions.weight": "encoder.positional_embedding",
    "decoder.embed_positions.weight": "decoder.positional_embedding",
    "encoder.layer_norm": "encoder.ln_post",
    "decoder.layer_norm": "decoder.ln",
    "embed_tokens": "token_embedding",
    ".layers.": ".blocks.",
    "self_attn_layer_norm": "attn_ln",
    "encoder_attn_layer_norm": "cross_attn_ln",
    "final_layer_norm": "mlp_ln",
    "self_attn": "attn",
    "encoder_attn": "cross_attn",
    "q_proj": "query",
    "k_proj": "key",
    "v_proj": "value",
    "out_proj": "out",
    "fc1": "mlp.0",
    "fc2": "mlp.2",
}
"""Hugging Face's names, or parts of them, and OpenAI's, which ggml files have; earlier ones first."""


def supports(variant: Variant) -> Variant:
    """float16, and 8, 5 and 4 bits in blocks of 32, with a minimum each unless symmetric: q8_0, q5_1, q5_0, q4_1, q4_0.

    5 bits have a minimum by default, as the file of base that whisper.cpp publishes; the others have none.
    """
    backends.whole("ggml", variant)
    backends.limit("ggml", variant, format=("int", "float"), rest=("float16",))
    if variant.format == "float":
        backends.limit("ggml", variant, " with format float", bits=(16,), activations=("none",))
        backends.limit(
            "ggml", variant, " without quantization", granularity=(None,), group_size=(None,), symmetric=(None,)
        )
        return variant
    backends.limit("ggml", variant, bits=(8, 5, 4))
    backends.limit("ggml", variant, ": it quantizes what comes in, too", activations=("dynamic",))
    backends.limit("ggml", variant, granularity=(None, "group"), group_size=(None, _BLOCK))
    if variant.bits == 8:
        backends.limit("ggml", variant, " with 8 bits", symmetric=(None, True))
    symmetric = variant.bits != 5 if variant.symmetric is None else variant.symmetric
    return dataclasses.replace(variant, granularity="group", group_size=_BLOCK, symmetric=symmetric)


def quantize(
    model: "backends.Whisper", layers: list[str], variant: Variant, calibrate: "backends.Calibrate"
) -> Variant:
    """Leave the model as it is: `save` quantizes. Raises UserError where whisper.cpp cannot compute the model."""
    if not model.tied:
        raise UserError("ggml: this model's output head is not its token embedding, and whisper.cpp has no other head")
    for part in ("encoder", "decoder"):
        inner, width = getattr(model.config, f"{part}_ffn_dim"), model.config.d_model
        if inner != 4 * width:
            raise UserError(
                f"ggml: fc1 of the {part} has {inner:,} rows, and whisper.cpp has 4 x {width:,} in any model"
            )
    linear = backends.linear_layers(model, [name for name, _ in _matrices(model)])
    if variant.format == "int":
        backends.divides("ggml", variant, linear, (_BLOCK,))
    return variant


def save(model: "backends.Whisper", variant: Variant, folder: Path) -> None:
    """Write ggml-model.bin: dimensions, mel filters, tokens and tensors (whisper.cpp, models/convert-h5-to-ggml.py)."""
    backends.installed("ggml", "gguf")
    from gguf import GGMLQuantizationType as Type
    from gguf import quants

    from pipeline.whisper.model import filters

    kind, number = _TYPES[variant.format, variant.bits, variant.symmetric]
    config = model.config
    quantized = {f"{name}.weight" for name, _ in _matrices(model)} | {"model.decoder.embed_tokens.weight"}
    with (folder / FILE).open("wb") as file:
        _numbers(
            file,
            *(_MAGIC, config.vocab_size),
            *(config.max_source_positions, config.d_model, config.encoder_attention_heads, config.encoder_layers),
            *(config.max_target_positions, config.d_model, config.decoder_attention_heads, config.decoder_layers),
            *(config.num_mel_bins, number + 1000 * _VERSION * (variant.format == "int")),
        )
        mels = filters.mel_filters(config.num_mel_bins)
        _numbers(file, *mels.shape)
        file.write(mels.numpy().tobytes())
        tokens = list(_tokens(folder / "tokenizer.json"))
        _numbers(file, len(tokens))
        for token in tokens:
            _numbers(file, len(token))
            file.write(token)
        for name, tensor in model.state_dict().items():
            if name == "proj_out.weight":  # the token embedding
                continue
            values: NDArray[np.float32] = tensor.numpy()
            if ".conv" in name and values.ndim == 1:
                values = values[:, None]  # as whisper.cpp adds it
            stored = Type[kind] if name in quantized else Type.F16 if values.ndim == 3 else Type.F32
            _numbers(file, values.ndim, len(openai_name(name)), stored, *reversed(values.shape))
            file.write(openai_name(name).encode())
            file.write(quants.quantize(values, stored).tobytes())


def measure(model: "backends.Whisper", variant: Variant) -> "tuple[dict[str, int], float]":
    """Return the weights of each layer that is quantized, and the bits of one, scale and minimum of blocks included."""
    if variant.format == "float":
        return {}, variant.bits
    layers = {name: layer.weight.numel() for name, layer in [*_matrices(model), ("proj_out", model.proj_out)]}
    return layers, variant.bits + 16 * (1 if variant.symmetric else 2) / _BLOCK


def tensors(file: Path) -> "Iterator[tuple[str, NDArray[Any], Any]]":
    """Yield the tensors of a file that `save` has written: OpenAI's name, the values or the bytes of rows, the type."""
    import math

    import numpy as np
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
    from gguf.quants import quant_shape_to_byte_shape

    data = file.read_bytes()
    place = 12 * 4

    def numbers(count: int) -> tuple[int, ...]:
        nonlocal place
        place += 4 * count
        return struct.unpack_from(f"<{count}i", data, place - 4 * count)

    filters = math.prod(numbers(2))
    place += 4 * filters
    for _ in range(*numbers(1)):
        (length,) = numbers(1)
        place += length
    while place < len(data):
        dimensions, length, number = numbers(3)
        shape, kind = numbers(dimensions)[::-1], GGMLQuantizationType(number)
        name = data[place : place + length].decode()
        place += length
        block, size = GGML_QUANT_SIZES[kind]
        floats = {GGMLQuantizationType.F32: np.float32, GGMLQuantizationType.F16: np.float16}
        stored = shape if kind in floats else quant_shape_to_byte_shape(shape, kind)
        count = math.prod(shape) // block * size
        values = np.frombuffer(data[place : place + count], floats.get(kind, np.uint8)).reshape(stored)
        place += count
        yield name, values[:, 0] if name.endswith(".bias") and values.ndim == 2 else values, kind


def load(folder: Path, device: str) -> "Engine":
    """Open the file; raise UserError where whisper.cpp or this processor cannot."""
    return Engine(folder)


class Engine:
    """A model of whisper.cpp, as `pipeline.whisper.inference.decoding.Engine` describes it."""

    def __init__(self, folder: Path) -> None:
        from pipeline.whisper.model.network import Config

        self.config = Config.read(folder)
        self._library = _library()
        self._context = self._library.whisper_init_from_file(str(folder / FILE).encode())
        if not self._context:
            raise UserError(f"{folder}: whisper.cpp cannot read {FILE}; quantize it again")
        told = self._library.whisper_print_system_info().decode()
        parts = (part.strip().removesuffix("= 1").strip() for part in told.rpartition("CPU :")[2].split("|"))
        self.kernels = " ".join(part for part in parts if part and "=" not in part)

    def __del__(self) -> None:
        if getattr(self, "_context", None):
            self._library.whisper_free(self._context)

    def decode(
        self,
        sounds: "Sequence[Samples]",
        vocabulary: "Vocabulary",
        most: int,
        names: Sequence[str],
        told: Sequence[int],
    ) -> tuple[Sequence[int], list[list[int]]]:
        """Return each sound's language, where that is to be detected and not `told`, and its tokens: `most` of them.

        Raises UserError where the model's logits are not numbers.
        """
        import numpy as np
        import torch

        barred = np.zeros(self.config.vocab_size, np.float32)
        barred[vocabulary.suppressed] = -np.inf
        barred_first = barred.copy()
        barred_first[vocabulary.suppressed_first] = -np.inf
        spoken: list[int] = []
        rows: list[list[int]] = []
        for number, sound in enumerate(sounds):
            self._encode(sound)
            if vocabulary.languages:
                spoken.append(told[number] if told else self._language(vocabulary))
            (tokens,) = vocabulary.prompts(1, spoken[-1:])
            row: list[int] = []
            read = 0
            while len(row) < most:
                scores = self._next(tokens, read) + (barred if row else barred_first)
                if vocabulary.timestamps:
                    vocabulary.timestamps.bar(torch.from_numpy(scores[None]), [row])
                best = int(scores.argmax())
                if not np.isfinite(scores[best]):
                    why = "the weights are broken, or every token is suppressed"
                    raise UserError(
                        f"{names[number]}: no token can be chosen, as its logit is not a finite number: {why}"
                    )
                if best == vocabulary.end:
                    break
                row.append(best)
                read, tokens = read + len(tokens), [best]
            rows.append(row)
        return spoken, rows

    def logits(self, sound: "Samples", tokens: list[int], places: int) -> "Tensor":
        """Return the logits (places, vocabulary) that predict the last `places` of the tokens, forced one by one."""
        import numpy as np
        import torch

        self._encode(sound)
        prompt = len(tokens) - places
        found = [self._next(tokens[:prompt], 0).copy()]
        found += [self._next(tokens[place : place + 1], place).copy() for place in range(prompt, len(tokens) - 1)]
        return torch.from_numpy(np.stack(found))

    def _encode(self, sound: "Samples") -> None:
        """Let it hear a window: its own features, its own encoder."""
        import numpy as np
        import torch

        # It mirrors the first samples of sound at its start, and is not made for less than those; zeros follow anyway.
        heard = np.zeros(max(len(sound), 16_000), np.float32)
        heard[: len(sound)] = sound
        threads = torch.get_num_threads()
        self._check(self._library.whisper_pcm_to_mel(self._context, heard.ctypes.data, len(heard), threads))
        self._check(self._library.whisper_encode(self._context, 0, threads))

    def _next(self, tokens: list[int], read: int) -> "NDArray[np.float32]":
        """Return the logits (vocabulary,) of what follows these tokens, which come after `read` others."""
        import numpy as np
        import torch

        given = np.array(tokens, np.int32)
        threads = torch.get_num_threads()
        self._check(self._library.whisper_decode(self._context, given.ctypes.data, len(given), read, threads))
        found = self._library.whisper_get_logits(self._context)
        last: NDArray[np.float32] = np.ctypeslib.as_array(found, shape=(len(given), self.config.vocab_size))[-1]
        return last

    def _language(self, vocabulary: "Vocabulary") -> int:
        choices = list(vocabulary.languages)
        return choices[int(self._next(vocabulary.prompt[:1], 0)[choices].argmax())]

    def _check(self, status: int) -> None:
        if status:
            raise UserError(f"ggml: whisper.cpp ended with status {status}; look whether memory is short")


@functools.cache
def _library() -> Any:
    """Open whisper.cpp's library and declare what is called of it (whisper.h)."""
    if missing := machine.lacking(_NEEDED):
        what = f"this processor lacks {' and '.join(missing)}, which pywhispercpp's whisper.cpp is compiled for"
        raise UserError(f"ggml: {what}; leave the variant out")
    place = backends.installed("ggml", "_pywhispercpp", "pywhispercpp")
    files = sorted(place.parent.glob("pywhispercpp.libs/libwhisper-*"))
    if not files:
        raise UserError(f"ggml: {place.parent} has no pywhispercpp.libs/libwhisper-*; install pywhispercpp as a wheel")
    library = ctypes.CDLL(str(files[0]))
    pointer, number = ctypes.c_void_p, ctypes.c_int
    declared: dict[str, tuple[Any, list[Any]]] = {
        "whisper_log_set": (None, [pointer, pointer]),
        "whisper_init_from_file": (pointer, [ctypes.c_char_p]),
        "whisper_free": (None, [pointer]),
        "whisper_pcm_to_mel": (number, [pointer, pointer, number, number]),
        "whisper_encode": (number, [pointer, number, number]),
        "whisper_decode": (number, [pointer, pointer, number, number, number]),
        "whisper_get_logits": (ctypes.POINTER(ctypes.c_float), [pointer]),
        "whisper_print_system_info": (ctypes.c_char_p, []),
    }
    for name, (returned, taken) in declared.items():
        function = getattr(library, name)
        function.restype, function.argtypes = returned, taken
    library.whisper_log_set(_SILENT, None)
    return library


_SILENT = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda *_: None)
"""Takes the library's messages; here, as it must outlive every call."""


def _matrices(model: "backends.Whisper") -> "list[tuple[str, Any]]":
    """Return the Linear layers but the head, by name."""
    from torch import nn

    return [
        (name, module) for name, module in model.named_modules() if type(module) is nn.Linear and name != "proj_out"
    ]


def openai_name(name: str) -> str:
    """Return OpenAI's name of one of Hugging Face's tensors."""
    name = name.removeprefix("model.")
    for theirs, openai in _NAMES.items():
        name = name.replace(theirs, openai)
    return name


def _tokens(file: Path) -> Iterator[bytes]:
    """Yield the bytes of each token in order, up to the first that is no text: whisper.cpp numbers the others."""
    letters = {letter: byte for byte, letter in enumerate(_alphabet())}
    vocabulary: dict[str, int] = json.loads(file.read_text(encoding="utf-8"))["model"]["vocab"]
    for number, (token, place) in enumerate(sorted(vocabulary.items(), key=lambda item: item[1])):
        if place != number or not letters.keys() >= set(token):
            return
        yield bytes(letters[letter] for letter in token)


def _alphabet() -> Iterable[str]:
    """Return the letter that stands for each byte in GPT-2's tokenizer: itself where it can be seen, else another."""
    seen = {*range(33, 127), *range(161, 173), *range(174, 256)}
    beyond = iter(range(256, 512))
    return [chr(byte if byte in seen else next(beyond)) for byte in range(256)]


def _numbers(file: Any, *numbers: int) -> None:
    file.write(struct.pack(f"<{len(numbers)}i", *numbers))
