"""torchao, PyTorch's successor of torch.ao: weights of 1 to 8 bits, float8, and int8 with dynamic activations, on CPUs.

A checkpoint is torchao's own: model.safetensors with the tensors and the metadata of `flatten_tensor_state_dict`, which
`torchao.prototype.safetensors` reads without us. What each format computes, and takes on disk:

- int8 and float8: a byte a weight. Weight-only layers compute in fp32, as the baseline does. Dynamic ones multiply
  integers; every token has its own scale, so that its neighbours in a batch do not change it.
- int4: half a byte, in groups whose scale and zero point are bfloat16 (4.5 bits a weight with groups of 64). PyTorch's
  packed kernel computes in bfloat16: in fp32 it is a plain loop, 24 times slower than an fp32 layer with one row and 80
  times with 1,500. What it packs differs from processor to processor (AVX512, AVX2 and others), so that a packed file
  would be read as other weights elsewhere, without a word; torchao's safetensors refuse it, too. The file holds
  torchao's plain `Int4Tensor` instead, and `load` packs it for the processor at hand.
- other bits: fp32, and a whole byte a weight, as torchao packs them for ARM and GPUs alone. Fewer bits save nothing
  over 8: these formats tell what the bits cost in accuracy.

Its kernels are meant for `torch.compile`, which would take minutes to start; here they run as they are.
"""

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import backends
from pipeline.core.errors import UserError
from pipeline.core.variant import Variant

if TYPE_CHECKING:
    from torch import Tensor, nn

DEVICES = ("cpu",)
LEARNS = None
_WEIGHT = "._weight_qdata"
"""How the name of a quantized layer's weight ends in the file."""
_GROUP_SIZE = 64
_PACKED = (32, 64, 128)
"""Group sizes of the packed int4 kernel."""
_ROWS = 16
"""It takes so many rows at once."""


def supports(variant: Variant) -> Variant:
    """8 bits go with any granularity, 4 with groups and zero points, as the packed kernel has them.

    Groups are the default below 8 bits: a scale for a whole row, torchao's own default, leaves nothing of 3 bits.
    """
    backends.limit("torchao", variant, format=("int", "float"), double_quant=(False,))
    possible = (8,) if variant.format == "float" else tuple(range(8, 0, -1))
    backends.limit("torchao", variant, f" with format {variant.format}", bits=possible)
    backends.limit("torchao", variant, activations=("none", "dynamic"))
    dynamic = variant.activations == "dynamic"
    if dynamic:
        backends.limit("torchao", variant, " with activations dynamic", bits=(8,))
        backends.limit("torchao", variant, " with activations dynamic: its float8 kernels need a GPU", format=("int",))

    where = f" with {variant.bits} bits" + (" and activations dynamic" if dynamic else "")
    granularities: tuple[Any, ...] = ("group",) if variant.bits == 4 else ("channel", "group")
    if variant.bits == 8:
        granularities = ("tensor", "channel") if dynamic else ("tensor", "channel", "group")
    granularity = variant.granularity or ("group" if variant.bits < 8 or variant.group_size else "channel")
    backends.choose("torchao", "granularity", granularity, granularities, where)
    group_size = (variant.group_size or _GROUP_SIZE) if granularity == "group" else None
    if group_size and variant.bits == 4:
        backends.choose("torchao", "group_size", group_size, _PACKED, where)
    elif group_size and group_size % 8:
        ways_out = "choose a multiple of 8 that divides every row"
        raise UserError(f"torchao: group_size {group_size} is not possible ({ways_out})")

    # Its symmetric 1 bit rounds every weight to zero.
    symmetries = {8: (True,), 4: (False,), 1: (False,)}.get(variant.bits, (True, False))
    symmetric = symmetries[0] if variant.symmetric is None else variant.symmetric
    backends.choose("torchao", "symmetric", symmetric, symmetries, f" with {variant.bits} bits")
    return dataclasses.replace(variant, granularity=granularity, group_size=group_size, symmetric=symmetric)


