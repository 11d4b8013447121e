"""What to quantize and how: the keys of a variant, and what they say of each layer."""

import fnmatch
from dataclasses import field
from pathlib import Path
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, StrictBool, StrictInt, StrictStr
from pydantic.dataclasses import dataclass

from pipeline.core.errors import suggestion

CONFIG = ConfigDict(extra="forbid", defer_build=True)
Positive = Annotated[StrictInt, Field(ge=1)]
Patterns = list[StrictStr]


@dataclass(frozen=True, config=CONFIG)
class Variant:
    """What to quantize and how. None means: as the library does by default for these bits."""

    backend: StrictStr
    bits: Positive = 8
    format: Literal["int", "float", "nf", "fp"] = "int"
    activations: Literal["none", "dynamic", "static"] = "none"
    granularity: Literal["tensor", "channel", "group"] | None = None
    group_size: Positive | None = None
    symmetric: StrictBool | None = None
    double_quant: StrictBool = False
    """Quantize the scales too (bitsandbytes' 4-bit formats)."""
    include: Patterns = field(default_factory=lambda: ["*"])
    """Glob patterns of the Linear layers to quantize, such as `model.decoder.*`."""
    exclude: Patterns = field(default_factory=lambda: ["proj_out"])
    """Glob patterns of those to leave alone; `proj_out` is tied to the token embedding."""
    encoder: Positive | None = None
    """Bits of the encoder's Linear layers; None: `bits`."""
    decoder: Positive | None = None
    """Bits of the decoder's."""
    layers: Patterns = field(default_factory=list)
    """`pattern=bits` of single Linear layers, such as `*.v_proj=8`; the last that matches counts."""
    embedding: Literal[8, 6, 5, 4] | None = None
    """Bits of the token embedding and of the head that is tied to it; None: not quantized."""
    conv: Literal[8] | None = None
    """Bits of the convolutions; None: not quantized."""
    rest: Literal["float16", "float32"] = "float16"
    """How what is not quantized is stored: OpenAI's weights are float16, which loses nothing of them."""
    budget: Annotated[float, Field(strict=True, gt=0, le=100)] | None = None
    """Size of the checkpoint's weights, in per cent of fp32's (backend `mixed`)."""
    budget_mb: Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)] | None = None
    """The same in MB (10^6 bytes)."""

    def __post_init__(self) -> None:
        if self.backend not in backend_names():
            raise ValueError(f"unknown backend {self.backend!r}{suggestion(self.backend, backend_names())}")
        if self.group_size is not None and self.granularity in ("tensor", "channel"):
            raise ValueError(f"group_size {self.group_size} goes with granularity 'group', not {self.granularity!r}")
        for rule in self.layers:
            pattern, _, bits = rule.rpartition("=")
            if not pattern or not bits.isdecimal() or not 1 <= int(bits) <= 32:
                raise ValueError(f"layers: {rule!r} is no pattern and bits; write it as '*.v_proj=8'")

    def bits_of(self, layer: str) -> int:
        """Return the bits of a Linear layer: by `layers`, else by its part of the model, else `bits`."""
        for rule in reversed(self.layers):
            pattern, _, bits = rule.rpartition("=")
            if fnmatch.fnmatchcase(layer, pattern):
                return int(bits)
        part = {"model.encoder": self.encoder, "model.decoder": self.decoder}.get(layer[: len("model.encoder")])
        return part or self.bits


def backend_names() -> list[str]:
    """Name the backends: one module each in pipeline/backends/."""
    return sorted(file.stem for file in (Path(__file__).parents[1] / "backends").glob("[!_]*.py"))
