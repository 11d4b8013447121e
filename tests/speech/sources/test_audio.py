import io
import struct
from typing import Any

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from pipeline.core.errors import UserError
from pipeline.speech.sources import audio
from tests.conftest import encode, noise

SOUND = noise(2)
FLAC = encode(SOUND)
WAV = encode(SOUND, "WAV")
DEEP = encode(SOUND.astype(np.int32) << 16, subtype="PCM_24")
OGG = encode(SOUND, "OGG", subtype="VORBIS")
ID3 = b"ID3\4\0\0\0\0\0\12" + bytes(10)


def flipped(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :]


def patched(place: int, layout: str, value: int) -> bytes:
    """Return WAV with another number in its header."""
    data = bytearray(WAV)
    struct.pack_into(layout, data, place, value)
    return bytes(data)


def decoded(data: bytes) -> NDArray[np.int16]:
    """Return the samples of what `check` makes of a file, after checking its format."""
    checked = audio.check("a", data)
    with soundfile.SoundFile(io.BytesIO(checked.flac)) as file:
        assert (file.format, file.subtype, file.samplerate, file.channels) == ("FLAC", "PCM_16", 16_000, 1)
        samples: NDArray[np.int16] = file.read(dtype="int16")
    assert len(samples) == checked.samples
    return samples


def tone(rate: int, seconds: float = 1.0) -> NDArray[np.float64]:
    """Return 440 Hz, at a quarter of full scale."""
    wave: NDArray[np.float64] = 0.25 * np.sin(2 * np.pi * 440 * np.arange(round(rate * seconds)) / rate)
    return wave


def mp3(mode: str, sound: NDArray[Any] = SOUND) -> bytes:
    """Return an MP3 without the first frame, in which the encoder tells the length."""
    file = io.BytesIO()
    soundfile.write(file, sound, 16_000, format="MP3", subtype="MPEG_LAYER_III", bitrate_mode=mode)
    data = file.getvalue()
    return data[data.index(data[:2], 8) :]


def test_flac_is_kept_byte_for_byte() -> None:
    assert audio.check("a", FLAC) == audio.Audio(FLAC, 32000)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        pytest.param(WAV, SOUND, id="wav"),
        pytest.param(encode(SOUND, "WAVEX"), SOUND, id="extensible"),
        pytest.param(patched(4, "<I", 0), SOUND, id="riff-size-zero"),
        pytest.param(encode(SOUND / 2.0**15, "WAV", subtype="FLOAT"), SOUND, id="float"),
        pytest.param(encode(SOUND / 2.0**15, "WAV", subtype="DOUBLE"), SOUND, id="double"),
        pytest.param(encode(SOUND.astype(np.int32) << 16, "WAV", subtype="PCM_24"), SOUND, id="24-bit"),
        pytest.param(encode(SOUND.astype(np.int32) << 16, "WAV", subtype="PCM_32"), SOUND, id="32-bit"),
        pytest.param(DEEP, SOUND, id="24-bit-flac"),
        pytest.param(encode(SOUND >> 8 << 8, "WAV", subtype="PCM_U8"), SOUND >> 8 << 8, id="8-bit"),
        pytest.param(encode(SOUND >> 8 << 8, subtype="PCM_S8"), SOUND >> 8 << 8, id="8-bit-flac"),
        pytest.param(encode(np.stack([SOUND, SOUND], axis=1)), SOUND, id="two-alike"),
        pytest.param(encode(np.stack([SOUND * 0, SOUND >> 1 << 1], axis=1)), SOUND >> 1, id="one-silent"),
    ],
)
def test_what_16_bit_can_hold_comes_through_sample_by_sample(data: bytes, expected: NDArray[np.int16]) -> None:
    """Recorders write 24-bit, float and stereo files, which readers of 16 bit refuse or take for noise."""
    np.testing.assert_array_equal(decoded(data), expected)


