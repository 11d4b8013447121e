"""Sound to Whisper's input: windows of at most 30 seconds, and their log-mel features."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.whisper.model.filters import mel_filters

SAMPLE_RATE = 16_000
WINDOW = 30 * SAMPLE_RATE
"""Samples that a published Whisper's encoder sees at once."""
_FFT, _HOP = 400, 160
FRAME = SAMPLE_RATE // 50
"""Samples of 20 ms: of one position of the encoder, and of one value of the energy by which sound is cut."""
_BLOCK = 3000 * FRAME
"""Samples read at once where a cut is sought: a minute."""

Samples = NDArray[np.float32]
Span = tuple[int, int]
"""First sample, and the one after the last."""


def window(positions: int) -> int:
    """Return how many samples an encoder of so many positions sees at once: two frames of features a position."""
    return positions * FRAME


def windows(read: Callable[[int, int], Samples], samples: int, longest: int = WINDOW) -> list[Span]:
    """Cut sound of so many samples that is longer than `longest` at its quietest places, so that no word is lost.

    `read(start, end)` returns samples; sound that fits, nearly all of LibriSpeech, is not read. Each cut falls in the
    quietest 20 ms of the middle fifth, where a pause is likeliest.
    """

    def cut(start: int, end: int) -> list[Span]:
        length = end - start
        if length <= longest:
            return [(start, end)]
        middle, reach = start + length // 2, length // 10
        first, last = middle - reach, middle - reach + 2 * reach // FRAME * FRAME
        energies = [
            np.square(read(at, min(at + _BLOCK, last)).reshape(-1, FRAME)).sum(axis=1)
            for at in range(first, last, _BLOCK)
        ]
        quietest = first + int(np.concatenate(energies).argmin()) * FRAME + FRAME // 2
        return [*cut(start, quietest), *cut(quietest, end)]

    return cut(0, samples)


def log_mel(batch: list[Samples], mels: int, longest: int = WINDOW) -> Tensor:
    """Return the log-mel features (batch, mels, `longest` / 160) of windows padded with silence to `longest` samples.

    As in OpenAI's `whisper.audio.log_mel_spectrogram`: 25 ms Hann frames every 10 ms, Slaney's mel scale, the last
    frame dropped, a dynamic range of 8 below each utterance's maximum. Equal to Transformers' feature extractor.
    """
    sound = torch.zeros(len(batch), longest)
    for row, samples in zip(sound, batch, strict=True):
        row[: len(samples)] = torch.from_numpy(samples)
    spectrum = torch.stft(sound, _FFT, _HOP, window=torch.hann_window(_FFT), return_complex=True)
    power = spectrum[..., :-1].abs().square_()
    logs = (mel_filters(mels) @ power).clamp_(min=1e-10).log10_()
    floor = logs.amax(dim=(1, 2), keepdim=True) - 8.0
    return torch.maximum(logs, floor).add_(4.0).div_(4.0)
