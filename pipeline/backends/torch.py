"""PyTorch's own int8 (torch.ao.quantization, eager mode): dynamic and static, on the CPU.

Its modules keep packed parameters that only pickle can save, so a checkpoint holds plain tensors instead, for each
layer: `weight` (int8), `weight_scale`, `weight_zero_point`, `bias`, and for static variants `input_scale`,
`input_zero_point`, `output_scale`, `output_zero_point`. Loading rebuilds the same modules from them.
"""

import dataclasses
import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import backends
from pipeline.params import Variant

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pipeline.backends import Calibrate
    from pipeline.whisper import Whisper

DEVICES = ("cpu",)
_LAYERS = "torch_layers.json"


def supports(variant: Variant) -> Variant:
    """int8 weights per tensor or per channel; activations as they come, or calibrated."""
    backends.choose("torch", "bits", variant.bits, (8,))
    backends.choose("torch", "format", variant.format, ("int",))
    backends.choose("torch", "activations", variant.activations, ("dynamic", "static"), ": its kernels need them")
    granularity = variant.granularity or "channel"
    backends.choose("torch", "granularity", granularity, ("tensor", "channel"))
    backends.choose("torch", "double_quant", variant.double_quant, (False,))
    symmetric = variant.symmetric is not False
    if granularity == "channel":
        backends.choose("torch", "symmetric", symmetric, (True,), " per channel")
    return dataclasses.replace(variant, granularity=granularity, symmetric=symmetric)


def quantize(model: "Whisper", layers: list[str], variant: Variant, calibrate: "Calibrate") -> None:
    """Quantize with `quantize_dynamic`, or with `prepare`, calibration and `convert`.

    Static variants wrap each Linear layer alone: its input and output are quantized, residual sums and LayerNorm, whose
    outliers int8 cannot hold, stay in floating point.
    """
    import torch
    from torch.ao import quantization

    weight = _weight_observer(variant)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.ao is deprecated in favour of torchao, and works
        if variant.activations == "dynamic":
            qconfig = quantization.QConfig(activation=quantization.default_dynamic_quant_observer, weight=weight)
            quantization.quantize_dynamic(model, dict.fromkeys(layers, qconfig), inplace=True)
            return
        activation = quantization.get_default_qconfig(torch.backends.quantized.engine).activation
        for name in layers:
            wrapper = quantization.QuantWrapper(model.get_submodule(name))
            wrapper.qconfig = quantization.QConfig(activation=activation, weight=weight)
            model.set_submodule(name, wrapper)
        quantization.prepare(model, inplace=True)
        calibrate(model)
        quantization.convert(model, inplace=True)


def save(model: "Whisper", variant: Variant, folder: Path) -> None:
    """Write all tensors, and the names of the quantized layers beside them."""
    from safetensors.torch import save_file
    from torch import Tensor
    from torch.ao.nn.quantized import Linear

    layers = {
        name.removesuffix(".module"): module for name, module in model.named_modules() if isinstance(module, Linear)
    }
    tensors: dict[str, Tensor] = {
        name: tensor
        for name, tensor in model.state_dict().items()
        if not any(name.startswith(f"{layer}.") for layer in layers)
    }
    if "proj_out" not in layers:
        del tensors["proj_out.weight"]  # tied, as in Transformers' checkpoints
    for name, module in layers.items():
        wrapper = model.get_submodule(name)
        tensors |= {f"{name}.{key}": tensor.contiguous() for key, tensor in _pack(module, wrapper).items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / _LAYERS).write_text(json.dumps(list(layers), indent=2))


def load(folder: Path, device: str) -> "Whisper":
    """Rebuild each layer from its tensors; `device` is the CPU, the only one with these kernels."""
    from safetensors.torch import load_file

    from pipeline import whisper

    model = whisper.skeleton(folder)
    tensors = load_file(folder / "model.safetensors", device=device)
    layers = {name: whisper.split(tensors, name) for name in json.loads((folder / _LAYERS).read_text())}
    whisper.assign(model, tensors, folder, replaced=list(layers))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as in `quantize`
        for name, own in layers.items():
            model.set_submodule(name, _unpack(own))
    return model


def _weight_observer(variant: Variant) -> Any:
    import torch
    from torch.ao.quantization import observer

    if variant.granularity == "channel":
        return observer.default_per_channel_weight_observer
    scheme = torch.per_tensor_symmetric if variant.symmetric else torch.per_tensor_affine
    return observer.MinMaxObserver.with_args(dtype=torch.qint8, qscheme=scheme)


def _pack(module: Any, wrapper: Any) -> "dict[str, Tensor]":
    """Turn a quantized Linear module, and the wrapper around a static one, into plain tensors."""
    import torch

    weight, bias = module._packed_params._weight_bias()
    per_channel = weight.qscheme() in (torch.per_channel_affine, torch.per_channel_affine_float_qparams)
    tensors = {
        "weight": weight.int_repr(),
        "weight_scale": weight.q_per_channel_scales() if per_channel else torch.tensor(weight.q_scale()),
        "weight_zero_point": weight.q_per_channel_zero_points() if per_channel else torch.tensor(weight.q_zero_point()),
    }
    if bias is not None:
        tensors["bias"] = bias
    if wrapper is not module:
        tensors |= {
            "input_scale": wrapper.quant.scale,
            "input_zero_point": wrapper.quant.zero_point,
            "output_scale": torch.tensor(module.scale),
            "output_zero_point": torch.tensor(module.zero_point),
        }
    return tensors


def _unpack(tensors: "dict[str, Tensor]") -> "nn.Module":
    """Undo `_pack`."""
    import torch
    from torch.ao.nn import quantized
    from torch.ao.quantization import QuantWrapper

    weight, scale, zero_point = tensors["weight"], tensors["weight_scale"], tensors["weight_zero_point"]
    if scale.dim():
        packed = torch._make_per_channel_quantized_tensor(weight, scale, zero_point, 0)
    else:
        packed = torch._make_per_tensor_quantized_tensor(weight, scale.item(), int(zero_point))
    static = "input_scale" in tensors
    module = (quantized if static else quantized.dynamic).Linear(weight.shape[1], weight.shape[0])
    module.set_weight_bias(packed, tensors.get("bias"))
    if not static:
        return module
    module.scale, module.zero_point = tensors["output_scale"].item(), int(tensors["output_zero_point"])
    wrapper = QuantWrapper(module)
    wrapper.quant = quantized.Quantize(tensors["input_scale"], tensors["input_zero_point"], torch.quint8)
    wrapper.dequant = quantized.DeQuantize()
    return wrapper