def quantize(
    model: "backends.Whisper", layers: list[str], variant: Variant, calibrate: "backends.Calibrate"
) -> Variant:
    """Quantize with `torchao.quantize_`, each layer by its name; the layers stay Linear, with a weight of torchao's."""
    backends.import_library("torchao.prototype.safetensors.safetensors_support")
    import torch
    from torchao.quantization import FqnToConfig, quantize_

    chosen = backends.linear_layers(model, layers)
    narrowest = min(layer.in_features for layer in chosen.values())
    backends.divides("torchao", variant, chosen, _PACKED if variant.bits == 4 else range(8, narrowest + 1, 8))
    if variant.bits == 4:
        _packs(chosen)
        for layer in chosen.values():
            layer.weight = torch.nn.Parameter(layer.weight.bfloat16(), requires_grad=False)
    quantize_(model, FqnToConfig(dict.fromkeys(layers, _config(variant))), filter_fn=None)
    for layer in chosen.values():
        if variant.bits == 4:
            _compute_in_bfloat16(layer)
        if variant.format == "float":  # a row of zeros has the scale 0, and 0 / 0 is no number
            weight: Any = layer.weight
            weight.qdata = weight.qdata.float().nan_to_num(0).to(weight.qdata.dtype)
    return variant


def save(model: "backends.Whisper", variant: Variant, folder: Path) -> None:
    """Write the state dict as torchao flattens it."""
    backends.import_library("torchao.prototype.safetensors.safetensors_support")
    from torchao.prototype.quantization.int4 import Int4OpaqueTensor
    from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict

    from pipeline.whisper.model import weights

    tensors = {
        name: _unpack(tensor) if isinstance(tensor, Int4OpaqueTensor) else tensor
        for name, tensor in model.state_dict().items()
    }
    flat, metadata = flatten_tensor_state_dict(tensors)
    weights.save(flat, folder, metadata=metadata)


def load(folder: Path, device: str) -> "backends.Whisper":
    """Put the weights that torchao rebuilds into Linear layers; `device` is the CPU, as in DEVICES."""
    backends.import_library("torchao.prototype.safetensors.safetensors_support")
    from torch import nn
    from torchao.quantization import Int4Tensor

    from pipeline.whisper.model import weights

    model, layers = weights.load_around(
        folder, device, lambda names: [name.removesuffix(_WEIGHT) for name in names if name.endswith(_WEIGHT)]
    )
    rebuilt = _rebuild(folder, layers)
    for name, layer in backends.linear_layers(model, list(layers)).items():
        plain = isinstance(rebuilt[name], Int4Tensor)
        layer.weight = nn.Parameter(_pack(rebuilt[name]) if plain else rebuilt[name], requires_grad=False)
        if "bias" in layers[name]:
            layer.bias = nn.Parameter(layers[name]["bias"], requires_grad=False)
        if plain:
            _compute_in_bfloat16(layer)
    return model


def _config(variant: Variant) -> Any:
    """Return what torchao calls this variant. Inductor's settings, which it would change, are for `torch.compile`."""
    import torch
    from torchao import quantization as ao
    from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig

    group = ao.PerGroup(variant.group_size)
    if variant.bits == 4:
        return PrototypeInt4WeightOnlyConfig(group_size=variant.group_size, set_inductor_config=False)
    if variant.bits < 8:
        mapping = ao.MappingType.SYMMETRIC if variant.symmetric else ao.MappingType.ASYMMETRIC
        granularity = group if variant.group_size else ao.PerAxis(0)
        return ao.IntxWeightOnlyConfig(getattr(torch, f"int{variant.bits}"), granularity, mapping)
    shared = {"tensor": ao.PerTensor(), "channel": ao.PerRow(), "group": group}[variant.granularity or "channel"]
    if variant.activations == "dynamic":
        both = [ao.PerRow(), shared]  # activations, weights
        return ao.Int8DynamicActivationInt8WeightConfig(granularity=both, set_inductor_config=False)
    kind = ao.Float8WeightOnlyConfig if variant.format == "float" else ao.Int8WeightOnlyConfig
    return kind(granularity=shared, set_inductor_config=False)


