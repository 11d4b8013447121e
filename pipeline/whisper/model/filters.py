"""The mel filters that every Whisper hears through."""

import functools

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_HIGHEST, _BINS = 8000.0, 201
"""The highest frequency in Hz, and the frequencies of a spectrum up to it: of 16 kHz, 400 samples at a time."""


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

    top = knee / step + np.log(_HIGHEST / knee) / ratio
    edges = to_hertz(np.linspace(0.0, top, mels + 2))
    bins = np.linspace(0.0, _HIGHEST, _BINS)
    slopes = edges[:, None] - bins[None, :]
    widths = np.diff(edges)
    rising = -slopes[:-2] / widths[:-1, None]
    falling = slopes[2:] / widths[1:, None]
    filters = np.maximum(0.0, np.minimum(rising, falling)) * (2.0 / (edges[2:] - edges[:-2]))[:, None]
    return torch.from_numpy(filters.astype(np.float32))
