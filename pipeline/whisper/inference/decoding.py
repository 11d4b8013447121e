"""Utterances to text: batches of similar duration, greedy decoding."""

import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from tokenizers import Tokenizer
from torch import Tensor

from pipeline.core import languages
from pipeline.core.errors import UserError
from pipeline.speech.corpus import Sound, Utterance
from pipeline.whisper.inference import mel
from pipeline.whisper.inference.timestamps import Timestamps
from pipeline.whisper.model.network import Cache, Config, Whisper

if TYPE_CHECKING:
    from pipeline.core.params import Decoding

HEARD = Path("data/heard")
"""What each variant has heard: a file of JSON lines, `source` and then the windows of each utterance."""

_WARM = 8
"""Tokens that bring kernels and memory into use; a variant that loops would write hundreds."""
_TIMESTAMP = re.compile(r"<\|\d+\.\d+\|>")


@dataclass(frozen=True)
class Vocabulary:
    """What decoding must know of a checkpoint's tokens."""

    tokenizer: Tokenizer
    prompt: list[int]
    """What comes before the text; with languages to detect, the one at place 1 is an utterance's own."""
    end: int
    """The end-of-text token."""
    suppressed: list[int]
    suppressed_first: list[int]
    """Tokens that may not come first: a blank, the end."""
    control: frozenset[int] = frozenset()
    """Special tokens and timestamps, which are never part of the text."""
    languages: Mapping[int, str] = field(default_factory=dict)
    """Token and code of each language to choose from; empty where the language is told."""
    timestamps: Timestamps | None = None
    """Where text is written with them."""

    @classmethod
    def read(
        cls, folder: Path, language: str, task: str, suppress_non_speech: bool = True, timestamps: bool = False
    ) -> "Vocabulary":
        """Read tokenizer.json and generation_config.json of a checkpoint that `fetch` has written.

        The latter lists what Whisper suppresses: special tokens, always, and tokens that are no speech, such as "(" or
        "♪♪", unless told otherwise (openai/whisper, tokenizer.py, `non_speech_tokens`).

        Raises UserError when the model does not know the language or the task.
        """
        try:
            tokenizer = Tokenizer.from_buffer((folder / "tokenizer.json").read_bytes())
            config = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise UserError(f"{error.filename} is not here; run 'python -m pipeline.fetch' first") from None
        known = {token: code.strip("<|>") for code, token in config.get("lang_to_id", {}).items()}
        chosen = next(iter(known.values()), "en") if language == languages.AUTO else language
        prompt = ["<|startoftranscript|>"]
        if config["is_multilingual"]:
            if chosen not in known.values():
                raise UserError(
                    f"decoding: unknown language {language!r}{languages.suggestion(language, known.values())}"
                )
            prompt += [f"<|{chosen}|>", f"<|{task}|>"]
        elif (language, task) != ("en", "transcribe"):
            raise UserError(f"decoding: this model only transcribes English, so {language}/{task} needs another model")
        ids = []
        for token in [*prompt, "<|notimestamps|>", "<|endoftext|>"]:
            place = tokenizer.token_to_id(token)
            if place is None:
                raise UserError(f"{folder}/tokenizer.json lacks the token {token!r}; it is not Whisper's")
            ids.append(place)
        *prompted, silent, end = ids
        timed = Timestamps(silent, end) if timestamps else None
        added = tokenizer.get_added_tokens_decoder()
        control = {place for place, token in added.items() if token.special or _TIMESTAMP.fullmatch(token.content)}
        suppressed = [token for token in config["suppress_tokens"] if suppress_non_speech or token in control]
        detected = known if language == languages.AUTO else {}
        if timed:
            control |= {*timed.tokens}
        else:
            prompted.append(silent)
        first = config["begin_suppress_tokens"]
        return cls(tokenizer, prompted, end, suppressed, first, frozenset(control), detected, timed)

    def text(self, tokens: Iterable[int]) -> str:
        """Turn tokens into text, without the special ones."""
        return self.tokenizer.decode([token for token in tokens if token not in self.control])

    def prompts(self, rows: int, spoken: Sequence[int]) -> list[list[int]]:
        """Return each row's prompt; `spoken` are the language tokens, where languages are detected."""
        if not self.languages:
            return [self.prompt] * rows
        return [[self.prompt[0], language, *self.prompt[2:]] for language in spoken]


