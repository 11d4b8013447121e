"""Our own quantized weights: whole numbers with scales, stored without waste, and weights in float16 beside them.

A matrix (rows, columns) is `codes * scale + low` or `codes * scale * column`: `scale` and `low` belong to groups of a
row's weights, `column` to columns. Codes of a fixed width stand in planes: one bit of all codes, then the next. Codes
without one are deflated, which gives frequent codes fewer bits (Huffman): a tenth of a bit more than their entropy.
A checkpoint with such weights is whole to whoever reads it with `weights.read`: they come as float32.
"""

import json
import math
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.core.errors import UserError

KEY = "packed"
"""Where a file's metadata tell, in JSON, the `bits` (null: deflated) and the `shape` of each packed weight."""

BROKEN = (ValueError, LookupError, TypeError, AttributeError, RuntimeError, zlib.error)
"""What `unpack` raises for a file that somebody has edited."""

_PARTS = ("codes", "scale", "low", "column")
_LARGEST = float(torch.finfo(torch.float16).max)


@dataclass(frozen=True)
class Packed:
    """A quantized weight."""

    codes: Tensor
    """(rows, columns): uint8 of a fixed width, or int8."""
    scale: Tensor
    """float16 (rows, groups)."""
    bits: int | None
    """The width of a code; None: as many as its frequency asks for."""
    shape: tuple[int, ...]
    """The weight's own shape; rows are its first dimension."""
    low: Tensor | None = None
    """float16 (rows, groups), what code 0 stands for; None: the middle of the codes is 0."""
    column: Tensor | None = None
    """float16 (columns,), where codes have no fixed width."""

    def weight(self) -> Tensor:
        """Return the weight as float32."""
        rows, columns = self.codes.shape
        codes = self.codes.float() - (2 ** (self.bits - 1) if self.bits and self.low is None else 0)
        grouped = codes.reshape(rows, self.scale.shape[1], -1) * self.scale.float()[:, :, None]
        if self.low is not None:
            grouped += self.low.float()[:, :, None]
        flat = grouped.reshape(rows, columns)
        return (flat if self.column is None else flat * self.column.float()).reshape(self.shape)

    def tensors(self) -> dict[str, Tensor]:
        """Return what is stored, by part."""
        parts = {"codes": _deflate(self) if self.bits is None else _planes(self.codes, self.bits)}
        others = {"scale": self.scale, "low": self.low, "column": self.column}
        return parts | {part: tensor.contiguous() for part, tensor in others.items() if tensor is not None}

    def size(self) -> int:
        """Return how many bytes are stored."""
        return sum(tensor.nbytes for tensor in self.tensors().values())


def attach(module: nn.Module, packed: Packed) -> None:
    """Make a module compute with a packed weight, and remember what to store."""
    module.weight = nn.Parameter(packed.weight(), requires_grad=False)
    module.packed = packed  # type: ignore[assignment]  # modules may hold anything


def attached(model: nn.Module) -> dict[str, Packed]:
    """Return the packed weights of a model, by the names of their modules."""
    return {
        name: module.packed
        for name, module in model.named_modules()
        if isinstance(getattr(module, "packed", None), Packed)
    }


