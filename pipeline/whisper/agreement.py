"""How far a model's next tokens are from fp32's, along what fp32 itself wrote: one pass a window, without decoding.

Word errors are few, and most of what quantization does changes no word; the distributions tell it from every token.
What fp32 wrote is kept with the decoder's states that its probabilities follow from, by its head: the logits of a
vocabulary of 51,865 would take a hundred times as much room. Parquet, rather than safetensors, is written and read
window by window, so that an hour of speech is not held in memory.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from pipeline.core.errors import UserError
from pipeline.speech import corpus
from pipeline.whisper.inference.decoding import Vocabulary
from pipeline.whisper.model import weights
from pipeline.whisper.model.network import Whisper

REFERENCE = Path("data/reference")

_PLACES = 64
"""Places whose logits are held at once: in float64 27 MB, where all that a window may have would be 190."""


@dataclass(frozen=True)
class Window:
    """What fp32 wrote in one window of an utterance."""

    id: str
    """The utterance's."""
    tokens: list[int]
    """The prompt, fp32's greedy tokens and, unless it reached the limit, the end."""
    states: Tensor
    """Those of fp32's decoder that predict the tokens after the prompt: (places, width)."""


def file(shard: str) -> Path:
    """Return where a shard of the corpus, by its name, has its reference."""
    return REFERENCE / f"{shard}.parquet"


def write(path: Path, vocabulary: Vocabulary, windows: Iterable[Window]) -> int:
    """Write windows, and the tokens that may not come or not come first; return the number of places."""
    import pyarrow
    import pyarrow.parquet

    barred = {"suppressed": vocabulary.suppressed, "suppressed_first": vocabulary.suppressed_first}
    columns = [("id", pyarrow.string()), ("tokens", pyarrow.list_(pyarrow.int32())), ("states", pyarrow.binary())]
    schema = pyarrow.schema(columns, {name: json.dumps(tokens) for name, tokens in barred.items()})
    places = 0
    with pyarrow.parquet.ParquetWriter(path, schema, compression="none") as writer:
        for window in windows:
            row = {"id": window.id, "tokens": window.tokens, "states": window.states.cpu().numpy().tobytes()}
            writer.write_table(pyarrow.Table.from_pylist([row], schema))
            places += len(window.states)
    return places


def check(path: Path, shard: Path) -> None:
    """Raise UserError where the reference at `path` is missing, damaged, or of other utterances than the shard has."""
    import pyarrow

    run = "run 'python -m pipeline.reference'"
    try:
        heard = dict.fromkeys(row["id"] for row in corpus.rows(path, ["id"]))  # of several windows, once
    except FileNotFoundError:
        raise UserError(f"{path} is not here; {run} first") from None
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise UserError(f"{path} cannot be read ({error}); {run} again") from None
    if [*heard] != [row["id"] for row in corpus.rows(shard, ["id"])]:
        raise UserError(f"{path} is of other speech than {shard}; {run} again")


def read(path: Path, width: int, device: str) -> Iterator[Window]:
    """Yield the windows, in the order of the corpus."""
    for row in corpus.rows(path, ["id", "tokens", "states"]):
        states = torch.from_numpy(np.frombuffer(row["states"], dtype=np.float32).reshape(-1, width).copy())
        yield Window(row["id"], row["tokens"], states.to(device))


def barred(path: Path, vocabulary: int, device: str) -> Tensor:
    """Return which of so many tokens may not come: (2, vocabulary), in the first place and in later ones."""
    import pyarrow.parquet

    metadata = pyarrow.parquet.read_schema(path).metadata
    always, first = (json.loads(metadata[name]) for name in (b"suppressed", b"suppressed_first"))
    mask = torch.zeros(2, vocabulary, dtype=torch.bool, device=device)
    mask[:, always] = mask[0, first] = True
    return mask


def head(folder: Path, device: str) -> Tensor:
    """Read the output head (vocabulary, width) of an unquantized checkpoint, and nothing else of it."""
    from safetensors import safe_open

    with safe_open(folder / "model.safetensors", "pt", device=device) as file:
        return file.get_tensor(weights.HEAD if weights.HEAD in file.keys() else weights.EMBEDDING)  # type: ignore[no-any-return]  # noqa: SIM118


@torch.no_grad()  # not inference_mode: quanto's 4-bit tensors need version counters
def states(model: Whisper, features: Tensor, tokens: list[int], places: int) -> Tensor:
    """Return the decoder's states (places, width) that predict the last `places` of the tokens."""
    read = torch.tensor([tokens[:-1]], device=model.device)
    found: Tensor = model.model.decoder(read, model.caches(features, read.shape[1]))
    return found[0, -places:].clone()  # as fp32's are read: equal states at like addresses give equal logits


@torch.no_grad()
def compare(model: Whisper, features: Tensor, window: Window, fp32_head: Tensor, barred: Tensor) -> Tensor:
    """Return `differences` of the model to fp32 in a window, (places, 3) on the CPU.

    Raises UserError where the model's logits are not numbers.
    """
    places = len(window.states)
    found = states(model, features, window.tokens, places)
    said = torch.tensor(window.tokens[-places:], device=model.device)
    parts = []
    for start in range(0, places, _PLACES):
        part = slice(start, start + _PLACES)
        logits: Tensor = model.proj_out(found[part])
        if not logits.isfinite().all():
            why = "a token's logit is not a finite number, so no distribution follows: the weights are broken"
            raise UserError(f"utterance {window.id!r}: {why}")
        later = torch.arange(start, start + len(logits), device=model.device).clamp(max=1)
        fp32 = functional.linear(window.states[part], fp32_head)
        parts.append(differences(fp32, logits, said[part], barred[later]))
    return torch.cat(parts).cpu()


def differences(fp32: Tensor, other: Tensor, said: Tensor, barred: Tensor) -> Tensor:
    """Return, at each place: KL(fp32 || other) in nats, 1 where the likeliest token is another, and a log-likelihood.

    The latter is the other's of the token that fp32 `said`, less fp32's own. Logits are (places, vocabulary); tokens
    that are `barred`, of the same shape, take no part.
    """
    ours, theirs = (logits.double().masked_fill(barred, float("-inf")).log_softmax(dim=1) for logits in (fp32, other))
    change = (theirs - ours).masked_fill(barred, 0.0)
    kl = -(ours.exp() * change).sum(dim=1)
    flips = ours.argmax(dim=1) != theirs.argmax(dim=1)
    return torch.stack([kl, flips.double(), change.gather(1, said[:, None]).flatten()], dim=1)
