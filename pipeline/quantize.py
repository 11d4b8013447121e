"""Quantize the baseline as one variant says, and save the checkpoint."""

import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.core import stage
from pipeline.core.errors import UserError, naming, suggestion

if TYPE_CHECKING:
    import torch

    from pipeline.whisper.network import Whisper


def main(variant: str) -> None:
    """Write models/<variant>/."""
    from pipeline import backends
    from pipeline.core import params

    settings = params.read().variant(variant)
    backend = backends.get(settings.backend)
    with naming(variant):
        settings = backend.supports(settings)

    import torch
    from tqdm import tqdm

    from pipeline.whisper import BASELINE, calibration, checkpoint, weights

    model = weights.load(BASELINE)
    heard = calibration.ids() if settings.activations == "static" else []

    def calibrate(watched: "Whisper") -> None:
        with torch.no_grad():
            for pair in tqdm(calibration.read(), total=len(heard), unit="utt", desc="calibration", disable=None):
                watched(*pair)

    folder = Path("models") / variant
    with naming(variant):
        chosen = select(model, settings.include, settings.exclude) if settings.backend != "none" else []
        layers = {layer: model.get_submodule(layer).weight.numel() for layer in chosen}  # type: ignore[operator]
        made = backend.quantize(model, chosen, settings, calibrate)
        unchanged = [layer for layer in layers if type(model.get_submodule(layer)) is torch.nn.Linear]
        if unchanged:
            raise UserError(
                f"{settings.backend} left {len(unchanged)} of {len(layers)} layers as they were, "
                f"the first is {unchanged[0]}; put them in exclude"
            )
        manifest = checkpoint.save(
            lambda partial: backend.save(model, made, partial), made, layers, heard, BASELINE, folder
        )
    size = manifest["bytes"]["total"] / 1e6
    print(f"{folder}: {len(layers)} layers quantized by {settings.backend}, {size:.1f} MB")


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
