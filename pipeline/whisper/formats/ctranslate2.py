"""Read a CTranslate2 model.bin (version 6) of Whisper and turn it into Hugging Face's layout, value for value."""

import re
import struct
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pipeline.core.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Variables = dict[str, NDArray[Any]]

VERSION = 6
SPEC = "WhisperSpec"
TYPES = ("<f4", "<i1", "<i2", "<i4", "<f2")  # numpy's names, at the index that the file stores
TIED = {"decoder/projection/weight": "decoder/embeddings/weight"}
SETTINGS = {"activation": 3, "alibi": 0, "pre_norm": 1, "scale_embeddings": 0, "start_from_zero_embedding": 0}
"""Scalars that say what every Whisper is, such as GELU (ctranslate2.specs.common_spec.Activation)."""
IGNORED = ("alignment_heads", "alignment_layer", "num_heads")
"""Scalars without a part in the network; num_heads is read by `heads`."""

NAMES = {
    "encoder/conv1": "encoder.conv1",
    "encoder/conv2": "encoder.conv2",
    "encoder/layer_norm": "encoder.layer_norm",
    "decoder/layer_norm": "decoder.layer_norm",
    "encoder/position_encodings/encodings": "encoder.embed_positions.weight",
    "decoder/position_encodings/encodings": "decoder.embed_positions.weight",
    "decoder/embeddings/weight": "decoder.embed_tokens.weight",
}
IN_LAYER = {
    "self_attention/layer_norm": ("self_attn_layer_norm",),
    "self_attention/linear_0": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attention/linear_1": ("self_attn.out_proj",),
    "attention/layer_norm": ("encoder_attn_layer_norm",),
    "attention/linear_0": ("encoder_attn.q_proj",),
    "attention/linear_1": ("encoder_attn.k_proj", "encoder_attn.v_proj"),
    "attention/linear_2": ("encoder_attn.out_proj",),
    "ffn/layer_norm": ("final_layer_norm",),
    "ffn/linear_0": ("fc1",),
    "ffn/linear_1": ("fc2",),
}
"""Module of a layer -> Hugging Face's modules, whose tensors it stacks along the first axis."""

LEAF = {"weight": "weight", "bias": "bias", "gamma": "weight", "beta": "bias"}


def read(data: bytes) -> "Variables":
    """Return the variables of a model.bin by name, without copying `data`; aliases are checked and left out.

    Raises UserError when the bytes are not a whole version 6 file of Whisper.
    """
    import numpy as np

    place = 0

    def number(kind: str) -> int:
        nonlocal place
        (value,) = struct.unpack_from(f"<{kind}", data, place)
        place += struct.calcsize(kind)
        return int(value)

    def name() -> str:
        nonlocal place
        length = number("H")
        place += length
        if place > len(data):
            raise ValueError("a name is cut off")
        return data[place - length : place].decode("ascii").rstrip("\0")

    try:
        version = number("I")
        if version != VERSION:
            raise UserError(f"model.bin has version {version}, but only CTranslate2's version {VERSION} can be read")
        spec = name()
        if spec != SPEC:
            raise UserError(f"model.bin holds a {spec}, but only a {SPEC} can be converted")
        number("I")  # the spec's revision; what it changes are names and shapes, which are checked in `convert`
        variables: Variables = {}
        for _ in range(number("I")):
            key = name()
            shape = [number("I") for _ in range(number("B"))]
            code, size = number("B"), number("I")
            if code >= len(TYPES):
                raise UserError(f"model.bin: {key} has the unknown type {code}; only float16 and float32 can be used")
            kind = np.dtype(TYPES[code])
            values = np.frombuffer(data, kind, size // kind.itemsize, place)
            variables[key] = values.reshape(shape)
            place += size
        aliases = {name(): name() for _ in range(number("I"))}
    except (struct.error, UnicodeDecodeError, ValueError, IndexError) as error:
        read = f"{min(place, len(data)):,} of {len(data):,} bytes ({error})"
        what = "is a part of it missing from the files of the model?"
        raise UserError(f"model.bin is damaged or cut short after {read}; {what}") from None
    if place != len(data):
        raise UserError(f"model.bin is damaged: {len(data) - place:,} bytes follow its end")
    if aliases != TIED:
        raise UserError(f"model.bin ties {aliases or 'nothing'}, but Whisper ties its output to its token embedding")
    return variables


def heads(variables: "Variables") -> tuple[int, int]:
    """Return the numbers of attention heads of encoder and decoder; raise UserError when the file does not say."""
    names = ("encoder/num_heads", "decoder/num_heads")
    if not all(name in variables and variables[name].size == 1 for name in names):
        raise UserError("model.bin does not say how many heads its attention has; convert the model again")
    encoder, decoder = (int(variables[name].item()) for name in names)
    return encoder, decoder


def convert(variables: "Mapping[str, NDArray[Any]]") -> "dict[str, NDArray[np.float32]]":
    """Return the tensors under Hugging Face's names, as float32 of exactly the file's values.

    The stacked projections of attention are cut apart; the key's bias, which Whisper has not, must be zero and is
    dropped. The output head is tied to the embedding and not stored. Raises UserError for a variable that is unknown,
    quantized or not of Whisper's structure.
    """
    import numpy as np

    tensors: dict[str, NDArray[np.float32]] = {}
    for key, values in variables.items():
        side, _, setting = key.partition("/")
        if side in ("encoder", "decoder") and setting in (*IGNORED, *SETTINGS):
            only = SETTINGS.get(setting)
            if only is not None and (values != only).any():
                raise UserError(f"model.bin: {key} is {values.tolist()}, but every Whisper has {only}")
            continue
        if values.dtype.kind != "f":
            needed = "only float16 and float32 models make an exact baseline"
            raise UserError(f"model.bin: {key} is {values.dtype.name}, a quantized weight; {needed}")
        modules, leaf = _target(key)
        if values.shape[0] % len(modules):
            raise UserError(f"model.bin: {key} has {values.shape[0]:,} rows, which is not {len(modules)} equal parts")
        for module, part in zip(modules, np.split(values, len(modules)), strict=True):
            full = np.ascontiguousarray(part, dtype=np.float32)
            if not np.isfinite(full).all():
                raise UserError(f"model.bin: {key} holds values that are not finite")
            if module.endswith("k_proj") and leaf == ".bias":
                if full.any():
                    raise UserError(f"model.bin: {key} has a bias for keys, which Whisper has not")
                continue
            tensors[f"model.{module}{leaf}"] = full
    return tensors


def _target(key: str) -> tuple[list[str], str]:
    """Return the modules that a variable's values belong to, and the tensor's name in each (".weight", ".bias", "")."""
    parent, _, leaf = key.rpartition("/")
    match = re.fullmatch(r"(encoder|decoder)/layer_(\d+)/(.+)", parent)
    if key in NAMES:
        return [NAMES[key]], ""
    if leaf in LEAF and parent in NAMES:
        return [NAMES[parent]], f".{LEAF[leaf]}"
    if leaf in LEAF and match and match[3] in IN_LAYER:
        return [f"{match[1]}.layers.{match[2]}.{module}" for module in IN_LAYER[match[3]]], f".{LEAF[leaf]}"
    raise UserError(f"model.bin: {key} is no part of Whisper")
