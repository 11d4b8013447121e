"""What each backend supports: print the table of the README, or check the settings before any work."""

import argparse
import itertools

from pipeline import backends
from pipeline.core import params, stage
from pipeline.core.errors import UserError, naming
from pipeline.core.variant import Variant, backend_names

_FORMATS = [*(("int", bits) for bits in (8, 6, 5, 4, 3, 2, 1)), ("float", 8), ("fp", 4), ("nf", 4)]


def check(settings: params.Params) -> None:
    """Raise UserError with the backend's sentence for the first variant, or the candidate, that it cannot do."""
    for name in settings.names:
        variant = settings.variant(name)
        with naming(name):
            backends.check(variant)


def table() -> str:
    """Return a Markdown table: a row for each backend and kind of activations, a column for each weight format.

    A cell lists the granularities that the backend accepts, asked one by one. Layers whose sizes do not suit the
    library, as a head of an odd number of rows, are refused by `quantize`, which knows the model.
    """
    heads = ["backend", "activations", *(f"{kind}{bits}" for kind, bits in _FORMATS)]
    lines = [heads, ["---"] * len(heads)]
    for backend, activations in itertools.product(backend_names(), ("none", "dynamic", "static")):
        cells = [_granularities(backend, activations, kind, bits) for kind, bits in _FORMATS]
        if any(cells):
            lines.append([backend, activations, *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _granularities(backend: str, activations: str, kind: str, bits: int) -> str:
    possible = []
    for granularity in ("tensor", "channel", "group"):
        variant = Variant(backend, bits, kind, activations, granularity)  # type: ignore[arg-type]  # plain strings
        try:
            backends.get(backend).supports(variant)
        except UserError:
            continue
        possible.append(granularity)
    return ", ".join(possible)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m pipeline.backends", description=__doc__)
    parser.add_argument(
        "--check",
        action="store_true",
        help="only check that params.yaml and catalog.yaml are valid, and every variant possible",
    )
    arguments = parser.parse_args()
    with stage.guarded("settings"):
        if arguments.check:
            check(params.read())
        else:
            print(table())
