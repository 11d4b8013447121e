"""What drives a model while its activations are calibrated: sound as features, and the baseline's own tokens for it.

That needs no reference text, and a model that is half calibrated does not get to babble.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pipeline.core import files
from pipeline.core.errors import UserError

HEARD = Path("data/calibration.safetensors")
_KINDS = ("features", "tokens")

Heard = tuple[Tensor, Tensor]
"""Features (1, mels, frames), and prompt and tokens (1, positions)."""


def write(ids: Sequence[str], heard: Sequence[Heard], path: Path = HEARD) -> None:
    """Write what was heard of each utterance, and their ids."""
    tensors = {f"{n}.{kind}": tensor for n, pair in enumerate(heard) for kind, tensor in zip(_KINDS, pair, strict=True)}
    with files.aside(path) as partial:
        save_file(tensors, partial, {"ids": json.dumps(list(ids))})


def ids(path: Path = HEARD) -> list[str]:
    """Return the ids of the utterances; raise UserError where there is no such file."""
    try:
        with safe_open(path, "pt") as file:
            return list(json.loads(file.metadata()["ids"]))
    except FileNotFoundError:
        raise UserError(f"{path} is not here; run 'python -m pipeline.calibrate' first") from None
    except (SafetensorError, LookupError, TypeError, ValueError):  # another file of that name, too
        raise UserError(f"{path} is cut short or damaged; run 'python -m pipeline.calibrate' again") from None


def read(path: Path = HEARD) -> Iterator[Heard]:
    """Yield what was heard of one utterance after the other."""
    with safe_open(path, "pt") as file:
        for number in range(len(file.keys()) // len(_KINDS)):
            features, tokens = (file.get_tensor(f"{number}.{kind}") for kind in _KINDS)
            yield features, tokens
