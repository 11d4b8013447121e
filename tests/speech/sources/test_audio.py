import io

import numpy as np
import pytest
import soundfile

from pipeline.core.errors import UserError
from pipeline.speech.sources import audio
from tests.conftest import encode, noise

SOUND = noise(2)
FLAC = encode(SOUND)
WAV = encode(SOUND, "WAV")


def flipped(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :]


def test_flac_is_kept_byte_for_byte() -> None:
    assert audio.check("a", FLAC) == audio.Audio(FLAC, 32000)


def test_wav_becomes_flac_of_the_same_samples() -> None:
    checked = audio.check("a", WAV)
    samples, rate = soundfile.read(io.BytesIO(checked.flac), dtype="int16")
    assert (checked.samples, rate) == (32000, 16000)
    np.testing.assert_array_equal(samples, SOUND)


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        pytest.param(
            FLAC[: len(FLAC) // 2],
            "a: the audio cannot be decoded, it is damaged or cut short (Error : flac decoder lost sync)",
            id="cut-short",
        ),
        pytest.param(
            FLAC[:-3],
            "a: the audio cannot be decoded, it is damaged or cut short (Error : flac decoder lost sync)",
            id="cut-at-the-end",
        ),
        pytest.param(
            flipped(FLAC, len(FLAC) // 2),
            "a: the audio cannot be decoded, it is damaged or cut short (Error : unknown error in flac decoder)",
            id="flipped-byte",
        ),
        pytest.param(
            flipped(FLAC, 30),
            "a: the audio is damaged, its samples do not match the checksum in the FLAC file",
            id="wrong-md5",
        ),
        pytest.param(
            b"", "a: the audio cannot be decoded, it is damaged or cut short (Format not recognised)", id="empty"
        ),
        pytest.param(
            b"not audio at all",
            "a: the audio cannot be decoded, it is damaged or cut short (Format not recognised)",
            id="no-audio",
        ),
        pytest.param(WAV[:30000], "a: the audio is cut short, 14,978 of 32,000 samples are there", id="wav-cut-short"),
        pytest.param(encode(SOUND[:0], "WAV"), "a: the audio holds no samples", id="no-samples"),
        pytest.param(
            encode(np.stack([SOUND, SOUND], axis=1)), "a: the audio has 2 channels, but one is needed", id="stereo"
        ),
        pytest.param(
            encode(SOUND, rate=8000), "a: the audio has 8,000 samples a second, but 16,000 are needed", id="8kHz"
        ),
        pytest.param(
            encode(SOUND / 4000, "WAV", subtype="FLOAT"),
            "a: the audio is WAV FLOAT, but FLAC or 16-bit WAV is needed",
            id="float",
        ),
        pytest.param(
            encode(SOUND, "OGG", subtype="VORBIS"),
            "a: the audio is OGG VORBIS, but FLAC or 16-bit WAV is needed",
            id="ogg",
        ),
        pytest.param(
            FLAC[:21] + bytes([FLAC[21] & 0xF0]) + bytes(4) + FLAC[26:],
            "a: the FLAC header does not say how long the audio is; encode it again",
            id="no-length",
        ),
    ],
)
def test_broken_audio_is_one_sentence(data: bytes, sentence: str) -> None:
    with pytest.raises(UserError) as error:
        audio.check("a", data)
    assert str(error.value) == sentence