@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_channels_that_cancel_each_other_are_one_sentence(rate: int) -> None:
    """Stereo with one channel wired the wrong way: mixed down, it is silence."""
    data = encode(np.stack([tone(rate), -tone(rate)], axis=1), "WAV", rate)
    with pytest.raises(UserError) as error:
        audio.check("a", data)
    assert str(error.value) == "a: its channels cancel each other, one of them is inverted; keep one of them"
    apart = np.random.default_rng(0).normal(0, 0.1, (rate, 2))
    assert audio.check("a", encode(apart, "WAV", rate)).mixed_down


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 44_100, 48_000])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize(
    ("kind", "subtype"), [("FLAC", "PCM_16"), ("WAV", "PCM_24"), ("WAVEX", "FLOAT"), ("MP3", "MPEG_LAYER_III")]
)
def test_other_rates_sound_the_same(rate: int, channels: int, kind: str, subtype: str) -> None:
    """Audio of another rate that is taken for 16 kHz is too slow, too low, and transcribed as nonsense."""
    data = encode(np.stack([tone(rate)] * channels, axis=1), kind, rate, subtype)
    checked = audio.check("a", data)
    assert (checked.resampled, checked.mixed_down) == (True, channels == 2)
    samples = decoded(data) / 2**15
    assert len(samples) == 16_000
    inner = slice(1_000, -1_000)  # filters ring at the ends
    np.testing.assert_allclose(samples[inner], tone(16_000)[inner], atol=0.03 if kind == "MP3" else 1e-4)


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_ogg_is_read(subtype: str) -> None:
    """Voice messages come as OGG."""
    checked = audio.check("a", encode(tone(48_000), "OGG", 48_000, subtype))
    assert (checked.samples, checked.resampled, checked.mixed_down) == (16_000, True, False)


def test_telephone_speech_is_read() -> None:
    """Call centres keep 8 kHz mu-law in WAV."""
    samples = decoded(encode(tone(8_000), "WAV", 8_000, "ULAW")) / 2**15
    np.testing.assert_allclose(samples[1_000:-1_000], tone(16_000)[1_000:-1_000], atol=0.02)


@pytest.mark.parametrize(
    ("sound", "subtype", "rate"),
    [
        (np.array([1.5, -1.5, 1.0, -1.0] * 100), "FLOAT", 16_000),
        (np.array([2**31 - 1, -(2**31)] * 200, dtype=np.int32), "PCM_32", 16_000),
        (np.repeat([0.999, -0.999], 400), "FLOAT", 48_000),  # a filter overshoots at the edge
    ],
    ids=["float", "32-bit", "overshoot"],
)
def test_what_is_too_loud_for_16_bit_is_clipped(sound: NDArray[Any], subtype: str, rate: int) -> None:
    """A sample over full scale that wraps goes from the loudest to the opposite: a loud crack."""
    samples = decoded(encode(sound, "WAV", rate, subtype))
    assert (samples.max(), samples.min()) == (2**15 - 1, -(2**15))
    if rate == 16_000:
        assert [sample > 0 for sample in samples] == [sample > 0 for sample in sound]


