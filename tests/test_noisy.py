import io
from pathlib import Path

import numpy as np
import pytest
import soundfile

from pipeline import noisy
from pipeline.core.errors import UserError
from tests.conftest import encode


def tone(hertz: float, seconds: float, level: float = 0.1) -> noisy.Samples:
    return level * np.sin(2 * np.pi * hertz * np.arange(round(seconds * 16000)) / 16000)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Return a split of two utterances, and a folder with two kinds of noise, one of them of another rate."""
    for name, hertz in (("1-2-0000", 300.0), ("1-2-0001", 500.0)):
        path = tmp_path / f"clean/1/2/{name}.flac"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(tone(hertz, 2.0)))
    (tmp_path / "clean/1/2/1-2.trans.txt").write_text("1-2-0000 A\n1-2-0001 B\n")
    (tmp_path / "noise/audio").mkdir(parents=True)
    (tmp_path / "noise/audio/a.wav").write_bytes(encode(tone(3000.0, 0.5, 0.3), "WAV", 44100))
    (tmp_path / "noise/audio/b.flac").write_bytes(encode(tone(2000.0, 5.0, 0.01)))
    return tmp_path / "clean", tmp_path / "noise"


def heard(path: Path) -> noisy.Samples:
    return np.asarray(soundfile.read(io.BytesIO(path.read_bytes()))[0])


def test_noise_is_as_far_below_the_speech_as_asked_for(folders: tuple[Path, Path], tmp_path: Path) -> None:
    clean, noise = folders
    noisy.main(clean, noise, tmp_path / "out", 10.0, 0)
    assert (tmp_path / "out/1/2/1-2.trans.txt").read_text() == "1-2-0000 A\n1-2-0001 B\n"
    for path in sorted(clean.rglob("*.flac")):
        speech, mixed = heard(path), heard(tmp_path / "out" / path.relative_to(clean))
        rest = mixed - speech
        assert 10 * np.log10(np.square(speech).mean() / np.square(rest).mean()) == pytest.approx(10, abs=0.05)


def test_the_seed_and_the_id_decide(folders: tuple[Path, Path], tmp_path: Path) -> None:
    clean, noise = folders
    for out, seed in (("a", 0), ("b", 0), ("c", 1)):
        noisy.main(clean, noise, tmp_path / out, 10.0, seed)
    one, same, other = ((tmp_path / out / "1/2/1-2-0000.flac").read_bytes() for out in "abc")
    assert one == same != other
    (clean / "1/2/1-2-0001.flac").unlink()
    noisy.main(clean, noise, tmp_path / "a", 10.0, 0)
    assert (tmp_path / "a/1/2/1-2-0000.flac").read_bytes() == one
    assert not (tmp_path / "a/1/2/1-2-0001.flac").exists()


def test_what_would_clip_is_softer_as_a_whole() -> None:
    loud = tone(300.0, 1.0, 0.9)
    mixed = noisy.mix(loud, tone(2000.0, 1.0), 0.0, np.random.default_rng(0))
    assert np.abs(mixed.astype(int)).max() == 2**15 - 1
    spectrum = np.abs(np.fft.rfft(mixed))
    assert spectrum[2000] / spectrum[300] == pytest.approx(1.0, abs=0.01)


def test_silence_stays_as_it_is() -> None:
    rng = np.random.default_rng(0)
    assert not noisy.mix(np.zeros(800), tone(300.0, 1.0), 10.0, rng).any()
    speech = tone(300.0, 0.05)
    assert np.array_equal(noisy.mix(speech, np.zeros(80), 10.0, rng), np.rint(speech * 2**15).astype(np.int16))


@pytest.mark.parametrize("out", ["clean", "clean/1", "noise", "."])
def test_what_is_read_is_never_written_over(out: str, folders: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="one inside the other; write to another folder"):
        noisy.main(*folders, tmp_path / out, 10.0, 0)
    assert len(list(tmp_path.rglob("*.flac"))) == 3


def test_silent_noise_and_odd_numbers_are_refused(folders: tuple[Path, Path], tmp_path: Path) -> None:
    for path in (tmp_path / "noise/audio").iterdir():
        path.write_bytes(encode(np.zeros(800), path.suffix[1:].upper()))
    with pytest.raises(UserError, match="holds noise that is silent"):
        noisy.main(*folders, tmp_path / "out", 10.0, 0)
    for snr, seed in ((float("nan"), 0), (10.0, -1)):
        with pytest.raises(UserError, match="a finite number of dB"):
            noisy.main(*folders, tmp_path / "out", snr, seed)


def test_a_folder_without_audio_is_refused(folders: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty holds no audio"):
        noisy.main(folders[0], tmp_path / "empty", tmp_path / "out", 10.0, 0)
    assert not (tmp_path / "out").exists()
