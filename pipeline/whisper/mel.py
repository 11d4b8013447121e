"""Sound to Whisper's input: windows of at most 30 seconds, and their log-mel features."""

import functools

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

SAMPLE_RATE = 16_000
WINDOW = 30 * SAMPLE_RATE
"""Samples that Whisper's encoder sees at once."""
_FFT, _HOP = 400, 160

Samples = NDArray[np.float32]


def windows(samples: Samples) -> list[Samples]:
    """Cut sound that is longer than Whisper's window at its quietest places, so that no word is lost.

    Sound up to 30 s, nearly all of LibriSpeech, stays whole. Each cut falls in the quietest 20 ms of the middle
    fifth, where a pause is likeliest.
    """
    if len(samples) <= WINDOW:
        return [samples]
    middle = len(samples) // 2
    reach, frame = len(samples) // 10, SAMPLE_RATE // 50
    around = samples[middle - reach : middle + reach]
    energy = np.square(around[: len(around) // frame * frame].reshape(-1, frame)).sum(axis=1)
    cut = middle - reach + int(energy.argmin()) * frame + frame // 2
    return [*windows(samples[:cut]), *windows(samples[cut:])]


def log_mel(batch: list[Samples], mels: int) -> Tensor:
    """Return the log-mel features (batch, mels, 3000) of windows padded with silence to 30 s.

    As in OpenAI's `whisper.audio.log_mel_spectrogram`: 25 ms Hann frames every 10 ms, Slaney's mel scale, the last
    frame dropped, a dynamic range of 8 below each utterance's maximum. Equal to Transformers' feature extractor.
    """
    sound = torch.zeros(len(batch), WINDOW)
    for row, samples in zip(sound, batch, strict=True):
        row[: len(samples)] = torch.from_numpy(samples)
    spectrum = torch.stft(sound, _FFT, _HOP, window=torch.hann_window(_FFT), return_complex=True)
    power = spectrum[..., :-1].abs().square_()
    logs = (mel_filters(mels) @ power).clamp_(min=1e-10).log10_()
    floor = logs.amax(dim=(1, 2), keepdim=True) - 8.0
    return torch.maximum(logs, floor).add_(4.0).div_(4.0)


@functools.cache
def mel_filters(mels: int) -> Tensor:
    """Return the triangular filters (mels, 201) on Slaney's mel scale, each of unit area.

    The scale is linear to 1 kHz and logarithmic above (Slaney 1998, Auditory Toolbox; librosa's default).
    """
    step, knee = 200.0 / 3, 1000.0
    ratio = np.log(6.4) / 27.0

    def to_hertz(mel: NDArray[np.float64]) -> NDArray[np.float64]:
        above = knee * np.exp(ratio * (mel - knee / step))
        return np.where(mel < knee / step, mel * step, above)

    top = knee / step + np.log(SAMPLE_RATE / 2 / knee) / ratio
    edges = to_hertz(np.linspace(0.0, top, mels + 2))
    bins = np.linspace(0.0, SAMPLE_RATE / 2, _FFT // 2 + 1)
    slopes = edges[:, None] - bins[None, :]
    widths = np.diff(edges)
    rising = -slopes[:-2] / widths[:-1, None]
    falling = slopes[2:] / widths[1:, None]
    filters = np.maximum(0.0, np.minimum(rising, falling)) * (2.0 / (edges[2:] - edges[:-2]))[:, None]
    return torch.from_numpy(filters.astype(np.float32))
