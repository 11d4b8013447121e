"""Check audio as it was published and turn it into FLAC: decoded once, so that damage shows here and not in a score."""

import hashlib
import io
import wave
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.core.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

RATE = 16_000
"""Samples a second; what Whisper hears."""


@dataclass(frozen=True)
class Audio:
    """FLAC bytes of one utterance, 16 kHz mono, and its length in samples."""

    flac: bytes
    samples: int


def encode(samples: "NDArray[np.int16]") -> bytes:
    """Return the FLAC bytes of a vector of samples, RATE a second."""
    import soundfile

    flac = io.BytesIO()
    soundfile.write(flac, samples, RATE, format="FLAC", subtype="PCM_16")
    return flac.getvalue()


def check(name: str, data: bytes) -> Audio:
    """Decode `data` (FLAC, or 16-bit WAV) and return it as FLAC; `name` stands for the utterance in errors.

    FLAC is passed on byte for byte, WAV is encoded losslessly. Raises UserError when it is unreadable, cut short,
    empty, not mono, not 16 kHz, or not what the checksum inside the FLAC file says.
    """
    import soundfile

    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            _check_shape(name, file.format, file.subtype, file.samplerate, file.channels, file.frames)
            # libsndfile clips the length in a WAV header to what is there, so a cut file would look whole.
            announced = _announced(name, data) if file.format == "WAV" else file.frames
            kind, subtype, samples = file.format, file.subtype, file.read(dtype="int16")
    except soundfile.LibsndfileError as error:
        reason = error.error_string.strip(" .")
        raise UserError(f"{name}: the audio cannot be decoded, it is damaged or cut short ({reason})") from None
    if len(samples) < announced:
        raise UserError(f"{name}: the audio is cut short, {len(samples):,} of {announced:,} samples are there")
    if kind == "WAV":
        return Audio(encode(samples), len(samples))
    # libsndfile skips the MD5 of the samples in a FLAC header, bytes 26 to 41 (all zero: the encoder left it out).
    digest = hashlib.md5(samples.tobytes(), usedforsecurity=False).digest()
    if data.startswith(b"fLaC") and subtype == "PCM_16" and any(data[26:42]) and data[26:42] != digest:
        raise UserError(f"{name}: the audio is damaged, its samples do not match the checksum in the FLAC file")
    return Audio(data, len(samples))


def _check_shape(name: str, kind: str, subtype: str, rate: int, channels: int, announced: int) -> None:
    if kind not in ("FLAC", "WAV") or (kind == "WAV" and subtype != "PCM_16"):
        raise UserError(f"{name}: the audio is {kind} {subtype}, but FLAC or 16-bit WAV is needed")
    if channels != 1:
        raise UserError(f"{name}: the audio has {channels} channels, but one is needed")
    if rate != RATE:
        raise UserError(f"{name}: the audio has {rate:,} samples a second, but {RATE:,} are needed")
    if announced < 1:
        raise UserError(f"{name}: the audio holds no samples")
    if announced > 1 << 40:
        raise UserError(f"{name}: the FLAC header does not say how long the audio is; encode it again")


def _announced(name: str, data: bytes) -> int:
    try:
        with wave.open(io.BytesIO(data)) as file:
            return int(file.getnframes())
    except (wave.Error, EOFError):
        raise UserError(f"{name}: the audio cannot be decoded, its WAV header is damaged") from None
