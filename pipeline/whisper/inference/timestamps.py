"""Whisper's timestamp tokens: what may follow what while they are decoded, and the segments that they bound."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from pipeline.whisper.inference import mel

STEP = mel.FRAME / mel.SAMPLE_RATE
"""Seconds from one timestamp to the next: a position of the encoder."""

_COUNT = 1501
_FIRST = 50
"""The last timestamp that a window may begin with: 1 s (openai/whisper, `max_initial_timestamp`)."""


@dataclass(frozen=True)
class Timestamps:
    """Which tokens are timestamps, and the other two that their grammar names."""

    silent: int
    """The token that asks for a text without them; they follow it, and may be missing in tokenizer.json."""
    end: int
    """The end-of-text token."""

    @property
    def tokens(self) -> range:
        """Return the tokens from 0 to 30 s (arXiv 2212.04356, section 2.3)."""
        return range(self.silent + 1, self.silent + 1 + _COUNT)

    def bar(self, logits: Tensor, rows: Sequence[Sequence[int]]) -> None:
        """Set the logits (rows, vocabulary) of what may not follow the tokens of each row to minus infinity, in place.

        Timestamps come in pairs around a text, never fall, and the first is at most 1 s; where all of them together are
        likelier than each other token, one of them comes (openai/whisper, decoding.py, `ApplyTimestampRules`).
        """
        logits[:, self.silent] = float("-inf")
        for scores, written in zip(logits, rows, strict=True):
            self._bar(scores, written)

    def _bar(self, scores: Tensor, written: Sequence[int]) -> None:
        no = float("-inf")
        times, text = slice(self.tokens.start, self.tokens.stop), slice(self.tokens.start)
        if not written:
            scores[text] = scores[self.tokens.stop :] = no
            scores[self.tokens.start + _FIRST + 1 :] = no
            return
        closes = written[-1] in self.tokens  # a text, or opens the next
        opens = closes and (len(written) < 2 or written[-2] in self.tokens)
        last = next((token for token in reversed(written) if token in self.tokens), None)
        if opens:
            scores[times] = no
        elif closes:
            scores[: self.end] = no
        if last is not None:
            scores[self.tokens.start : last if closes and not opens else last + 1] = no
        chances = scores.float().log_softmax(dim=0)
        if chances[times].logsumexp(dim=0) > chances[text].max():
            scores[text] = no

    def segments(self, tokens: Iterable[int], seconds: float) -> Iterator[tuple[float, float, list[int]]]:
        """Yield start, end and text tokens of each segment of a window that is so many seconds long.

        No token of text is lost: what no timestamp ends goes to the end of the window.
        """
        start, text = 0.0, list[int]()
        for token in tokens:
            if token not in self.tokens:
                text.append(token)
                continue
            time = min((token - self.tokens.start) * STEP, seconds)
            if text:
                yield start, time, text
            start, text = time, []
        if text:
            yield start, seconds, text
