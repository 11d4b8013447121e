"""How far a model's next tokens are from fp32's, along what fp32 itself wrote, and from there what it writes itself.

Word errors are few, and most of what quantization does changes no word; the distributions tell it from every token. And
one pass over fp32's tokens tells the model's own text, too, but for what comes after a token that flips.

What fp32 wrote is kept with the decoder's states that its probabilities follow from, by its head: the logits of a
vocabulary of 51,865 would take a hundred times as much room. Parquet, rather than safetensors, is written and read
window by window, so that an hour of speech is not held in memory.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.core import files
from pipeline.core.errors import UserError
from pipeline.speech import corpus
from pipeline.speech.corpus import Utterance
from pipeline.whisper.inference import decoding
from pipeline.whisper.inference.decoding import Engine, Heard, Vocabulary
from pipeline.whisper.inference.mel import Samples
from pipeline.whisper.model import network, weights
from pipeline.whisper.model.network import Cache, Whisper

REFERENCE = Path("data/reference")

Caches = list[tuple[Cache, Cache]]
"""Of each decoder layer: the text's, and the sound's."""

_LAYOUT: dict[str, Any] = {
    "compression": "none",
    "use_dictionary": False,
    "write_statistics": False,
    "write_page_checksum": True,
}
"""Of the Parquet files: floats are neither smaller compressed nor found by their size, but a flipped bit shall be."""

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


def write(path: Path, fp32: str, shard: Path, vocabulary: Vocabulary, windows: Iterable[Window]) -> int:
    """Write windows, and the tokens that may not come or not come first; return the number of places.

    And what they are of: `fp32`, the digest of its weights, and a shard of the corpus.
    """
    import pyarrow
    import pyarrow.parquet

    barred = {"suppressed": vocabulary.suppressed, "suppressed_first": vocabulary.suppressed_first}
    told = {name: json.dumps(tokens) for name, tokens in barred.items()} | _source(fp32, shard)
    columns = [("id", pyarrow.string()), ("tokens", pyarrow.list_(pyarrow.int32())), ("states", pyarrow.binary())]
    schema = pyarrow.schema(columns, told)
    places = 0
    with pyarrow.parquet.ParquetWriter(path, schema, **_LAYOUT) as writer:
        for window in windows:
            row = {"id": window.id, "tokens": window.tokens, "states": window.states.cpu().numpy().tobytes()}
            writer.write_table(pyarrow.Table.from_pylist([row], schema))
            places += len(window.states)
    return places


def _source(fp32: str, shard: Path) -> dict[str, str]:
    return {"fp32": fp32, "speech": files.sha256(shard)}


def check(path: Path, fp32: str, shard: Path) -> None:
    """Raise UserError where the reference at `path` is missing, damaged, or not of this fp32 and this speech."""
    import pyarrow
    import pyarrow.parquet

    run = "run 'python -m pipeline.reference'"
    try:
        told = pyarrow.parquet.read_schema(path).metadata or {}
    except FileNotFoundError:
        raise UserError(f"{path} is not here; {run} first") from None
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise UserError(f"{path} cannot be read ({error}); {run} again") from None
    for what, digest in _source(fp32, shard).items():
        if told.get(what.encode()) != digest.encode():
            other = shard if what == "speech" else "the fp32 that is here"
            raise UserError(
                f"{path} is of other {'speech' if what == 'speech' else 'weights'} than {other}; {run} again"
            )


def read(path: Path, width: int, device: str) -> Iterator[Window]:
    """Yield the windows, in the order of the corpus; raise UserError where they are damaged."""
    import pyarrow

    try:
        for row in corpus.rows(path, ["id", "tokens", "states"]):
            states = torch.from_numpy(np.frombuffer(row["states"], dtype=np.float32).reshape(-1, width).copy())
            yield Window(row["id"], row["tokens"], states.to(device))
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise UserError(f"{path} cannot be read ({error}); run 'python -m pipeline.reference' again") from None


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
    """Return the decoder's states (places, width) that predict the last `places` of the tokens: of one pass."""
    return _states(model, model.caches(features, len(tokens)), tokens, places, stepwise=False)


def _states(model: Whisper, caches: Caches, tokens: list[int], places: int, stepwise: bool) -> Tensor:
    """Do the same with caches of the sound, which get the tokens; `stepwise`: in as many passes as decoding takes."""
    read = torch.tensor([tokens[:-1]], device=model.device)
    prompt = len(tokens) - places
    single = read[:, prompt:].split(1, dim=1) if stepwise and places > 1 else ()
    parts = [read[:, :prompt], *single] if stepwise else [read]
    found = torch.cat([model.model.decoder(part, caches) for part in parts], dim=1)
    return found[0, -places:].clone()  # as fp32's are read: equal states at like addresses give equal logits


@torch.no_grad()
def compare(model: Whisper, features: Tensor, window: Window, fp32_head: Tensor, barred: Tensor) -> Tensor:
    """Return `differences` of the model to fp32 in a window, (places, 3) on the CPU, by one pass.

    Raises UserError where the model's logits are not numbers.
    """
    caches = model.caches(features, len(window.tokens))
    return _compare(model, caches, window, fp32_head, barred, stepwise=False)