def shrink(folder: Path, packed: Mapping[str, Packed], rest: str) -> None:
    """Rewrite a checkpoint's model.safetensors with these modules' weights packed, and the rest as `rest` says.

    Raises UserError for a weight that float16 cannot hold.
    """
    from safetensors import safe_open
    from safetensors.torch import save_file

    path = folder / "model.safetensors"
    if rest == "float32" and not packed:
        return _sort_metadata(path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
        names = [name for name in file.keys() if name.removesuffix(".weight") not in packed]  # noqa: SIM118  # no mapping
        tensors = {name: file.get_tensor(name) for name in names}
    if rest == "float16":
        tensors = {name: _half(name, tensor) for name, tensor in tensors.items()}
    for name, each in packed.items():
        tensors |= {f"{name}.weight.{part}": tensor for part, tensor in each.tensors().items()}
    if packed:
        told = {f"{name}.weight": {"bits": each.bits, "shape": each.shape} for name, each in packed.items()}
        metadata[KEY] = json.dumps(told)
    save_file(tensors, path, metadata)
    _sort_metadata(path)


def unpack(tensors: dict[str, Tensor], metadata: Mapping[str, str]) -> tuple[dict[str, Tensor], dict[str, Packed]]:
    """Undo `shrink`: return a file's other tensors as float32, and the packed weights.

    Raises one of BROKEN where they do not fit.
    """
    told: Any = json.loads(metadata.get(KEY, "{}"))
    packed = {}
    for name, how in told.items():
        parts = {part: tensors.pop(f"{name}.{part}", None) for part in _PARTS}
        packed[name] = _unpacked(name, parts, how["bits"], tuple(how["shape"]))
    return {name: _whole(name, tensor) for name, tensor in tensors.items()}, packed


def _sort_metadata(path: Path) -> None:
    """Put a file's metadata in order: safetensors writes them in another one each time, as if the file had changed."""
    with path.open("r+b") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        file.seek(8)
        file.write(json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(length))


def _half(name: str, tensor: Tensor) -> Tensor:
    if not _is_plain(name) or tensor.dtype != torch.float32:
        return tensor
    if tensor.abs().max() > _LARGEST:
        raise UserError(f"{name} has values beyond {_LARGEST:,.0f}, which float16 cannot hold; set rest to float32")
    return tensor.half()


def _whole(name: str, tensor: Tensor) -> Tensor:
    return tensor.float() if _is_plain(name) and tensor.dtype == torch.float16 else tensor


def _is_plain(name: str) -> bool:
    return name.endswith((".weight", ".bias"))  # libraries give what they quantize longer names, or another type


def _planes(codes: Tensor, bits: int) -> Tensor:
    """Return bit 0 of all codes, then bit 1, and so on: uint8, each plane filled up to whole bytes."""
    flat = codes.flatten().to(torch.uint8).numpy()
    return torch.from_numpy(np.concatenate([np.packbits(flat >> bit & 1) for bit in range(bits)]))


def _deflate(packed: Packed) -> Tensor:
    """Return int8 codes deflated, column by column, from fine columns to coarse: neighbours then have like codes."""
    assert packed.column is not None
    order = packed.column.argsort(stable=True)
    coder = zlib.compressobj(9, memLevel=9, strategy=zlib.Z_HUFFMAN_ONLY)
    data = coder.compress(packed.codes[:, order].T.contiguous().to(torch.int8).numpy().tobytes()) + coder.flush()
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def _unpacked(name: str, parts: Mapping[str, Tensor | None], bits: int | None, shape: tuple[int, ...]) -> Packed:
    stored, scale, low, column = (parts[part] for part in _PARTS)
    if stored is None or scale is None or (bits is None and column is None):
        raise ValueError(f"{name} lacks its codes or scales")
    scales = [each for each in (scale, low, column) if each is not None]
    if stored.dtype != torch.uint8 or any(each.dtype != torch.float16 for each in scales):
        raise ValueError(f"{name} has codes or scales of another type")
    if bits is not None and bits not in range(1, 9):
        raise ValueError(f"{name} has codes of neither 1 to 8 bits nor null")
    rows, columns = shape[0], math.prod(shape[1:])
    fits = min(shape) > 0 and scale.dim() == 2 and len(scale) == rows and (low is None or low.shape == scale.shape)
    fits = fits and scale.shape[1] > 0 and columns % scale.shape[1] == 0
    if not fits or (column is not None and column.shape != (columns,)):
        raise ValueError(f"the scales of {name} do not fit its shape {list(shape)}")
    data = stored.cpu().numpy()
    if bits is None:
        assert column is not None
        inflater = zlib.decompressobj()
        # Huffman's codes have a bit at least: whoever promises more than that fills the memory.
        inflated = inflater.decompress(data.tobytes(), min(rows * columns, 8 * data.size) + 1)
        if len(inflated) != rows * columns or not inflater.eof:
            raise ValueError(f"{name} does not have {rows * columns:,} codes")
        codes = torch.frombuffer(bytearray(inflated), dtype=torch.int8).reshape(columns, rows).T
        codes = codes[:, column.cpu().argsort(stable=True).argsort()]
    else:
        each = -(-rows * columns // 8)
        if len(data) != bits * each:
            raise ValueError(f"{name} has {len(data):,} bytes of codes, not {bits * each:,}")
        planes = np.unpackbits(data.reshape(bits, each), axis=1, count=rows * columns)
        codes = torch.from_numpy(sum(planes[bit] << bit for bit in range(bits)).reshape(rows, columns))
    return Packed(codes.to(scale.device), scale, bits, shape, low, column)
