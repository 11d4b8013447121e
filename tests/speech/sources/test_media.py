"""Recordings of any kind, made by FFmpeg here."""

from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from pipeline.core.errors import UserError
from pipeline.speech import corpus
from pipeline.speech.sources import audio, media
from tests.conftest import noise

SECONDS = 3.0


def tone(rate: int) -> "NDArray[np.float32]":
    """Return three seconds of 440 Hz, half full scale."""
    return (0.5 * np.sin(2 * np.pi * 440 * np.arange(int(SECONDS * rate)) / rate)).astype(np.float32)


def film(path: Path, codec: str | None, rate: int = 48_000, picture: bool = False) -> Path:
    """Write a file with a track of that tone in stereo, and a black picture where it is asked for."""
    with av.open(path, "w") as container:
        stream: Any = container.add_stream(codec, rate=rate, layout="stereo") if codec else None
        video: Any = container.add_stream("mpeg4", rate=5, width=64, height=64, pix_fmt="yuv420p") if picture else None
        if stream:
            frame = av.AudioFrame.from_ndarray(np.stack([tone(rate)] * 2), "fltp", "stereo")
            frame.sample_rate = rate
            for part in av.AudioResampler(stream.format.name, "stereo", rate).resample(frame):
                container.mux(stream.encode(part))
            container.mux(stream.encode())
        if video:
            black = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), "rgb24")
            container.mux([packet for _ in range(5) for packet in video.encode(black)] + video.encode())
    return path


@pytest.mark.parametrize(
    ("name", "codec", "rate", "picture"),
    [
        ("phone.m4a", "aac", 44_100, False),
        ("film.mp4", "aac", 48_000, True),
        ("meeting.webm", "libopus", 48_000, False),
        ("old.aiff", "pcm_s16be", 11_025, False),
        ("call.mkv", "pcm_s16le", 8_000, True),
    ],
)
def test_what_people_have_becomes_sixteen_kilohertz(
    name: str, codec: str, rate: int, picture: bool, tmp_path: Path
) -> None:
    found = media.read(film(tmp_path / name, codec, rate, picture))
    sound = corpus.samples(found)
    assert found.id == str(tmp_path / name)
    assert found.duration == pytest.approx(SECONDS, abs=0.1)  # coders fill their last frame
    middle = sound[8000:40000]
    spectrum = np.abs(np.fft.rfft(middle))
    assert spectrum.argmax() == 440 * len(middle) / 16_000
    assert np.abs(middle).max() == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("name", ["it.wav", "it.flac"])
def test_what_loses_nothing_is_read_as_for_a_corpus(name: str, tmp_path: Path) -> None:
    soundfile.write(tmp_path / name, noise(2.0), 16_000, subtype="PCM_16")
    expected = audio.check(name, (tmp_path / name).read_bytes())
    assert corpus.samples(media.read(tmp_path / name)).tolist() == pytest.approx(noise(2.0) / 2**15, abs=0)
    assert media.read(tmp_path / name).duration == expected.samples / audio.RATE


def test_what_cannot_be_heard_gets_a_sentence(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "empty.mp3").touch()
    film(tmp_path / "silent.mp4", None, picture=True)
    film(tmp_path / "there.m4a", "aac")
    (tmp_path / "list.m3u8").write_text(f"#EXTM3U\n#EXTINF:3,\nfile://{tmp_path}/there.m4a\n")
    (tmp_path / "folder").mkdir()
    for name, reason in {
        "notes.txt": "it cannot be decoded as audio",
        "empty.mp3": "it is empty",
        "silent.mp4": "it has no audio track",
        "list.m3u8": "it cannot be decoded as audio",  # and what it names is not opened
        "folder": "cannot be read (Is a directory)",
        "missing.wav": "cannot be read (No such file or directory)",
    }.items():
        with pytest.raises(UserError, match=rf"{name}\W.*") as refused:
            media.read(tmp_path / name)
        assert reason in str(refused.value)
    assert capfd.readouterr().err == ""


def test_a_recording_that_is_cut_short_is_heard_as_far_as_it_goes(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "whole.wav", noise(4.0), 16_000, subtype="PCM_16")
    (tmp_path / "cut.wav").write_bytes((tmp_path / "whole.wav").read_bytes()[: 2 * 16_000 * 2])
    assert media.read(tmp_path / "cut.wav").duration == pytest.approx(2.0, abs=0.01)