class Engine(Protocol):
    """A model that another runtime than PyTorch computes, under the same rules of decoding.

    It computes with as many threads as PyTorch would (`torch.get_num_threads`).
    """

    config: Config

    @property
    def kernels(self) -> str:
        """What it computes with, as it tells: instructions, libraries, types of numbers."""
        ...

    def decode(
        self,
        sounds: Sequence[mel.Samples],
        vocabulary: Vocabulary,
        most: int,
        names: Sequence[str],
        told: Sequence[int],
    ) -> tuple[Sequence[int], list[list[int]]]:
        """Return each window's language token, as `told` or else where it is to be detected, and its greedy tokens.

        There are at most `most` tokens, without prompt and end. Raises UserError, which takes a window's name of
        `names`, where logits are not numbers.
        """
        ...

    def logits(self, sound: mel.Samples, tokens: list[int], places: int) -> Tensor:
        """Return the logits (places, vocabulary) that predict the last `places` of the tokens: prompt, text and end."""
        ...


@dataclass
class Heard:
    """What a model has heard in an utterance."""

    windows: list[list[int]] = field(default_factory=list)
    """Tokens of each window, without prompt and end."""
    language: int | None = None
    """Token of the language where that was to be detected, which the first window decides, as with openai/whisper."""

    def line(self, vocabulary: Vocabulary, limit: int | None = None) -> dict[str, str]:
        """Return what a transcript says of it: the text, of `limit` tokens a window, and the detected language."""
        texts = (vocabulary.text(window[:limit]).strip() for window in self.windows)
        language = {} if self.language is None else {"language": vocabulary.languages[self.language]}
        return language | {"pred_text": " ".join(texts)}


def rules(how: "Decoding") -> dict[str, Any]:
    """Return the settings that decide what is heard: batches and seeds do not, as utterances are heard alone."""
    return {key: value for key, value in vars(how).items() if key not in ("batch_size", "seed")}


def source(checkpoint: Mapping[str, Any], how: "Decoding") -> dict[str, Any]:
    """Return the first line of a file in HEARD: which checkpoint heard, by its manifest, and how."""
    return {"files": checkpoint["files"], "decoding": rules(how)}


def batches(utterances: Iterable[Utterance], size: int) -> Iterator[list[Utterance]]:
    """Group utterances of similar duration, longest first, so that a batch's rows end at about the same step."""
    ordered = sorted(utterances, key=lambda utterance: (-utterance.duration, utterance.id))
    for start in range(0, len(ordered), size):
        yield ordered[start : start + size]


def transcribe(
    model: Whisper | Engine, batch: Sequence[Utterance], vocabulary: Vocabulary, max_new_tokens: int, size: int
) -> list[Heard]:
    """Return what the model hears in each utterance; one beyond 30 s is decoded in windows.

    The first windows of all come together, as they tell the languages, and then `size` at once: memory does not grow
    with a recording. Raises UserError where the model's logits are not numbers.
    """
    longest = mel.window(model.config.max_source_positions)
    sounds = [Sound(utterance) for utterance in batch]
    cuts = [mel.windows(sound.read, len(sound), longest) for sound in sounds]
    heard = [Heard() for _ in batch]
    later = ((n, span) for n, spans in enumerate(cuts) for span in spans[1:])
    together = [(n, spans[0]) for n, spans in enumerate(cuts)]
    while together:
        parts = [sounds[n].read(*span) for n, span in together]
        told = [language for n, _ in together if (language := heard[n].language) is not None]
        names = [f"utterance {batch[n].id!r}" for n, _ in together]
        spoken, rows = hear(model, parts, vocabulary, max_new_tokens, names, told)
        for (n, _), row, language in itertools.zip_longest(together, rows, spoken):
            heard[n].windows.append(row)
            heard[n].language = language
        together = list(itertools.islice(later, size))
    return heard


