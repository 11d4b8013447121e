"""Check audio as it was published and turn it into FLAC: decoded once, so that damage shows here and not in a score."""

import hashlib
import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.core.errors import UserError
from pipeline.speech.sources import containers

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

RATE = 16_000
"""Samples a second; what Whisper hears."""

FORMATS = {
    "FLAC": ("PCM_S8", "PCM_16", "PCM_24"),
    "WAV": (wav := ("PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW")),
    "WAVEX": wav,
    "MP3": ("MPEG_LAYER_III",),
    "OGG": ("VORBIS", "OPUS"),
}
"""What is read, as libsndfile calls containers and what is in them."""

RATES = range(4_000, 384_001)
CHANNELS = range(1, 9)
LOUDEST = 16
"""Times full scale; beyond it, samples were not scaled as floating point is."""

CANCELLED = 0.01
"""Power of the mean of channels, as a part of theirs, below which nobody would know what was said: 20 dB."""

BLOCK = 1 << 16  # samples of each channel in memory at once


@dataclass(frozen=True)
class Audio:
    """FLAC bytes of one utterance, 16 kHz mono 16 bit, its length in samples, and what was done for that."""

    flac: bytes
    samples: int
    resampled: bool = False
    mixed_down: bool = False


def encode(samples: "NDArray[np.int16]") -> bytes:
    """Return the FLAC bytes of a vector of samples, RATE a second."""
    return _encode([samples])[0]


def check(name: str, data: bytes) -> Audio:
    """Decode `data`, a file of FORMATS, and return it as FLAC; `name` stands for the utterance in errors.

    FLAC of 16 bit, 16 kHz, mono is passed on byte for byte; WAV of that kind is encoded losslessly. Else channels are
    averaged, then the rate is converted (soxr, high quality), then samples are rounded to 16 bit, and clipped there.
    Raises UserError when it is unreadable, damaged, cut short, empty, of an absurd rate or number of channels, or not
    what the checksum inside the FLAC file says.
    """
    import soundfile

    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            _check_header(name, file)
            resampled, mixed_down = file.samplerate != RATE, file.channels > 1
            blocks = _blocks(name, data, file)
            if (file.format, file.subtype, resampled, mixed_down) == ("FLAC", "PCM_16", False, False):
                flac, samples = data, sum(map(len, blocks))
            else:
                flac, samples = converted(name, blocks, file.samplerate)
    except soundfile.LibsndfileError as error:
        reason = error.error_string.strip(" .")
        raise UserError(f"{name}: the audio cannot be decoded, it is damaged or cut short ({reason})") from None
    if not samples:
        raise UserError(f"{name}: the audio holds no samples")
    return Audio(flac, samples, resampled, mixed_down)


def converted(name: str, blocks: "Iterable[NDArray[np.float32]]", rate: int) -> tuple[bytes, int]:
    """Return blocks of samples, full scale 1 and a column a channel, as `check` does: FLAC, and its samples."""
    return _encode(map(_rounded, _converted(name, blocks, rate)))


def _check_header(name: str, file: Any) -> None:
    if file.subtype not in FORMATS.get(file.format, ()):
        needed = "FLAC, WAV (PCM or float), MP3 or OGG (Vorbis or Opus) is needed"
        raise UserError(f"{name}: the audio is {file.format} {file.subtype}, but {needed}")
    for what, found, known in (("channels", file.channels, CHANNELS), ("samples a second", file.samplerate, RATES)):
        if found not in known:
            raise UserError(f"{name}: the audio has {found:,} {what}, but {known[0]:,} to {known[-1]:,} can be read")


def _blocks(name: str, data: bytes, file: Any) -> "Iterator[NDArray[np.float32]]":
    """Yield the samples, full scale 1, in blocks of one column a channel; raise UserError where they are not sound."""
    import numpy as np

    announced = containers.announced(name, file.format, data, file.frames)
    # libsndfile skips the MD5 of the samples in a FLAC header, bytes 26 to 41 (all zero: the encoder left it out).
    published = data[26:42] if data.startswith(b"fLaC") else b""
    width = {"PCM_S8": 1, "PCM_16": 2, "PCM_24": 3}.get(file.subtype, 0)
    read, digest = 0, hashlib.md5(usedforsecurity=False)
    while len(block := file.read(BLOCK, dtype="float32", always_2d=True)):
        if not np.abs(block).max() <= LOUDEST:  # or not a number
            raise UserError(f"{name}: the audio has samples that are no numbers, or over {LOUDEST} times full scale")
        if any(published):  # the highest bytes of 32-bit integers
            digest.update((block * 2.0**31).astype("<i4").view("u1").reshape(-1, 4)[:, 4 - width :].tobytes())
        read += len(block)
        yield block
    if read < announced:
        raise UserError(f"{name}: the audio is cut short, {read:,} of {announced:,} samples are there")
    if any(published) and published != digest.digest():
        raise UserError(f"{name}: the audio is damaged, its samples do not match the checksum in the FLAC file")


def _mixed(name: str, blocks: "Iterable[NDArray[np.float32]]") -> "Iterator[NDArray[np.float32]]":
    """Yield the mean of the channels; raise UserError where they cancel each other, as one wired the wrong way does."""
    import numpy as np

    apart = together = 0.0
    for block in blocks:
        mono = block.mean(axis=1, dtype=np.float32)
        apart, together = apart + float(np.square(block).mean(axis=1).sum()), together + float(np.square(mono).sum())
        yield mono
    if together < CANCELLED * apart:
        raise UserError(f"{name}: its channels cancel each other, one of them is inverted; keep one of them")


def _converted(name: str, blocks: "Iterable[NDArray[np.float32]]", rate: int) -> "Iterator[NDArray[np.float32]]":
    """Yield the mean of the channels, RATE samples a second."""
    import numpy as np

    mono = _mixed(name, blocks)
    if rate == RATE:
        yield from mono
        return
    import soxr  # late: most corpora need none of it

    stream = soxr.ResampleStream(rate, RATE, 1, dtype="float32", quality="HQ")
    for block in mono:
        yield stream.resample_chunk(block)
    yield stream.resample_chunk(np.empty(0, np.float32), last=True)


def _rounded(samples: "NDArray[np.float32]") -> "NDArray[np.int16]":
    import numpy as np

    return np.clip(np.rint(samples * 2**15), -(2**15), 2**15 - 1).astype(np.int16)


def _encode(blocks: "Iterable[NDArray[np.int16]]") -> tuple[bytes, int]:
    """Return FLAC bytes, and the number of samples."""
    import soundfile

    flac = io.BytesIO()
    with soundfile.SoundFile(flac, "w", RATE, 1, "PCM_16", format="FLAC") as file:
        for block in blocks:
            file.write(block)
        samples = file.frames
    return flac.getvalue(), samples
