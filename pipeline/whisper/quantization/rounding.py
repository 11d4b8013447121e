"""Rounding weights to few bits: to the nearest code, or so that a layer's output keeps close (GPTQ)."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.core.errors import UserError
from pipeline.whisper.model.packing import Packed

GROUP = 64
"""Weights that share a scale, where there are fewer than 8 bits."""

_RANGES = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75)
_BLOCK = 128
_TINY = 1e-30
_SUBNORMAL = 2.0**-24
"""How far apart float16's smallest numbers are."""


def nearest(weight: Tensor, bits: int) -> Packed:
    """Round to the nearest code: 8 bits symmetric with a scale per row, fewer from a group's least value to its last.

    `weight` is (rows, ...). A row that groups do not divide is one group.
    """
    flat = weight.flatten(1)
    group = flat.shape[1] if bits == 8 or flat.shape[1] % GROUP else GROUP
    scale, low = grid(flat.unflatten(1, (-1, group)), bits, symmetric=bits == 8)
    return Packed(encode(flat, scale, low, bits), scale, bits, tuple(weight.shape), low)


def grid(groups: Tensor, bits: int, symmetric: bool = False) -> tuple[Tensor, Tensor | None]:
    """Return scale and low of groups (rows, groups, weights), in float16, as `Packed` has them.

    The codes reach from the least value of a group to its largest, and 0 is among what they stand for.
    """
    if symmetric:
        reach = groups.abs().amax(2) / (2 ** (bits - 1) - 1)
        return _not_zero(reach), None
    low, high = groups.amin(2).clamp(max=0), groups.amax(2).clamp(min=0)
    scale = _not_zero((high - low) / (2**bits - 1))
    return scale, (low / scale.float()).round().mul(scale.float()).half()


def encode(flat: Tensor, scale: Tensor, low: Tensor | None, bits: int) -> Tensor:
    """Return the nearest codes (uint8) of a matrix whose groups have these scales."""
    groups, steps = flat.unflatten(1, (scale.shape[1], -1)), scale.float()[:, :, None]
    codes: Tensor = groups / steps + 2 ** (bits - 1) if low is None else (groups - low.float()[:, :, None]) / steps
    codes = codes.round().clamp(0, 2**bits - 1).flatten(1)
    return codes.to(torch.uint8)


def optimal_grid(weight: Tensor, bits: int, group: int, importance: Tensor) -> tuple[Tensor, Tensor]:
    """Return scale and low of groups whose ranges lose least: each shrunk as far as the importance of columns asks."""
    groups, weights = weight.unflatten(1, (-1, group)), importance.unflatten(0, (-1, group))
    best = torch.full(groups.shape[:2], float("inf"))
    scale, low = grid(groups, bits)
    assert low is not None
    for shrunk in _RANGES:
        tried, start = grid(groups * shrunk, bits)
        assert start is not None
        wide, from_ = tried.float()[:, :, None], start.float()[:, :, None]
        rounded = ((groups - from_) / wide).round().clamp(0, 2**bits - 1) * wide + from_
        loss = ((rounded - groups).square() * weights).sum(2)
        better = loss < best
        best, scale = torch.where(better, loss, best), torch.where(better, tried, scale)
        low = torch.where(better, start, low)
    return scale, low