def warm_up(model: Whisper | Engine, utterance: Utterance, vocabulary: Vocabulary) -> None:
    """Begin to transcribe the first window. Raises UserError where the model's logits are not numbers."""
    names = [f"utterance {utterance.id!r}"]
    hear(model, [next(sounds(model, utterance))], vocabulary, _WARM, names)


def hear(
    model: Whisper | Engine,
    windows: Sequence[mel.Samples],
    vocabulary: Vocabulary,
    max_new_tokens: int,
    names: Sequence[str],
    told: Sequence[int] = (),
) -> tuple[Sequence[int], list[list[int]]]:
    """Return what `Engine.decode` does, of windows of sound."""
    if isinstance(model, Whisper):
        return _decode(model, features(model, windows), vocabulary, max_new_tokens, names, told)
    return model.decode(windows, vocabulary, most(model, vocabulary, max_new_tokens), names, told)


def transcript(model: Whisper, utterance: Utterance, vocabulary: Vocabulary) -> tuple[Tensor, Tensor]:
    """Return the first window as features (1, mels, frames), and prompt and greedy tokens (1, positions) of the model.

    Raises UserError where the model's logits are not numbers.
    """
    features = next(windows(model, utterance))
    names = [f"utterance {utterance.id!r}"]
    spoken, (tokens,) = _decode(model, features, vocabulary, model.config.max_target_positions, names)
    return features, torch.tensor([vocabulary.prompts(1, spoken)[0] + tokens], device=model.device)


def windows(model: Whisper, utterance: Utterance) -> Iterator[Tensor]:
    """Yield each window of an utterance as features (1, mels, frames), as `transcribe` cuts it: one is in memory."""
    for sound in sounds(model, utterance):
        yield features(model, [sound])


def sounds(model: Whisper | Engine, utterance: Utterance) -> Iterator[mel.Samples]:
    """Yield the samples of each window."""
    sound = Sound(utterance)
    for span in mel.windows(sound.read, len(sound), mel.window(model.config.max_source_positions)):
        yield sound.read(*span)


def most(model: Whisper | Engine, vocabulary: Vocabulary, max_new_tokens: int) -> int:
    """Return how many tokens a window gets at most: a row of fewer has ended by itself."""
    return min(max_new_tokens, model.config.max_target_positions - len(vocabulary.prompt))


def greedy(model: Whisper, features: Tensor, vocabulary: Vocabulary, max_new_tokens: int) -> list[list[int]]:
    """Return each row's tokens, the likeliest one at a time, without prompt and end.

    `features` are (batch, mels, frames) on the model's device. At most `max_new_tokens` tokens, and no more than the
    model has positions for. Raises UserError where the model's logits are not numbers.
    """
    names = [f"row {row}" for row in range(len(features))]
    return _decode(model, features, vocabulary, max_new_tokens, names)[1]


@torch.no_grad()  # not inference_mode: quanto's 4-bit tensors need version counters
def _decode(
    model: Whisper,
    features: Tensor,
    vocabulary: Vocabulary,
    max_new_tokens: int,
    names: Sequence[str],
    told: Sequence[int] = (),
) -> tuple[Sequence[int], list[list[int]]]:
    """Do as `greedy` does, and return each row's language, too: as `told`, or else where it is to be detected."""
    limit = most(model, vocabulary, max_new_tokens)
    caches = model.caches(features, len(vocabulary.prompt) + limit)
    return decode(model, caches, vocabulary, limit, names, told)


