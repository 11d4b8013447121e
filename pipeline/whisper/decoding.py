"""Utterances to text: batches of similar duration, greedy decoding."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor

from pipeline.core.errors import UserError, suggestion
from pipeline.speech import corpus
from pipeline.speech.corpus import Utterance
from pipeline.whisper import mel
from pipeline.whisper.network import Whisper


@dataclass(frozen=True)
class Vocabulary:
    """What decoding must know of a checkpoint's tokens."""

    tokenizer: Tokenizer
    prompt: list[int]
    end: int
    """The end-of-text token; every id from here on is special and never part of the text."""
    suppressed: list[int]
    suppressed_first: list[int]
    """Tokens that may not come first: a blank, the end."""

    @classmethod
    def read(cls, folder: Path, language: str, task: str, suppress_non_speech: bool = True) -> "Vocabulary":
        """Read tokenizer.json and generation_config.json of a checkpoint.

        The latter lists what Whisper suppresses: special tokens, always, and tokens that are no speech, such as "(" or
        "♪♪", unless told otherwise (openai/whisper, tokenizer.py, `non_speech_tokens`).

        Raises UserError when the model does not know the language or the task.
        """
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        config = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))
        prompt = ["<|startoftranscript|>"]
        if config.get("is_multilingual", True):
            known = [key.strip("<|>") for key in config.get("lang_to_id", {})]
            if known and language not in known:
                raise UserError(f"decoding: unknown language {language!r}{suggestion(language, known)}")
            prompt += [f"<|{language}|>", f"<|{task}|>"]
        elif (language, task) != ("en", "transcribe"):
            raise UserError(f"decoding: this model only transcribes English, so {language}/{task} needs another model")
        ids = []
        for token in [*prompt, "<|notimestamps|>", "<|endoftext|>"]:
            place = tokenizer.token_to_id(token)
            if place is None:
                raise UserError(f"{folder}/tokenizer.json lacks the token {token!r}; it is not Whisper's")
            ids.append(place)
        *prompted, end = ids
        suppressed = [token for token in config.get("suppress_tokens") or [] if suppress_non_speech or token >= end]
        return cls(tokenizer, prompted, end, suppressed, config.get("begin_suppress_tokens") or [])

    def text(self, tokens: Iterable[int]) -> str:
        """Turn tokens into text, without the special ones."""
        return self.tokenizer.decode([token for token in tokens if token < self.end])


def batches(utterances: Iterable[Utterance], size: int) -> Iterator[list[Utterance]]:
    """Group utterances of similar duration, longest first, so that a batch's rows end at about the same step."""
    ordered = sorted(utterances, key=lambda utterance: (-utterance.duration, utterance.id))
    for start in range(0, len(ordered), size):
        yield ordered[start : start + size]


def texts(model: Whisper, batch: Sequence[Utterance], vocabulary: Vocabulary, max_new_tokens: int) -> list[str]:
    """Return each utterance's text; one beyond 30 s is decoded in windows, whose texts are joined."""
    return [joined(windows, vocabulary) for windows in tokens(model, batch, vocabulary, max_new_tokens)]


def tokens(
    model: Whisper, batch: Sequence[Utterance], vocabulary: Vocabulary, max_new_tokens: int
) -> list[list[list[int]]]:
    """Return the tokens of each utterance's windows of at most 30 s."""
    pieces = [mel.windows(corpus.samples(utterance)) for utterance in batch]
    features = _features(model, [window for windows in pieces for window in windows])
    rows = iter(greedy(model, features, vocabulary, max_new_tokens))
    return [[next(rows) for _ in windows] for windows in pieces]


def joined(windows: Iterable[Sequence[int]], vocabulary: Vocabulary) -> str:
    """Return the text of an utterance from the tokens of its windows."""
    return " ".join(vocabulary.text(window).strip() for window in windows)


def transcript(model: Whisper, utterance: Utterance, vocabulary: Vocabulary) -> tuple[Tensor, Tensor]:
    """Return the first 30 s as features (1, mels, frames), and prompt and greedy tokens (1, positions) of the model."""
    features = _features(model, mel.windows(corpus.samples(utterance))[:1])
    (tokens,) = greedy(model, features, vocabulary, model.config.max_target_positions)
    return features, torch.tensor([vocabulary.prompt + tokens], device=model.device)


@torch.no_grad()  # not inference_mode: quanto's 4-bit tensors need version counters
def greedy(model: Whisper, features: Tensor, vocabulary: Vocabulary, max_new_tokens: int) -> list[list[int]]:
    """Return each row's tokens, the likeliest one at a time, without prompt and end.

    `features` are (batch, mels, frames) on the model's device. At most `max_new_tokens` tokens, and no more than the
    model has positions for.
    """
    limit = min(max_new_tokens, model.config.max_target_positions - len(vocabulary.prompt))
    caches = model.caches(features, len(vocabulary.prompt) + limit)
    results: list[list[int]] = [[] for _ in range(len(features))]
    rows = list(range(len(features)))  # the utterance in each row of the batch
    tokens = torch.tensor([vocabulary.prompt] * len(rows), device=model.device)
    barred = _barrier(model, vocabulary.suppressed)
    barred_now = barred + _barrier(model, vocabulary.suppressed_first)
    for _ in range(limit):
        best = (model.next_logits(tokens, caches) + barred_now).argmax(dim=1)
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


def _features(model: Whisper, windows: list[mel.Samples]) -> Tensor:
    return mel.log_mel(windows, model.config.num_mel_bins).to(model.device)


def _barrier(model: Whisper, tokens: list[int]) -> Tensor:
    """Return a row to add to logits: minus infinity at the suppressed tokens, else 0."""
    barrier = torch.zeros(model.config.vocab_size, device=model.device)
    barrier[tokens] = float("-inf")
    return barrier
