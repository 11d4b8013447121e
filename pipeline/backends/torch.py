"""PyTorch's own int8 (torch.ao.quantization, eager mode): dynamic and static, on the CPU.

Its modules keep packed parameters that only pickle can save, so a checkpoint holds plain tensors instead, for each
layer: `weight` (int8), `weight_scale`, `weight_zero_point`, `bias`, and for static variants `input_scale` and
`input_zero_point`. Loading rebuilds the same modules from them.
"""

import dataclasses
import functools
import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import backends
from pipeline.core.variant import Variant

if TYPE_CHECKING:
    from torch import Tensor, nn

DEVICES = ("cpu",)
LEARNS = "calibration"
_LAYERS = "torch_layers.json"


def supports(variant: Variant) -> Variant:
    """int8 weights per tensor or per channel; activations as they come, or calibrated."""
    backends.limit("torch", variant, bits=(8,), format=("int",))
    backends.choose("torch", "activations", variant.activations, ("dynamic", "static"), ": its kernels need them")
    granularity = variant.granularity or "channel"
    backends.choose("torch", "granularity", granularity, ("tensor", "channel"))
    backends.limit("torch", variant, group_size=(None,), double_quant=(False,))
    symmetric = variant.symmetric is not False
    if granularity == "channel":
        backends.choose("torch", "symmetric", symmetric, (True,), " per channel")
    return dataclasses.replace(variant, granularity=granularity, symmetric=symmetric)


def quantize(
    model: "backends.Whisper", layers: list[str], variant: Variant, calibrate: "backends.Calibrate"
) -> Variant:
    """Quantize the weights with `quantize_dynamic`; for static variants, the inputs with what an observer has seen.

    Outputs stay in floating point: int8 cannot hold the outliers of Whisper's residual sums (one layer of tiny.en spans
    -625 to 136, and quantizing it alone ruins the transcripts).
    """
    from torch.ao import quantization

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.ao is deprecated in favour of torchao, and works
        inputs = _observe(model, layers, calibrate) if variant.activations == "static" else {}
        qconfig = quantization.QConfig(quantization.default_dynamic_quant_observer, _weight_observer(variant))
        quantization.quantize_dynamic(model, dict.fromkeys(layers, qconfig), inplace=True)
        for name, (scale, zero_point) in inputs.items():
            model.set_submodule(name, _static(model.get_submodule(name), scale, zero_point))
    return variant


def save(model: "backends.Whisper", variant: Variant, folder: Path) -> None:
    """Write all tensors, and the names of the quantized layers beside them."""
    from torch.ao.nn.quantized.dynamic import Linear

    from pipeline.whisper.model import weights

    layers = {name: module for name, module in model.named_modules() if isinstance(module, Linear)}
    tensors: dict[str, Any] = {
        name: tensor
        for name, tensor in model.state_dict().items()
        if not any(name.startswith(f"{layer}.") for layer in layers)
    }
    for name, module in layers.items():
        tensors |= {f"{name}.{key}": tensor for key, tensor in _pack(module).items()}
    weights.save(tensors, folder)
    (folder / _LAYERS).write_text(json.dumps(list(layers), indent=2))


def load(folder: Path, device: str) -> "backends.Whisper":
    """Rebuild each layer from its tensors; `device` is the CPU, the only one with these kernels."""

    from pipeline.whisper.model import weights

    model, layers = weights.load_around(folder, device, lambda _: json.loads((folder / _LAYERS).read_text()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as in `quantize`
        for name, own in layers.items():
            model.set_submodule(name, _unpack(own))
    return model


def _observe(
    model: "backends.Whisper", layers: list[str], calibrate: "backends.Calibrate"
) -> dict[str, tuple[float, int]]:
    """Return each layer's input scale and zero point, from the observer that PyTorch chooses for this processor."""
    import torch
    from torch.ao import quantization

    new_observer = quantization.get_default_qconfig(torch.backends.quantized.engine).activation
    observers = {name: new_observer() for name in layers}

    def watch(observer: "nn.Module", module: "nn.Module", inputs: "tuple[Tensor, ...]") -> None:
        observer(inputs[0])

    hooks = [
        model.get_submodule(name).register_forward_pre_hook(functools.partial(watch, observer))
        for name, observer in observers.items()
    ]
    calibrate(model)
    for hook in hooks:
        hook.remove()
    seen = {name: observer.calculate_qparams() for name, observer in observers.items()}
    return {name: (scale.item(), int(zero_point)) for name, (scale, zero_point) in seen.items()}


def _weight_observer(variant: Variant) -> Any:
    import torch
    from torch.ao.quantization import observer

    if variant.granularity == "channel":
        return observer.default_per_channel_weight_observer
    scheme = torch.per_tensor_symmetric if variant.symmetric else torch.per_tensor_affine
    return observer.MinMaxObserver.with_args(dtype=torch.qint8, qscheme=scheme)


def _static(module: Any, scale: float, zero_point: int) -> Any:
    """Make a dynamically quantized Linear module use a fixed input scale and zero point instead of each input's own."""
    import torch

    module.input_scale, module.input_zero_point = scale, zero_point
    kernel = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32
    module.forward = lambda x: kernel(x, scale, zero_point, module._packed_params._packed_params)
    return module


def _pack(module: Any) -> "dict[str, Tensor]":
    """Turn a quantized Linear module into plain tensors."""
    import torch

    weight, bias = module._packed_params._weight_bias()
    per_channel = weight.qscheme() == torch.per_channel_affine
    tensors = {
        "weight": weight.int_repr(),
        "weight_scale": weight.q_per_channel_scales() if per_channel else torch.tensor(weight.q_scale()),
        "weight_zero_point": weight.q_per_channel_zero_points() if per_channel else torch.tensor(weight.q_zero_point()),
    }
    if bias is not None:
        tensors["bias"] = bias
    if hasattr(module, "input_scale"):
        tensors["input_scale"] = torch.tensor(module.input_scale, dtype=torch.float64)
        tensors["input_zero_point"] = torch.tensor(module.input_zero_point)
    return tensors


def _unpack(tensors: "dict[str, Tensor]") -> Any:
    """Undo `_pack`."""
    import torch
    from torch.ao.nn.quantized.dynamic import Linear

    weight, scale, zero_point = tensors["weight"], tensors["weight_scale"], tensors["weight_zero_point"]
    if scale.dim():
        packed = torch._make_per_channel_quantized_tensor(weight, scale, zero_point, 0)
    else:
        packed = torch._make_per_tensor_quantized_tensor(weight, scale.item(), int(zero_point))
    module = Linear(weight.shape[1], weight.shape[0])
    module.set_weight_bias(packed, tensors.get("bias"))
    if "input_scale" in tensors:
        return _static(module, tensors["input_scale"].item(), int(tensors["input_zero_point"]))
    return module
