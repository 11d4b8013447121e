import itertools
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from pipeline.speech import corpus
from pipeline.whisper.inference import mel
from pipeline.whisper.inference.mel import SAMPLE_RATE, Samples
from pipeline.whisper.model import filters
from tests.conftest import noise


def sound(seconds: float, seed: int = 0) -> Samples:
    return (noise(seconds, seed) / 32768).astype(np.float32)


def windows(whole: Samples) -> list[Samples]:
    """Return the windows that sound is cut into."""
    return [whole[start:end] for start, end in mel.windows(lambda start, end: whole[start:end], len(whole))]


def features_of_transformers(batch: list[Samples], mels: int) -> torch.Tensor:
    from transformers import WhisperFeatureExtractor

    extractor = WhisperFeatureExtractor(feature_size=mels)
    extracted: torch.Tensor = extractor(batch, sampling_rate=SAMPLE_RATE, return_tensors="pt").input_features
    return extracted


@pytest.mark.parametrize("mels", [80, 128])
def test_filters_are_those_of_transformers(mels: int) -> None:
    from transformers.audio_utils import mel_filter_bank

    expected = mel_filter_bank(201, mels, 0.0, 8000.0, SAMPLE_RATE, norm="slaney", mel_scale="slaney").T
    assert filters.mel_filters(mels).shape == (mels, 201)
    np.testing.assert_allclose(filters.mel_filters(mels).numpy(), expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("mels", [80, 128])
def test_features_are_those_of_transformers(mels: int) -> None:
    tone = (0.5 * np.sin(2 * np.pi * 440 * np.arange(5 * SAMPLE_RATE) / SAMPLE_RATE)).astype(np.float32)
    batch = [sound(30), sound(0.01, seed=1), tone, np.zeros(SAMPLE_RATE, np.float32)]
    found = mel.log_mel(batch, mels)
    assert (found.shape, found.dtype) == ((4, mels, 3000), torch.float32)
    torch.testing.assert_close(found, features_of_transformers(batch, mels), rtol=0, atol=1e-6)


def test_features_of_speech_are_those_of_transformers(shared_speech: Path) -> None:
    files = sorted(shared_speech.glob("test-other/*/*/*.flac"))[:20:4]
    batch = [soundfile.read(file, dtype="float32")[0] for file in files]
    torch.testing.assert_close(mel.log_mel(batch, 80), features_of_transformers(batch, 80), rtol=0, atol=1e-6)


def test_features_do_not_depend_on_the_batch() -> None:
    batch = [sound(3), sound(29, seed=1)]
    together = mel.log_mel(batch, 80)
    assert torch.equal(together[0], mel.log_mel(batch[:1], 80)[0])
    assert torch.equal(together[1], mel.log_mel(batch[1:], 80)[0])


def test_features_of_silence_are_finite() -> None:
    # log10 of the floor 1e-10 is -10, the maximum too, and (-10 + 4) / 4 = -1.5
    assert torch.equal(mel.log_mel([np.zeros(16000, np.float32)], 80), torch.full((1, 80, 3000), -1.5))


@pytest.mark.parametrize("seconds", [0.0, 0.5, 29.99, 30.0])
def test_sound_up_to_30_seconds_is_one_window(seconds: float) -> None:
    whole = sound(seconds)
    (window,) = windows(whole)
    np.testing.assert_array_equal(window, whole)


@pytest.mark.parametrize(("seconds", "pauses"), [(31, [14]), (45, [20.5]), (59, [29.2]), (100, [52.0, 24.0, 80.0])])
def test_longer_sound_is_cut_in_its_pauses(seconds: int, pauses: list[float]) -> None:
    whole = sound(seconds)
    for pause in pauses:
        whole[round(pause * SAMPLE_RATE) : round((pause + 0.5) * SAMPLE_RATE)] = 0
    cut = windows(whole)
    np.testing.assert_array_equal(np.concatenate(cut), whole)
    ends = np.cumsum([len(window) for window in cut])[:-1] / SAMPLE_RATE
    assert len(ends) == len(pauses)
    for end, pause in zip(ends, sorted(pauses), strict=True):
        assert pause < end < pause + 0.5


@pytest.mark.parametrize("seconds", [30.0001, 59.9, 60.1, 240.0, 1000.0])
def test_nothing_is_lost_and_no_window_is_too_long(seconds: float) -> None:
    whole = sound(seconds)
    cut = windows(whole)
    np.testing.assert_array_equal(np.concatenate(cut), whole)
    assert max(len(window) for window in cut) <= 30 * SAMPLE_RATE
    assert min(len(window) for window in cut) >= 10 * SAMPLE_RATE


def test_a_long_recording_is_read_in_blocks() -> None:
    """Memory that grows with the recording: an hour, of which no more than a minute is read at once."""
    whole = np.tile(sound(60), 60)
    whole[len(whole) // 2 + 1600 :][:320] = 0
    asked: list[int] = []

    def read(start: int, end: int) -> Samples:
        asked.append(end - start)
        return whole[start:end]

    spans = mel.windows(read, len(whole))
    assert max(asked) == 60 * SAMPLE_RATE
    assert (spans[0][0], spans[-1][1]) == (0, len(whole))
    assert all(end == start for (_, end), (start, _) in itertools.pairwise(spans))
    assert max(end - start for start, end in spans) <= mel.WINDOW
    # The middle fifth is read in twelve blocks, and the one quiet place in it found.
    assert any(abs(start - len(whole) // 2 - 1760) <= 320 for start, _ in spans)


@pytest.mark.parametrize("positions", [50, 500])
def test_features_of_a_shorter_window_are_those_of_transformers(positions: int) -> None:
    """A model of windows of another length than 30 s."""
    from transformers import WhisperFeatureExtractor

    batch, longest = [sound(0.5), sound(1.0, seed=1)], mel.window(positions)
    extractor = WhisperFeatureExtractor(chunk_length=positions // 50)
    expected = extractor(batch, sampling_rate=SAMPLE_RATE, return_tensors="pt").input_features
    found = mel.log_mel(batch, 80, longest)
    assert found.shape == (2, 80, 2 * positions)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_speech_is_cut_between_words(sample: list[corpus.Utterance]) -> None:
    """Two utterances with half a second between them: the cut falls there, not in a word."""
    first, second = (corpus.samples(utterance) for utterance in sample[:3:2])
    room = np.zeros(SAMPLE_RATE // 2, np.float32)
    speech = np.concatenate([*[first] * 3, room, *[second] * 3])
    assert len(speech) > mel.WINDOW
    cut = len(windows(speech)[0])
    assert len(first) * 3 <= cut <= len(first) * 3 + len(room)
