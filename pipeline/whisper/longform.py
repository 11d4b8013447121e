"""Recordings of any length to text with times, so that no word is lost or doubled where windows meet.

A recording is cut where it is quietest, and each window is decoded with timestamps. A Whisper may end early, or skip
sentences and put its last timestamp where the sound ends: where speech goes on after the text, or a text is too short
for the speech it is said to be of, that part is heard again as shorter windows.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from pipeline.speech.corpus import Sound, Utterance
from pipeline.whisper.inference import decoding, mel
from pipeline.whisper.inference.decoding import Engine, Vocabulary
from pipeline.whisper.model.network import Whisper

_QUIET = 0.01
"""Of the loudest frames' energy: what is 20 dB below them is no speech."""
_SILENCE = 1e-6
"""Energy, of full scale's, of what is no speech however quiet the rest is: -60 dB."""
_LEAST = 0.5
"""Seconds of sound, louder than that, that hold a word."""
_SPARSE = 2.0
"""Tokens a second of speech: who reads slowly says two, who talks five."""
_SHORT = 10.0
"""Seconds of a window that is not cut again: less context costs words, too."""


@dataclass(frozen=True)
class Segment:
    """What is said from `start` to `end`, in seconds, to the millisecond."""

    start: float
    end: float
    text: str


@dataclass(frozen=True)
class Transcript:
    """What is said in a recording of `duration` seconds: segments in order of time."""

    name: str
    duration: float
    language: str
    """Its code, as told or detected."""
    segments: list[Segment]

    @property
    def text(self) -> str:
        """Return all that is said."""
        return " ".join(segment.text for segment in self.segments)


@dataclass(frozen=True)
class _Window:
    """A part of a recording that begins at its sample `start`."""

    start: int
    sound: mel.Samples

    @property
    def seconds(self) -> float:
        return len(self.sound) / mel.SAMPLE_RATE

    @cached_property
    def speech(self) -> NDArray[np.bool_]:
        """Tell of each 20 ms whether it is loud enough."""
        energies = np.square(self.sound[: len(self.sound) // mel.FRAME * mel.FRAME].reshape(-1, mel.FRAME)).mean(axis=1)
        least = _QUIET * np.quantile(energies, 0.95) if len(energies) else 0
        loud: NDArray[np.bool_] = energies > max(least, _SILENCE)
        return loud

    def spoken(self, start: float, end: float) -> float:
        """Return the seconds of speech between two of its seconds."""
        frame = mel.FRAME / mel.SAMPLE_RATE
        return float(self.speech[round(start / frame) : round(end / frame)].sum()) * frame

    def halves(self) -> list[mel.Span]:
        """Return two spans of the recording, cut where it is quietest, near the middle."""
        spans = mel.windows(lambda start, end: self.sound[start:end], len(self.sound), len(self.sound) * 3 // 5)
        return [(self.start + start, self.start + end) for start, end in spans]


def transcribe(
    model: Whisper | Engine,
    recording: Utterance,
    vocabulary: Vocabulary,
    language: str,
    max_new_tokens: int,
    size: int,
    progress: Callable[[float], object] = lambda _: None,
) -> Transcript:
    """Return what the model hears; `vocabulary` has timestamps, and is of the language or detects it.

    `size` windows are decoded at once. `progress` is told the seconds that are done, as they are. Raises UserError
    where the model's logits are not numbers.
    """
    assert vocabulary.timestamps
    sound = Sound(recording)
    todo = mel.windows(sound.read, len(sound), mel.window(model.config.max_source_positions))
    names = [f"recording {recording.id!r}"] * size
    spoken: list[int] = []
    found: list[Segment] = []
    while todo:
        number = 1 if vocabulary.languages and not spoken else size  # the first window with speech tells the language
        windows = [_Window(start, sound.read(start, end)) for start, end in todo[:number]]
        todo = todo[number:]
        progress(sum(window.seconds for window in windows if not window.speech.any()))
        windows = [window for window in windows if window.speech.any()]
        if not windows:
            continue
        sounds = [window.sound for window in windows]
        told, rows = decoding.hear(model, sounds, vocabulary, max_new_tokens, names, spoken * len(windows))
        spoken = list(told[:1])
        for window, row in zip(windows, rows, strict=True):
            pieces = list(vocabulary.timestamps.segments(row, window.seconds))
            sparse = any(len(tokens) < _SPARSE * window.spoken(start, end) for start, end, tokens in pieces)
            if sparse and window.seconds > _SHORT:
                todo = window.halves() + todo
                continue
            heard = pieces[-1][1] if pieces else window.seconds
            if heard > _LEAST and window.spoken(heard, window.seconds) > _LEAST:
                whole = window.start + len(window.sound)
                todo = [(window.start + round(heard * mel.SAMPLE_RATE), whole), *todo]
            else:
                heard = window.seconds
            at = window.start / mel.SAMPLE_RATE
            found += [
                Segment(round(at + start, 3), round(at + end, 3), vocabulary.text(tokens).strip())
                for start, end, tokens in pieces
            ]
            progress(heard)
    segments = sorted((segment for segment in found if segment.text), key=lambda segment: segment.start)
    detected = vocabulary.languages[spoken[0]] if spoken else language
    return Transcript(recording.id, recording.duration, detected, segments)
