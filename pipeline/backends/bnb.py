"""bitsandbytes: LLM.int8() and the 4-bit formats NF4 and FP4 with block-wise scales.

Dettmers et al. 2022 (arXiv 2208.07339) and 2023, QLoRA (arXiv 2305.14314). Checkpoints are those of Transformers'
`BitsAndBytesConfig`: `WhisperForConditionalGeneration.from_pretrained(folder)` loads them without us.
"""

import dataclasses
import json
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pipeline import backends
from pipeline.core.errors import UserError
from pipeline.core.variant import Variant

if TYPE_CHECKING:
    from torch import Tensor

DEVICES = ("cpu", "cuda")
LEARNS = None
_BLOCK_SIZES = (64, 128, 256, 512, 1024, 2048, 4096)
_ROWS = 32
"""The number of rows of a 4-bit layer is a multiple of it."""
_OUTLIER_THRESHOLD = 6.0
"""Activations beyond it are multiplied in floating point: LLM.int8()'s own default, and Transformers'."""


def supports(variant: Variant) -> Variant:
    """int8 has a scale per channel and quantizes activations by row; fp4 and nf4 are weight-only, in blocks."""
    granularity: Literal["channel", "group"]
    where = f" with format {variant.format}"
    backends.limit("bnb", variant, format=("int", "fp", "nf"))
    if variant.format == "int":
        backends.limit("bnb", variant, where, bits=(8,))
        backends.limit("bnb", variant, f"{where}: LLM.int8() quantizes them", activations=("dynamic",))
        backends.choose("bnb", "granularity", variant.granularity or "channel", ("channel",), where)
        backends.limit("bnb", variant, where, group_size=(None,), double_quant=(False,))
        granularity, group_size = "channel", None
    else:
        backends.limit("bnb", variant, where, bits=(4,))
        backends.limit("bnb", variant, f"{where}: it is weight-only", activations=("none",))
        backends.choose("bnb", "granularity", variant.granularity or "group", ("group",), where)
        granularity, group_size = "group", variant.group_size or _BLOCK_SIZES[0]
        backends.choose("bnb", "group_size", group_size, _BLOCK_SIZES)
    backends.choose("bnb", "symmetric", variant.symmetric is not False, (True,), ": its formats have no zero points")
    return dataclasses.replace(variant, granularity=granularity, group_size=group_size, symmetric=True)


def quantize(
    model: "backends.Whisper", layers: list[str], variant: Variant, calibrate: "backends.Calibrate"
) -> Variant:
    """Replace the layers with Linear8bitLt or Linear4bit; moving them to a device quantizes them."""
    _import()
    chosen = backends.linear_layers(model, layers)
    if "proj_out" in chosen and model.proj_out.weight is model.model.decoder.embed_tokens.weight:
        raise UserError("bnb: proj_out is tied to the token embedding, which stays in fp32; put it in exclude")
    # The kernels for CPUs with AVX512-BF16 ask for both: elsewhere blocks may run over a row's end, and any rows do.
    backends.divides("bnb", variant, chosen, _BLOCK_SIZES)
    for name, linear in chosen.items():
        if variant.bits == 4 and linear.out_features % _ROWS:
            what = f"{variant.format}4 needs a multiple of {_ROWS} rows, and {name} has {linear.out_features}"
            raise UserError(f"bnb: {what}; put it in exclude, or choose int8")
    for name, linear in chosen.items():
        empty = _layer(linear.in_features, linear.out_features, linear.bias is not None, _config(variant))
        parameter = empty.weight
        settings = {
            key: value for key, value in vars(parameter).items() if key not in ("data", "quant_state", "CB", "SCB")
        }
        if variant.group_size:
            settings["blocksize"] = variant.group_size
        empty.weight = type(parameter)(linear.weight.data, requires_grad=False, **settings)
        empty.bias = linear.bias
        model.set_submodule(name, empty.to(linear.weight.device).eval())
    return variant


def save(model: "backends.Whisper", variant: Variant, folder: Path) -> None:
    """Write the state dict, and the quantization config that Transformers looks for in config.json."""
    import torch

    from pipeline.whisper.model import weights

    weights.save(model.state_dict(), folder)
    config = json.loads((folder / "config.json").read_text())
    skipped = [name for name, module in model.named_modules() if type(module) is torch.nn.Linear]
    config["quantization_config"] = {**_config(variant), "llm_int8_skip_modules": skipped}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def load(folder: Path, device: str) -> "backends.Whisper":
    """Rebuild each layer from its quantized weights and their statistics."""
    _import()
    import torch
    from bitsandbytes.nn.modules import Int8Params, Params4bit

    from pipeline.whisper.model import weights

    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    model, layers = weights.load_around(folder, device, _quantized)
    for name, own in layers.items():
        old = model.get_submodule(name)
        assert isinstance(old, torch.nn.Linear)
        layer = _layer(old.in_features, old.out_features, old.bias is not None, config, device="meta")
        weight = own["weight"]
        if config["load_in_8bit"]:
            layer.weight = Int8Params(weight, requires_grad=False, CB=weight, SCB=own["SCB"])
        else:
            statistics = weights.split(own, "weight")
            layer.weight = Params4bit.from_prequantized(weight, statistics, device=device, module=layer)
        layer.bias = torch.nn.Parameter(own["bias"], requires_grad=False) if "bias" in own else None
        model.set_submodule(name, layer.eval())
    return model


def dequantize(layer: Any) -> "Tensor":
    """Return what a 4-bit layer's weight stands for, in float32."""
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(layer.weight.data, layer.weight.quant_state).float()


def _import() -> None:
    """Import it without adverts, and a warning at every multiplication (inputs are cast to float16: LLM.int8())."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    backends.import_library("bitsandbytes")


def _config(variant: Variant) -> dict[str, Any]:
    """Return the settings as Transformers' BitsAndBytesConfig names them."""
    return {
        "quant_method": "bitsandbytes",
        "load_in_8bit": variant.format == "int",
        "load_in_4bit": variant.format != "int",
        "llm_int8_threshold": _OUTLIER_THRESHOLD,
        "bnb_4bit_quant_type": f"{variant.format}4" if variant.format != "int" else "fp4",
        "bnb_4bit_use_double_quant": variant.double_quant,
        "bnb_4bit_compute_dtype": "float32",
        "bnb_4bit_quant_storage": "uint8",
    }


def _layer(inputs: int, outputs: int, bias: bool, config: dict[str, Any], device: str | None = None) -> Any:
    import torch
    from bitsandbytes.nn.modules import Linear4bit, Linear8bitLt

    if config["load_in_8bit"]:
        return Linear8bitLt(
            inputs, outputs, bias, has_fp16_weights=False, threshold=config["llm_int8_threshold"], device=device
        )
    return Linear4bit(
        inputs,
        outputs,
        bias,
        compute_dtype=torch.float32,
        compress_statistics=config["bnb_4bit_use_double_quant"],
        quant_type=config["bnb_4bit_quant_type"],
        device=device,
    )


def _quantized(tensors: Iterable[str]) -> list[str]:
    """Name the layers whose statistics stand among the tensors."""
    marks = (".SCB", ".weight.absmax")
    return sorted(key.removesuffix(mark) for key in tensors for mark in marks if key.endswith(mark))