@torch.no_grad()
def decode(
    model: Whisper,
    caches: list[tuple[Cache, Cache]],
    vocabulary: Vocabulary,
    limit: int,
    names: Sequence[str],
    told: Sequence[int] = (),
) -> tuple[Sequence[int], list[list[int]]]:
    """Do the same where the caches hold the sound, and no text."""
    rows = len(caches[0][1].keys)
    spoken = told or _languages(model, caches, vocabulary, rows)
    tokens = torch.tensor(vocabulary.prompts(rows, spoken), device=model.device)
    return spoken, go_on(model, caches, tokens, vocabulary, limit, names, first=True)


@torch.no_grad()
def go_on(
    model: Whisper,
    caches: list[tuple[Cache, Cache]],
    tokens: Tensor,
    vocabulary: Vocabulary,
    limit: int,
    names: Sequence[str],
    first: bool,
) -> list[list[int]]:
    """Return each row's tokens, `limit` at most and without the end, after those of `tokens` (rows, positions).

    The caches hold what comes before `tokens`; `first`: these are the prompt. Raises UserError where the model's logits
    are not numbers.
    """
    rows = list(range(len(tokens)))  # the utterance in each row of the batch
    results: list[list[int]] = [[] for _ in rows]
    barred = _barrier(model, vocabulary.suppressed)
    barred_now = barred + _barrier(model, vocabulary.suppressed_first) if first else barred
    for _ in range(limit):
        scores = model.next_logits(tokens, caches) + barred_now
        if vocabulary.timestamps:
            vocabulary.timestamps.bar(scores, [results[row] for row in rows])
        best = scores.argmax(dim=1)  # of a NaN, if there is any
        finite = scores.gather(1, best[:, None]).isfinite().flatten().tolist()
        if not all(finite):
            name = names[rows[finite.index(False)]]
            why = "the weights are broken, or every token is suppressed"
            raise UserError(f"{name}: no token can be chosen, as its logit is not a finite number: {why}")
        barred_now = barred
        said = best.tolist()
        for utterance, token in zip(rows, said, strict=True):
            if token != vocabulary.end:
                results[utterance].append(token)
        going = [row for row, token in enumerate(said) if token != vocabulary.end]
        if not going:
            break
        count = len(going)
        if count < len(rows):  # the last rows take the places of those that ended
            empty = [row for row in range(count) if said[row] == vocabulary.end]
            last = [row for row in going if row >= count]
            for place, row in zip(empty, last, strict=True):
                rows[place] = rows[row]
            best[empty] = best[last]
            del rows[count:]
            for own, heard in caches:
                own.drop(empty, last, count)
                heard.drop(empty, last, count)
        tokens = best[:count, None]
    return results


def _languages(model: Whisper, caches: list[tuple[Cache, Cache]], vocabulary: Vocabulary, rows: int) -> list[int]:
    """Return the likeliest language token of each row after the start of a transcript; none where it is told."""
    if not vocabulary.languages:
        return []
    choices = torch.tensor(list(vocabulary.languages), device=model.device)
    start = torch.tensor([vocabulary.prompt[:1]] * rows, device=model.device)
    logits = model.next_logits(start, caches)[:, choices]
    for own, _ in caches:
        own.length = 0  # the prompt is decoded as a whole
    return choices[logits.argmax(dim=1)].tolist()


def features(model: Whisper, windows: Sequence[mel.Samples]) -> Tensor:
    """Return the log-mel features (batch, mels, frames) of windows of sound, on the model's device."""
    config = model.config
    return mel.log_mel(list(windows), config.num_mel_bins, mel.window(config.max_source_positions)).to(model.device)


def _barrier(model: Whisper, tokens: list[int]) -> Tensor:
    """Return a row to add to logits: minus infinity at the suppressed tokens, else 0."""
    barrier = torch.zeros(model.config.vocab_size, device=model.device)
    barrier[tokens] = float("-inf")
    return barrier
