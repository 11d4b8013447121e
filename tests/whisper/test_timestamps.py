"""Timestamps: their grammar beside Transformers', and the segments they bound."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.speech import corpus
from pipeline.speech.corpus import Utterance
from pipeline.whisper.inference import decoding, mel
from pipeline.whisper.inference.decoding import Vocabulary
from pipeline.whisper.inference.timestamps import Timestamps
from pipeline.whisper.model import weights

END, SILENT = 10, 17
ZERO = SILENT + 1
"""The timestamp of 0 s."""
TIMES = Timestamps(SILENT, END)
SIZE = SILENT + 1 + 150


def written(rng: np.random.Generator, most: int = 40) -> list[list[int]]:
    """Decode what random logits say, and return the prefixes of that text."""
    row: list[int] = []
    prefixes = [row]
    while len(row) < most:
        scores = torch.from_numpy(rng.normal(size=(1, SIZE)) * 3)
        scores[:, ZERO:] += rng.choice([-4.0, 0.0, 4.0])
        scores[:, END + 1 : ZERO] = float("-inf")  # as every checkpoint's list of suppressed tokens has them
        TIMES.bar(scores, [row])
        token = int(scores.argmax())
        if token == END:
            break
        row = [*row, token]
        prefixes.append(row)
    return prefixes


@pytest.mark.parametrize("seed", range(20))
def test_what_may_follow_is_what_transformers_lets_follow(seed: int) -> None:
    from transformers import GenerationConfig
    from transformers.generation.logits_process import WhisperTimeStampLogitsProcessor

    rng = np.random.default_rng(seed)
    told: dict[str, Any] = {"no_timestamps_token_id": SILENT, "eos_token_id": END, "max_initial_timestamp_index": 50}
    theirs = WhisperTimeStampLogitsProcessor(GenerationConfig(**told), begin_index=1)
    for prefix in written(rng):
        logits = torch.from_numpy(rng.normal(size=(1, SIZE)) * 3)
        ours = logits.clone()
        TIMES.bar(ours, [prefix])
        expected = theirs(torch.tensor([[11, *prefix]]), logits.clone())
        assert ours.isneginf().tolist() == expected.isneginf().tolist(), prefix


@pytest.mark.parametrize("seed", range(20))
def test_texts_stand_between_times_that_do_not_fall(seed: int) -> None:
    text = written(np.random.default_rng(100 + seed))[-1]
    times = [token for token in text if token in TIMES.tokens]
    assert text[0] in TIMES.tokens
    assert text[0] <= ZERO + 50
    assert times == sorted(times)
    assert SILENT not in text
    runs = "".join("t" if token in TIMES.tokens else "w" for token in text)
    assert "ttt" not in runs
    assert "wtw" not in runs


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ([ZERO, 1, 2, ZERO + 50], [(0.0, 1.0, [1, 2])]),
        ([ZERO, 1, ZERO + 50, ZERO + 60, 2, ZERO + 100], [(0.0, 1.0, [1]), (1.2, 2.0, [2])]),
        ([ZERO + 10, 1, 2], [(0.2, 3.0, [1, 2])]),  # cut off: to the end of the window
        ([1, 2], [(0.0, 3.0, [1, 2])]),
        ([ZERO, 1, ZERO + 140, ZERO + 149, 2, ZERO + 149], [(0.0, 2.8, [1]), (2.98, 2.98, [2])]),
        ([ZERO, 1, ZERO + 500], [(0.0, 3.0, [1])]),  # no later than the sound
        ([ZERO, ZERO + 50], []),
        ([], []),
    ],
)
def test_segments_hold_every_word(tokens: list[int], expected: list[tuple[float, float, list[int]]]) -> None:
    found = list(TIMES.segments(tokens, 3.0))
    assert [text for *_, text in found] == [text for *_, text in expected]
    assert [times for *times, _ in found] == [pytest.approx(times) for *times, _ in expected]


@pytest.mark.slow
def test_real_speech_has_the_times_that_transformers_writes(tiny_en: Path, shared_speech: Path) -> None:
    from transformers import WhisperForConditionalGeneration

    files = sorted(shared_speech.glob("test-other/*/*/*.flac"), key=lambda file: file.stat().st_size)[:60:15]
    sounds = [corpus.samples(Utterance(file.stem, "", "", 0.0, "", file.read_bytes())) for file in files]
    vocabulary = Vocabulary.read(tiny_en, "en", "transcribe", timestamps=True)
    ours = [decoding.hear(weights.load(tiny_en), [sound], vocabulary, 200, ["it"])[1][0] for sound in sounds]
    together = decoding.hear(weights.load(tiny_en), sounds, vocabulary, 200, ["it"] * 4)[1]
    assert together == ours
    theirs = WhisperForConditionalGeneration.from_pretrained(tiny_en)
    for sound, row in zip(sounds, ours, strict=True):
        with torch.no_grad():
            found: Any = theirs.generate(mel.log_mel([sound], 80), return_timestamps=True, num_beams=1, do_sample=False)
        assert vocabulary.timestamps is not None
        said = [t for t in found[0].tolist() if t < vocabulary.end or t in vocabulary.timestamps.tokens]
        assert row == said
        assert any(token in vocabulary.timestamps.tokens for token in row)