@dataclass(frozen=True)
class Order:
    """How the columns of a weight are rounded one after the other: what is left of a column's error goes to later ones.

    Frantar et al. 2023, "GPTQ" (arXiv 2210.17323).
    """

    columns: Tensor
    """The columns as they come."""
    factor: Tensor
    """Upper triangular, in that order: the Cholesky factor of the inverse of the damped second moments."""

    @classmethod
    def of(cls, inputs: Tensor, damping: float) -> "Order":
        """Take the columns by falling second moments; add `damping` of their mean to each: little speech overfits.

        Raises UserError where no factor follows from the moments: some are not numbers, or far apart.
        """
        moments = inputs.double()
        mean = moments.diagonal().mean()
        moments = moments + torch.eye(len(inputs), dtype=torch.float64) * (damping * mean if mean > 0 else 1.0)
        columns = moments.diagonal().argsort(descending=True, stable=True)
        try:
            inverse = torch.cholesky_inverse(torch.linalg.cholesky(moments[columns][:, columns]))
            return cls(columns, torch.linalg.cholesky(inverse, upper=True).float())
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]  # documented all the same
            why = "what it sees of the calibration speech cannot be factored"
            raise UserError(f"{why}; calibrate on more speech (calibration.utterances)") from None

    @property
    def importance(self) -> Tensor:
        """Return what a squared error costs that is made in a column when it is its turn, in the weight's own order."""
        return self.factor.diagonal().pow(-2)[self.columns.argsort()]

    def round(self, weight: Tensor, quantize: Callable[[Tensor, int], tuple[Tensor, Tensor]]) -> Tensor:
        """Return the codes of a weight (rows, columns), in int16.

        `quantize(values, column)` returns a column's codes and what they stand for.
        """
        left = weight.T[self.columns].contiguous()
        codes = torch.empty(left.shape, dtype=torch.int16)
        names = self.columns.tolist()
        for start in range(0, len(names), _BLOCK):
            end = min(start + _BLOCK, len(names))
            errors = torch.empty(end - start, left.shape[1])
            for at in range(start, end):
                found, values = quantize(left[at], names[at])
                codes[at] = found.to(torch.int16)
                error = (left[at] - values) / self.factor[at, at]
                left[at + 1 : end].addr_(self.factor[at, at + 1 : end], error, alpha=-1)
                errors[at - start] = error
            left[end:].addmm_(self.factor[start:end, end:].T, errors, alpha=-1)
        return codes[self.columns.argsort()].T


def gptq(weight: Tensor, order: Order, bits: int, group: int) -> Packed:
    """Round a matrix to codes of `bits`, in groups of `group` weights of a row, so that its outputs keep close."""
    scale, low = optimal_grid(weight, bits, group, order.importance)
    steps, starts = (each.float().repeat_interleave(group, 1).T.contiguous() for each in (scale, low))

    def quantize(values: Tensor, column: int) -> tuple[Tensor, Tensor]:
        codes = ((values - starts[column]) / steps[column]).round_().clamp_(0, 2**bits - 1)
        return codes, codes * steps[column] + starts[column]

    return Packed(order.round(weight, quantize).to(torch.uint8), scale, bits, tuple(weight.shape), low)


def scales(weight: Tensor, outputs: Tensor, importance: Tensor, distortion: float) -> tuple[Tensor, Tensor]:
    """Return the scales of rows and columns, float16, with which every weight's error costs alike: `distortion` nats.

    Of all grids with as many bits on average, stored by their entropy, that one loses least: reverse water-filling
    (Cover and Thomas, "Elements of information theory", 13.3.3; at high rates). `outputs` and `importance` say what an
    error costs in a row and in a column. Codes reach from -127 to 127, so that a row's largest weight bounds its scale.
    """
    column = importance.clamp(min=_TINY) ** -0.5
    widest = column.max()  # 1 in what is stored: float16 is exact about there
    column = _not_zero(column / widest)
    row = (distortion / outputs.clamp(min=_TINY)).sqrt() * widest
    row = row.maximum((weight.abs() / column.float()).amax(1) / 127)
    return _not_zero(row.clamp(max=torch.finfo(torch.float16).max)), column


def rounded(weight: Tensor, row: Tensor, column: Tensor) -> Packed:
    """Round a matrix to the nearest codes of these scales: about as large as `entropy_coded` makes it, at once."""
    codes = (weight / (row.float()[:, None] * column.float())).round().clamp(-127, 127).to(torch.int8)
    return Packed(codes, row[:, None], None, tuple(weight.shape), None, column)


def entropy_coded(weight: Tensor, order: Order, row: Tensor, column: Tensor) -> Packed:
    """Round a matrix to a grid of these scales, so that its outputs keep close."""
    rows = row.float()

    def quantize(values: Tensor, at: int) -> tuple[Tensor, Tensor]:
        step = rows * column[at].float()
        codes = (values / step).round_().clamp_(-127, 127)
        return codes, codes * step

    return Packed(order.round(weight, quantize).to(torch.int8), row[:, None], None, tuple(weight.shape), None, column)


def _not_zero(scale: Tensor) -> Tensor:
    """Return scales as float16; of a group of zeros, whose codes are all 0, it is 1.

    Below float16's normal numbers they are rounded up: down, by up to 100 %, would cut off the largest weights.
    """
    half = scale.half()
    up = (half.float() < scale) & (half < torch.finfo(torch.float16).smallest_normal)
    half = torch.where(up, half + _SUBNORMAL, half)
    return torch.where(scale > 0, half, torch.ones_like(half))