def _compare(
    model: Whisper, caches: Caches, window: Window, fp32_head: Tensor, barred: Tensor, stepwise: bool
) -> Tensor:
    found = _states(model, caches, window.tokens, len(window.states), stepwise)

    def logits(part: slice) -> Tensor:
        return torch.cat([model.proj_out(rows) for rows in found[part].split(1 if stepwise else _PLACES)])

    return _compared(logits, window, fp32_head, barred)


@dataclass(frozen=True)
class Listener:
    """What holds a model against fp32: fp32's output head, how text is decoded, and the most tokens of a window."""

    model: Whisper | Engine
    head: Tensor
    vocabulary: Vocabulary
    limit: int
    stepwise: bool
    """Whether tokens are forced one by one: a scale of dynamic activations may span a call."""

    @torch.no_grad()
    def hear(self, utterance: Utterance, windows: Iterable[Window], barred: Tensor) -> tuple[Tensor, Heard]:
        """Return the differences at each place of an utterance, (places, 3) on the CPU, and what the model writes.

        Raises UserError where the model's logits are not numbers.
        """
        heard, differences = Heard(), []
        for sound, window in zip(decoding.sounds(self.model, utterance), windows, strict=True):
            told = [] if heard.language is None else [heard.language]
            if isinstance(self.model, Whisper):
                found, spoken, tokens = self._hear(self.model, sound, window, barred, told)
            else:
                logits = self.model.logits(sound, window.tokens, len(window.states))
                found = _compared(logits.__getitem__, window, self.head, barred)
                names = [f"utterance {utterance.id!r}"]
                spoken, (tokens,) = self.model.decode([sound], self.vocabulary, self.limit, names, told)
            differences.append(found)
            heard.windows.append(tokens)
            heard.language = next(iter(spoken), None)
        return torch.cat(differences), heard

    def _hear(
        self, model: Whisper, sound: Samples, window: Window, barred: Tensor, told: Sequence[int]
    ) -> tuple[Tensor, Sequence[int], list[int]]:
        vocabulary, limit = self.vocabulary, self.limit
        caches = model.caches(decoding.features(model, [sound]), len(vocabulary.prompt) + limit)
        found = _compare(model, caches, window, self.head, barred, self.stepwise)
        if not vocabulary.languages:
            return found, [], _text(model, caches, window, found, vocabulary, limit)
        for own, _ in caches:  # fp32's text may be in another language than this model would write
            own.length = 0
        names = [f"utterance {window.id!r}"]
        spoken, (tokens,) = decoding.decode(model, caches, vocabulary, limit, names, told)
        return found, spoken, tokens


def _text(
    model: Whisper, caches: Caches, window: Window, differences: Tensor, vocabulary: Vocabulary, limit: int
) -> list[int]:
    """Return the tokens, `limit` at most and without the end, that greedy decoding writes after the window's prompt.

    `_compare` has filled the caches and found the differences. Where no token flips the text is fp32's; where one does,
    it goes on from there. This is speculative decoding with fp32's text as the draft, all of a window (Leviathan et al.
    2023, arXiv 2211.17192), and takes one pass where decoding takes one a token.
    """
    prompt = len(window.tokens) - len(window.states)
    flips = differences[:, 1].nonzero().flatten().tolist()
    same = flips[0] if flips else len(window.states)
    written = [token for token in window.tokens[prompt : prompt + same] if token != vocabulary.end]
    if not flips:
        return written
    start = prompt + same - 1 if same else 0  # decoding reads the whole prompt at once, and then token by token
    for own, _ in caches:
        own.length = start
    tokens = torch.tensor([window.tokens[start : prompt + same]], device=model.device)
    names = [f"utterance {window.id!r}"]
    (rest,) = decoding.go_on(model, caches, tokens, vocabulary, limit - same, names, first=not same)
    return written + rest


def _compared(logits_of: Callable[[slice], Tensor], window: Window, fp32_head: Tensor, barred: Tensor) -> Tensor:
    places = len(window.states)
    said = torch.tensor(window.tokens[-places:], device=fp32_head.device)
    parts = []
    for start in range(0, places, _PLACES):
        part = slice(start, start + _PLACES)
        logits = logits_of(part)
        if not logits.isfinite().all():
            why = "a token's logit is not a finite number, so no distribution follows: the weights are broken"
            raise UserError(f"utterance {window.id!r}: {why}")
        later = torch.arange(start, start + len(logits), device=fp32_head.device).clamp(max=1)
        fp32 = network.linear(window.states[part], fp32_head)
        parts.append(differences(fp32, logits, said[part], barred[later]))
    return torch.cat(parts).cpu()


def differences(fp32: Tensor, other: Tensor, said: Tensor, barred: Tensor) -> Tensor:
    """Return, at each place: KL(fp32 || other) in nats, whether the likeliest token is not fp32's, a log-likelihood.

    The latter is the other's of the token that fp32 `said`, less fp32's own. Logits are (places, vocabulary); tokens
    that are `barred`, of the same shape, take no part.
    """
    ours, theirs = (logits.double().masked_fill(barred, float("-inf")).log_softmax(dim=1) for logits in (fp32, other))
    change = (theirs - ours).masked_fill(barred, 0.0)
    kl = -(ours.exp() * change).sum(dim=1)
    flips = theirs.argmax(dim=1) != said
    return torch.stack([kl, flips.double(), change.gather(1, said[:, None]).flatten()], dim=1)