def _packs(layers: "dict[str, nn.Linear]") -> None:
    """Raise UserError when the packed int4 kernel cannot hold a layer's rows."""
    for name, layer in layers.items():
        if layer.out_features % _ROWS:
            what = f"int4 does not pack the {layer.out_features} rows of {name}, which are no multiple of {_ROWS}"
            raise UserError(f"torchao: {what} (choose other bits, or put it in exclude)")


def dequantize(layer: Any) -> "Tensor":
    """Return what the layer's weight stands for, in float32; where int4 is packed, as its kernel reads it."""
    import torch

    weight = layer.weight
    if not hasattr(weight, "scale_and_zero"):
        return weight.dequantize().float()  # type: ignore[no-any-return]
    one = torch.eye(weight.shape[1], dtype=weight.scale_and_zero.dtype)
    multiply = torch.ops.aten._weight_int4pack_mm_for_cpu
    return multiply(one, weight.qdata, weight.block_size[1], weight.scale_and_zero).T.float()  # type: ignore[no-any-return]


def _compute_in_bfloat16(layer: "nn.Linear") -> None:
    """Make an int4 layer take and return fp32 as the others do, and multiply as its kernel is fast."""
    from torch.nn import functional

    def forward(x: "Tensor") -> "Tensor":
        y = functional.linear(x.bfloat16(), layer.weight).float()
        return y if layer.bias is None else y + layer.bias

    layer.forward = forward  # type: ignore[assignment]  # its parameter is called input


def _unpack(packed: Any) -> Any:
    """Turn a weight that is packed for this processor into torchao's plain int4, whatever the layout.

    The kernel's product of the identity and of integers with scale 1 is these integers, -8 to 7.
    """
    import torch
    from torchao.quantization import Int4Tensor

    scale, zero_point = packed.scale_and_zero.unbind(-1)
    scales = torch.stack((torch.ones_like(scale), torch.zeros_like(scale)), -1)
    one = torch.eye(packed.shape[1], dtype=scale.dtype)
    product = torch.ops.aten._weight_int4pack_mm_for_cpu(one, packed.qdata, packed.block_size[1], scales)
    integers = product.T.to(torch.int8)
    halves = (integers[:, ::2] & 15) | (integers[:, 1::2] << 4)
    return Int4Tensor(halves, scale.contiguous(), zero_point.contiguous(), packed.block_size, packed.shape)


def _pack(plain: Any) -> Any:
    """Undo `_unpack`."""
    import torch
    from torchao.prototype.quantization.int4 import Int4OpaqueTensor

    halves = torch.stack((plain.qdata << 4 >> 4, plain.qdata >> 4), -1)  # int8: shifting right keeps the sign
    integers = halves.flatten(1).to(torch.int32) + 8
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(integers, 1)
    return Int4OpaqueTensor(packed, torch.stack((plain.scale, plain.zero_point), -1), plain.block_size, plain.shape)


def _rebuild(folder: Path, layers: "dict[str, dict[str, Tensor]]") -> "dict[str, Tensor]":
    """Return each layer's weight as torchao makes it of its tensors and the file's metadata."""
    from safetensors import safe_open
    from torchao.prototype.safetensors.safetensors_support import unflatten_tensor_state_dict

    with safe_open(folder / "model.safetensors", "pt") as file:
        metadata = file.metadata() or {}
    described = {f"{layer}.weight": metadata[f"{layer}.weight"] for layer in layers if f"{layer}.weight" in metadata}
    flat = {f"{layer}.{name}": tensor for layer, own in layers.items() for name, tensor in own.items()}
    names = {"tensor_names": json.dumps(list(described))}
    try:
        found, _ = unflatten_tensor_state_dict(flat, described | names)
    except (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        what = f"metadata that torchao cannot rebuild weights by ({type(error).__name__}: {error})"
        raise UserError(f"{folder}: model.safetensors holds {what}; quantize it again") from None
    for layer in layers:
        if f"{layer}.weight" not in found:
            raise UserError(f"{folder}: model.safetensors lacks part of '{layer}.weight'; quantize it again")
    return {layer: found[f"{layer}.weight"] for layer in layers}