def test_blocks_leave_no_seam_and_every_run_makes_the_same_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Audio that is resampled piece by piece clicks where the pieces meet."""
    data = encode(np.stack([noise(3, 1), noise(3, 2)], axis=1), "WAV", 44_100)
    whole = audio.check("a", data)
    assert audio.check("a", data) == whole
    monkeypatch.setattr(audio, "BLOCK", 1_000)
    assert audio.check("a", data) == whole


@pytest.mark.parametrize(
    ("mode", "parts", "read"),
    [
        ("CONSTANT", (0, 1), True),
        ("VARIABLE", (0, 1), True),  # a low bit rate first: the guess is too long
        ("VARIABLE", (1, 0), False),
    ],
)
def test_an_mp3_that_does_not_tell_its_length_is_read_whole_or_refused(
    mode: str, parts: tuple[int, int], read: bool
) -> None:
    """The length of an MP3 without a Xing header is guessed from the bit rate of its first frame."""
    data = ID3 + mp3(mode, np.concatenate([noise(4) * part for part in parts])) + b"TAG" + bytes(125)
    if read:
        assert 0 <= audio.check("a", data).samples - 8 * 16_000 < 4 * 576  # frames that the encoder fills up
    else:
        with pytest.raises(UserError) as error:
            audio.check("a", data)
        assert str(error.value) == "a: the MP3 file does not say how long the audio is; encode it again"


def test_memory_holds_no_decoded_copy_of_a_long_recording() -> None:
    """An hour of stereo at 48 kHz is over a gigabyte when it is decoded at once."""
    import tracemalloc

    data = encode(np.stack([noise(180)] * 2, axis=1), "WAV", 48_000)
    audio.check("a", encode(SOUND, rate=48_000))  # imports
    tracemalloc.start()
    audio.check("a", data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < len(data)


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
        pytest.param(WAV[:30000], "a: the audio is cut short, 29,956 of 64,000 bytes are there", id="wav-cut-short"),
        pytest.param(encode(SOUND[:0], "WAV"), "a: the audio holds no samples", id="no-samples"),
        pytest.param(
            flipped(DEEP, 30),
            "a: the audio is damaged, its samples do not match the checksum in the FLAC file",
            id="wrong-md5-of-24-bit",
        ),
        pytest.param(
            encode(SOUND, "AIFF"),
            "a: the audio is AIFF PCM_16, but FLAC, WAV (PCM or float), MP3 or OGG (Vorbis or Opus) is needed",
            id="aiff",
        ),
        pytest.param(
            encode(np.stack([SOUND] * 9, axis=1), "WAV"),
            "a: the audio has 9 channels, but 1 to 8 can be read",
            id="channels",
        ),
        pytest.param(
            patched(24, "<I", 999_999_999),
            "a: the audio has 999,999,999 samples a second, but 4,000 to 384,000 can be read",
            id="fast",
        ),
        pytest.param(
            patched(24, "<I", 1), "a: the audio has 1 samples a second, but 4,000 to 384,000 can be read", id="slow"
        ),
        pytest.param(
            patched(24, "<I", 0),
            "a: the audio cannot be decoded, it is damaged or cut short (Internal error : SF_INFO struct incomplete)",
            id="rate-zero",
        ),
        pytest.param(
            patched(22, "<H", 0),
            "a: the audio cannot be decoded, it is damaged or cut short (Channel count is zero)",
            id="channels-zero",
        ),
        pytest.param(
            patched(34, "<H", 7), "a: the audio cannot be decoded, its WAV header is damaged", id="7-bit-in-16"
        ),
        pytest.param(
            patched(40, "<I", 0xFFFFFFFF),
            "a: the WAV header does not say how long the audio is; encode it again",
            id="wav-from-a-pipe",
        ),
        pytest.param(patched(40, "<I", 0), "a: the audio holds no samples", id="wav-never-closed"),
        pytest.param(
            encode(np.array([0.5, np.nan]), "WAV", subtype="FLOAT"),
            "a: the audio has samples that are no numbers, or over 16 times full scale",
            id="not-a-number",
        ),
        pytest.param(
            encode(SOUND.astype(float), "WAV", subtype="FLOAT"),
            "a: the audio has samples that are no numbers, or over 16 times full scale",
            id="float-not-scaled",
        ),
        pytest.param(encode(SOUND[:1], "WAV", 48_000), "a: the audio holds no samples", id="nothing-at-16-kHz"),
        pytest.param(OGG[:-100], "a: the audio is cut short, its last OGG page is not whole", id="ogg-cut-short"),
        pytest.param(
            flipped(OGG, len(OGG) - 100), "a: the audio is damaged, an OGG page does not match its checksum", id="ogg"
        ),
        pytest.param(
            encode(SOUND, "MP3", subtype="MPEG_LAYER_III")[:5000],
            "a: the audio is cut short, 17,327 of 32,000 samples are there",
            id="mp3-cut-short",
        ),
        pytest.param(
            mp3("CONSTANT")[:-2000] + bytes(2000),
            "a: the audio is damaged, 1,872 bytes are no frames of MP3",
            id="mp3-with-zeros",
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
