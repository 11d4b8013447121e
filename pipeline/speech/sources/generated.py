"""Silence and noise, made here rather than downloaded: whatever a model writes on it, it has made up.

Split `silence` is what a microphone gives while nobody speaks, `noise` what it gives in a car, beside a fan or on a bad
cable. An utterance lasts 2 to 30 s, each length equally likely. Its "speaker" is the kind of sound, its "chapter" the
level: `noise/pink/35/pink-35-0005.flac` is pink noise 35 dB below full scale, 20 log10(2^15 / root mean square); speech
is commonly recorded at 20 to 30. Intervals are by utterance: of other recordings of the same few kinds.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipeline.core import files
from pipeline.core.errors import UserError, suggestion
from pipeline.speech.sources import audio, layouts

if TYPE_CHECKING:
    from pipeline.core.params import Corpus

DITHER = 20 * math.log10(2**15 * math.sqrt(6))
"""Level of triangular noise of one least significant bit either way, which recorders add before they round; 98.1."""

SOUNDS: dict[str, list[tuple[str, float]]] = {
    "silence": [
        ("digital", math.inf),  # every sample zero: a muted microphone, or a gap that software filled
        ("dither", DITHER),
        *(("hiss", level) for level in (85.0, 75.0, 65.0, 55.0)),  # white: amplifiers, from good to poor
    ],
    "noise": [
        (kind, level)
        for level in (45.0, 35.0, 25.0)  # a quiet room, a busy one, as loud as speech
        for kind in ("white", "pink", "brown", "hum")
    ],
}
"""Kind and level (dB below full scale) of each split's sounds, which its utterances take in turn."""

SLOPES = {"digital": 0, "hiss": 0, "white": 0, "pink": 1, "brown": 2}
"""By which power of the frequency a noise's power falls: 0, 3 or 6 dB an octave."""

SECONDS = (2, 30)
"""Shortest and longest utterance: Whisper sees 30 s at once."""

LOWEST = 20
"""Hz below which there is nothing to hear; brown noise would hold little else."""


def download(name: str, corpus: "Corpus", splits: list[str], folder: Path) -> None:
    """Write `<split>.tar` of each split into `folder`; raise UserError for a split that is none of SOUNDS."""
    assert corpus.limit is not None  # params sees to it
    for split in splits:
        if split not in SOUNDS:
            raise UserError(f"corpus {name!r}: no split {split!r} can be generated{suggestion(split, SOUNDS)}")
        with files.aside(folder / f"{split}.tar") as partial:
            layouts.pack(partial, members(split, corpus.limit, corpus.seed))


def members(split: str, count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """Yield name and bytes of `count` utterances in LibriSpeech's layout, and of their transcripts, which are empty.

    Each utterance depends on seed, split and its own number alone, so that a larger count only adds some.
    """
    sounds = SOUNDS[split]
    for place, (kind, level) in enumerate(sounds):
        chapter, ids = f"{split}/{kind}/{level:.0f}", []
        for number in range(place, count, len(sounds)):
            rng = np.random.Generator(np.random.PCG64([seed, number, *split.encode()]))
            ids.append(f"{kind}-{level:.0f}-{number:04}")
            yield f"{chapter}/{ids[-1]}.flac", audio.encode(sound(kind, level, rng))
        if ids:
            yield f"{chapter}/{kind}-{level:.0f}.trans.txt", "".join(f"{utterance}\n" for utterance in ids).encode()


def sound(kind: str, level: float, rng: np.random.Generator) -> NDArray[np.int16]:
    """Return the samples, 16,000 a second, of one utterance at `level` dB below full scale."""
    samples = int(rng.integers(SECONDS[0] * audio.RATE, SECONDS[1] * audio.RATE, endpoint=True))
    if kind == "dither":
        wave = rng.random(samples) - rng.random(samples)
    elif kind == "hum":
        wave = _hum(samples, rng)
    else:
        wave = _coloured(samples, SLOPES[kind], rng)
    gain = 2**15 * 10 ** (-level / 20) / math.sqrt(np.mean(wave**2))
    return np.rint(gain * wave).astype(np.int16)


def _coloured(samples: int, slope: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return noise whose power falls with this power of the frequency."""
    frequencies = np.fft.rfftfreq(samples, 1 / audio.RATE)
    shape = np.where(frequencies < LOWEST, 0.0, np.maximum(frequencies, LOWEST) ** (-slope / 2))
    return np.fft.irfft(np.fft.rfft(rng.standard_normal(samples)) * shape, samples)


def _hum(samples: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return the hum of the mains, 50 or 60 Hz, with ten harmonics, each weaker than the one before."""
    mains, phases = rng.choice([50, 60]), rng.uniform(0, 2 * math.pi, 10)
    turns = 2 * math.pi * mains / audio.RATE * np.arange(samples)
    wave: NDArray[np.float64] = np.sum([np.sin(n * turns + phases[n - 1]) / n for n in range(1, 11)], axis=0)
    return wave
