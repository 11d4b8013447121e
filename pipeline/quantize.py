"""Quantize the baseline as one variant says, and save the checkpoint."""

import dataclasses
import fnmatch
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.core import stage
from pipeline.core.errors import UserError, naming, suggestion

if TYPE_CHECKING:
    import torch

    from pipeline import backends
    from pipeline.core.variant import Variant
    from pipeline.whisper.model.network import Whisper


def main(variant: str) -> None:
    """Write models/<variant>/."""
    from pipeline import backends
    from pipeline.core import params

    settings = params.read().variant(variant)
    with naming(variant):
        backends.check(settings)

    from tqdm import tqdm

    from pipeline.whisper import BASELINE
    from pipeline.whisper.model import weights
    from pipeline.whisper.quantization import calibration

    model = weights.load(BASELINE)
    learns = settings.activations == "static" or backends.get(settings.backend).LEARNS == "sensitivity"
    heard = calibration.ids() if learns else []

    def calibrate(watched: "Whisper") -> None:
        import torch

        with torch.no_grad():
            for pair in tqdm(calibration.read(), total=len(heard), unit="utt", desc="calibration", disable=None):
                watched(*pair)

    folder = Path("models") / variant
    with naming(variant):
        made, layers = quantize(model, settings, calibrate)
        manifest = save(model, made, layers, heard, BASELINE, folder)
    size = manifest["bytes"]["total"] / 1e6
    print(f"{folder}: {len(layers)} layers quantized by {settings.backend}, {size:.1f} MB")


def quantize(
    model: "Whisper", settings: "Variant", calibrate: "backends.Calibrate"
) -> "tuple[Variant, dict[str, int]]":
    """Quantize a model in place, as settings say that `backends.check` has let through.

    Returns the variant as the library made the layers of `bits` bits, with the smallest group of all, and the quantized
    layers with their numbers of weights. Raises UserError where a layer does not fit, or was left as it is.
    """
    from pipeline import backends
    from pipeline.whisper.model import packing

    backend = backends.get(settings.backend)
    made = backend.supports(settings)
    if runtime := backends.runtime(backend):
        made = backend.quantize(model, [], made, calibrate)
        return made, runtime.measure(model, made)[0]
    chosen = select(model, settings.include, settings.exclude) if settings.backend != "none" else []
    tied = model.tied
    if settings.embedding and tied and "proj_out" in chosen:
        raise UserError("embedding: proj_out is tied to the token embedding and quantized with it; put it in exclude")
    for rule in settings.layers:
        if not fnmatch.filter(chosen, rule.rpartition("=")[0]):
            raise UserError(f"layers: {rule!r} matches no layer that is quantized{suggestion(rule, chosen[:1])}")
    layers = {layer: model.get_submodule(layer).weight.numel() for layer in chosen}  # type: ignore[operator]
    groups: list[int] = []
    # `bits` itself comes last: the variant is told as those layers were made.
    for bits in sorted({*map(settings.bits_of, chosen)}, key=lambda bits: (bits == settings.bits, bits)):
        alike = [layer for layer in chosen if settings.bits_of(layer) == bits]
        filled = backend.supports(dataclasses.replace(settings, bits=bits))  # a library's defaults follow the bits
        made = backend.quantize(model, alike, filled, calibrate)
        groups += filter(None, [made.group_size])
    if tied and "proj_out" not in chosen:
        model.tie()  # where the backend has rounded the embedding
    packed = packing.attached(model)
    unchanged = [name for name in chosen if name not in packed and _is_plain(model.get_submodule(name))]
    if unchanged:
        raise UserError(
            f"{settings.backend} left {len(unchanged)} of {len(layers)} layers as they were, "
            f"the first is {unchanged[0]}; put them in exclude"
        )
    _rest(model, settings, chosen)
    layers |= {name: each.codes.numel() for name, each in packing.attached(model).items()}
    smallest = min(groups) if made.group_size else None
    return dataclasses.replace(made, bits=settings.bits, group_size=smallest), layers


def save(
    model: "Whisper", made: "Variant", layers: dict[str, int], heard: list[str], baseline: Path, folder: Path
) -> dict[str, Any]:
    """Write a checkpoint of what `quantize` has made, whole or not at all; return its manifest."""
    from pipeline import backends
    from pipeline.whisper.model import packing
    from pipeline.whisper.quantization import checkpoint

    backend = backends.get(made.backend)
    runtime = backends.runtime(backend)

    def write(partial: Path) -> dict[str, Any]:
        backend.save(model, made, partial)
        if runtime:
            return checkpoint.described(
                layers, runtime.measure(model, made)[1], (partial / runtime.FILE).stat().st_size
            )
        packing.shrink(partial, packing.attached(model), made.rest)
        return checkpoint.measure(partial / "model.safetensors", layers, made.bits)

    return checkpoint.save(write, made, heard, baseline, folder)


def _rest(model: "Whisper", settings: "Variant", chosen: Sequence[str]) -> None:
    """Round what no library takes: the token embedding, with the head that is tied to it, and the convolutions."""
    import torch

    from pipeline.whisper.model import packing
    from pipeline.whisper.quantization import rounding

    decoder, encoder = model.model.decoder, model.model.encoder
    wanted = [
        (encoder.conv1, settings.conv),
        (encoder.conv2, settings.conv),
        (decoder.embed_tokens, settings.embedding),
    ]
    tied = model.tied
    if not tied and "proj_out" not in chosen:
        wanted.append((model.proj_out, settings.embedding))
    for module, bits in wanted:
        if bits and not hasattr(module, "packed"):
            assert isinstance(module.weight, torch.Tensor)
            packing.attach(module, rounding.nearest(module.weight, bits))
    if tied:
        model.tie()


def _is_plain(module: "torch.nn.Module") -> bool:
    import torch

    # torchao leaves the module and changes its weight.
    return type(module) is torch.nn.Linear and type(module.weight) is torch.nn.Parameter


def select(model: "torch.nn.Module", include: list[str], exclude: list[str]) -> list[str]:
    """Name the Linear layers that match a pattern of `include` and none of `exclude`, in the model's order.

    Raises UserError when a pattern matches no layer: a misspelt one would leave layers out silently.
    """
    from torch import nn

    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    for key, patterns in (("include", include), ("exclude", exclude)):
        for pattern in patterns:
            if not fnmatch.filter(linear, pattern):
                known = suggestion(pattern, linear[:1] + linear[-1:])
                raise UserError(f"{key}: no Linear layer matches {pattern!r}{known}")
    chosen = [
        name
        for name in linear
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in include)
        and not any(fnmatch.fnmatchcase(name, pattern) for pattern in exclude)
    ]
    if not chosen:
        raise UserError(f"include {include} and exclude {exclude} leave no layer to quantize")
    return chosen


if __name__ == "__main__":
    stage.run(main)
