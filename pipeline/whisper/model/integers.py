"""Packed int8 weights multiplied as integers: a quarter of the bytes to read, a multiple of the products a second.

Every position of the activations has a scale of its own, so that its neighbours in a batch do not change it. Columns on
which the text depends have finer weights and so coarser activations (`Packed.column`): outliers that a few columns have
are evened out, as SmoothQuant does it (Xiao et al. 2023, arXiv 2211.10438).
"""

import functools
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.whisper.model import packing
from pipeline.whisper.model.network import Whisper
from pipeline.whisper.model.packing import Packed

_TINY = 1e-30
"""The least scale: a position of zeros has no other."""
_ZERO = 128
"""The unsigned code that stands for 0."""


class Linear(nn.Module):
    """A Linear layer of int8 codes, with a scale for each row and each column."""

    def __init__(self, packed: Packed, bias: Tensor | None, alone: bool) -> None:
        """Take the codes; `alone`: positions may come one at a time, and there is a quicker kernel for that."""
        super().__init__()
        assert packed.column is not None
        codes, scale = packed.codes.to(torch.int8).contiguous(), packed.scale.float().flatten()
        self.column, self.bias = packed.column.float(), bias
        by_bytes = codes.device.type == "cpu" and multiplies_bytes()
        self.products = _bytes(codes, scale) if by_bytes else _floats(codes, scale)
        self.single = _single(codes, scale, bias) if by_bytes and alone else None

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., rows) of (..., columns)."""
        x = x * self.column
        if self.single and x.numel() == len(self.column):
            return self.single(x)
        flat = x.reshape(-1, x.shape[-1])
        reach = torch.maximum(flat.amax(1, keepdim=True), flat.amin(1, keepdim=True).neg_())
        steps = torch.add(_TINY, reach, alpha=1 / 127)
        # In place, as new memory for large tensors costs more time than the arithmetic.
        y = self.products(flat.div_(steps).round_().to(torch.int8)).mul_(steps)
        if self.bias is not None:
            y.add_(self.bias)
        return y.view(*x.shape[:-1], -1)


def multiply(model: Whisper) -> None:
    """Let Linear layers with deflated codes multiply integers, and the output head where it is tied to such."""
    for name, packed in packing.attached(model).items():
        module = model.get_submodule(name)
        del module.packed  # its codes are here twice
        if packed.column is None:
            continue
        if module is model.model.decoder.embed_tokens:
            model.set_submodule("proj_out", Linear(packed, None, alone=True))
        elif isinstance(module, nn.Linear):
            model.set_submodule(name, Linear(packed, module.bias, alone=not name.startswith("model.encoder.")))
    can = torch.cpu.get_capabilities()
    if can.get("avx512_bf16") or can.get("amx_bf16"):
        for layer in model.model.encoder.layers:
            layer.self_attn.precision = torch.bfloat16  # type: ignore[union-attr]  # ModuleList forgets its items' type


@functools.cache
def multiplies_bytes() -> bool:
    """Tell whether this processor and this PyTorch multiply bytes right: VNNI does, older instructions cut off sums."""
    try:
        codes = torch.full((64, 64), 127, dtype=torch.int8)
        return bool((_bytes(codes, torch.ones(64))(codes.clone()) == 64 * 127 * 127).all())
    except (AttributeError, RuntimeError):  # a PyTorch without oneDNN's operator
        return False


def _bytes(codes: Tensor, scale: Tensor) -> Callable[[Tensor], Tensor]:
    """Return what multiplies int8 codes (positions, columns) by int8 codes (rows, columns) and scales the rows."""
    blocks, zeros = torch.ops.onednn.qlinear_prepack(codes, None), torch.zeros(len(scale), dtype=torch.int64)
    operator = torch.ops.onednn.qlinear_pointwise.default
    how: tuple[Any, ...] = (None, 1.0, 0, torch.float32, "none", [], "")  # bias, output's scale and zero, no more steps
    # oneDNN takes unsigned bytes, and signed ones in a plain loop. To flip the first bit is to add 128.
    return lambda x: operator(x.view(torch.uint8).bitwise_xor_(_ZERO), 1.0, _ZERO, blocks, scale, zeros, *how)


def _floats(codes: Tensor, scale: Tensor) -> Callable[[Tensor], Tensor]:
    """Return the same in float32, for other processors and devices: slower, and equal but for rounding."""
    weight = codes.float()
    return lambda x: functional.linear(x.float(), weight) * scale


def _single(codes: Tensor, scale: Tensor, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
    """Return what multiplies one position (1, columns) by int8 codes: FBGEMM's kernel is the quicker one there.

    Its codes reach from the least to the largest value, as one position alone can have a zero point.
    """
    zeros = torch.zeros(len(scale), dtype=torch.int64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # quantized tensors are deprecated, and work
        weight = torch._make_per_channel_quantized_tensor(codes, scale, zeros, 0)
    packed = torch.ops.quantized.linear_prepack(weight, bias)
    operator = torch.ops.quantized.linear_dynamic.default
    return lambda x: operator(x, packed, False)
