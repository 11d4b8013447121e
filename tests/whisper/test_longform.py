"""Long recordings: no word lost, none twice, and times that fit."""

import csv
import random
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import pytest
import torch

from pipeline.backends import ct2
from pipeline.core.variant import Variant
from pipeline.scoring import normalizers
from pipeline.speech import corpus
from pipeline.speech.corpus import Utterance
from pipeline.speech.sources import audio, media
from pipeline.whisper import longform
from pipeline.whisper.inference import decoding
from pipeline.whisper.inference.decoding import Engine, Vocabulary
from pipeline.whisper.inference.mel import SAMPLE_RATE, Samples
from pipeline.whisper.inference.timestamps import Timestamps
from pipeline.whisper.model import weights
from tests.backends import common
from tests.conftest import SPEECH, noise

LONG = SPEECH.parent / "speech" / "longform-en"
ZERO, WORD = 101, 7
GERMAN = 50


class Ear:
    """An engine that answers each window, by its seconds, and notes what it was asked."""

    kernels = "none"

    def __init__(self, answer: Callable[[float], list[int]], languages: Sequence[int] = ()) -> None:
        self.answer = answer
        self.languages = languages
        self.config: Any = type("Config", (), {"max_source_positions": 1500, "max_target_positions": 448})
        self.asked: list[float] = []
        """The seconds of each window."""
        self.told: list[list[int]] = []

    def decode(
        self,
        sounds: Sequence[Samples],
        vocabulary: Vocabulary,  # noqa: ARG002  # an engine's signature
        most: int,  # noqa: ARG002
        names: Sequence[str],  # noqa: ARG002
        told: Sequence[int],
    ) -> tuple[Sequence[int], list[list[int]]]:
        seconds = [len(sound) / SAMPLE_RATE for sound in sounds]
        self.asked += seconds
        self.told.append(list(told))
        return told or self.languages[: len(sounds)], [self.answer(each) for each in seconds]

    def logits(self, sound: Samples, tokens: list[int], places: int) -> torch.Tensor:
        raise NotImplementedError


def timestamp(seconds: float) -> int:
    return ZERO + round(seconds / 0.02)


def everything(seconds: float) -> list[int]:
    """Say three words a second, from the window's start to its end."""
    return [ZERO, *[WORD] * int(3 * seconds), timestamp(seconds)]


def listen(ear: Ear, sound: "np.ndarray[Any, np.dtype[np.int16]]") -> longform.Transcript:
    class Letters:
        def decode(self, tokens: list[int]) -> str:
            return " ".join("w" for _ in tokens)

    vocabulary = Vocabulary(
        tokenizer=Letters(),  # type: ignore[arg-type]
        prompt=[99],
        end=98,
        suppressed=[],
        suppressed_first=[],
        control=frozenset(range(98, 2000)),
        languages={GERMAN: "de"} if ear.languages else {},
        timestamps=Timestamps(100, 98),
    )
    recording = Utterance("it", "", "", len(sound) / SAMPLE_RATE, "", audio.encode(sound))
    done: list[float] = []
    engine: Engine = ear
    heard = longform.transcribe(engine, recording, vocabulary, "en", 444, 4, done.append)
    assert sum(done) == pytest.approx(recording.duration)
    assert [s.start for s in heard.segments] == sorted(s.start for s in heard.segments)
    assert all(0 <= s.start <= s.end <= recording.duration for s in heard.segments)
    return heard


def test_windows_meet_without_gap_or_overlap() -> None:
    ear = Ear(everything)
    heard = listen(ear, noise(100))
    assert sum(ear.asked) == pytest.approx(100)
    assert max(ear.asked) <= 30
    bounds = [(segment.start, segment.end) for segment in heard.segments]
    assert [end for _, end in bounds[:-1]] == pytest.approx([start for start, _ in bounds[1:]], abs=0.02)
    assert len(heard.text.split()) == pytest.approx(300, abs=len(bounds))
    assert heard.language == "en"


def test_what_follows_a_text_that_ends_early_is_heard_next() -> None:
    def early(seconds: float) -> list[int]:
        return everything(seconds if seconds < 8 else 4.0)

    ear = Ear(early)
    heard = listen(ear, noise(25))
    assert ear.asked == pytest.approx([25, 21, 17, 13, 9, 5])
    assert [segment.start for segment in heard.segments] == pytest.approx([0, 4, 8, 12, 16, 20])


def test_silence_after_a_text_is_left_alone() -> None:
    ear = Ear(lambda _: everything(4.0))
    sound = np.concatenate([noise(4), np.zeros(10 * SAMPLE_RATE, np.int16)])
    listen(ear, sound)
    assert ear.asked == [14]


def test_a_text_too_short_for_its_speech_is_heard_again_in_halves() -> None:
    def skips(seconds: float) -> list[int]:
        return [ZERO, *[WORD] * 5, timestamp(seconds)] if seconds > 10 else everything(seconds)

    ear = Ear(skips)
    heard = listen(ear, noise(28))
    assert len(ear.asked) > 3
    assert len(heard.text.split()) >= 0.95 * 3 * 28
    few = Ear(lambda seconds: [ZERO, WORD, timestamp(seconds)])
    listen(few, noise(28))  # who has no more to say is not asked for ever
    assert min(few.asked) > 3


def test_nothing_is_made_up_of_silence() -> None:
    ear = Ear(everything, languages=[GERMAN] * 9)
    sound = np.concatenate([np.zeros(45 * SAMPLE_RATE, np.int16), noise(12), np.zeros(3 * SAMPLE_RATE, np.int16)])
    heard = listen(ear, sound)
    assert heard.language == "de"  # told by the first window that is not silent
    assert heard.segments
    assert ear.told[0] == []
    nothing = Ear(everything, languages=[GERMAN] * 9)
    assert listen(nothing, np.zeros(70 * SAMPLE_RATE, np.int16)).segments == []
    assert nothing.asked == []


@pytest.mark.parametrize("made_of", [[], [ZERO], [ZERO, timestamp(3)], [ZERO, WORD, WORD]])
def test_odd_texts_come_to_an_end(made_of: list[int]) -> None:
    listen(Ear(lambda _: made_of), noise(9))


def words(texts: Sequence[str], heard: Sequence[str]) -> float:
    """Return the WER, in points."""
    normalize = normalizers.get("english")
    return 100 * float(jiwer.wer([normalize(text) for text in texts], [normalize(text) for text in heard]))


def told(folder: Path, timestamps: bool) -> Vocabulary:
    return Vocabulary.read(folder, "en", "transcribe", timestamps=timestamps)


@pytest.mark.slow
def test_five_minutes_of_joined_utterances_lose_nothing(tiny_en: Path, shared_speech: Path) -> None:
    split = shared_speech / "test-clean"
    lines = [line for file in split.rglob("*.trans.txt") for line in file.read_text().splitlines()]
    said = dict(line.split(" ", 1) for line in lines)
    files = sorted(split.rglob("*.flac"))
    random.Random(1).shuffle(files)
    recordings = [media.read(file) for file in files[:60]]
    ends = np.cumsum([recording.duration for recording in recordings])
    count = int((ends < 300).sum()) + 1
    sound = np.concatenate([(corpus.samples(each) * 2**15).astype(np.int16) for each in recordings[:count]])
    model, plain = weights.load(tiny_en), told(tiny_en, timestamps=False)
    alone = [
        decoding.transcribe(model, [each], plain, 444, 16)[0].line(plain)["pred_text"] for each in recordings[:count]
    ]
    joined = Utterance("joined", "", "", len(sound) / SAMPLE_RATE, "", audio.encode(sound))
    whole = longform.transcribe(model, joined, told(tiny_en, timestamps=True), "en", 444, 16)
    texts = [said[file.stem] for file in files[:count]]
    assert words([" ".join(texts)], [whole.text]) <= words(texts, alone) + 1
    bounds = [(0.0, *ends[: count - 1]), tuple(ends[:count])]
    found = [[segment.start for segment in whole.segments], [segment.end for segment in whole.segments]]
    close = [np.abs(np.subtract(found[n], bound)).min() <= 1 for n in (0, 1) for bound in bounds[n]]
    assert np.mean(close) >= 0.9


@pytest.mark.slow
def test_long_recordings_are_heard_as_well_as_by_ctranslate2(tiny_en: Path, tmp_path: Path) -> None:
    if not LONG.is_dir():
        reason = f"{LONG} is missing: the tests on long recordings are skipped"
        warnings.warn(reason, stacklevel=1)
        pytest.skip(reason)
    variant = Variant(backend="ct2", bits=32, format="float", activations="none")
    theirs = ct2.load(common.saved(tiny_en, variant, tmp_path / "ct2").folder, "cpu")
    with (LONG / "transcripts.tsv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file, delimiter="\t") if "language" not in row["notes"]]
    assert len(rows) == 4
    vocabulary = told(tiny_en, timestamps=True)
    model = weights.load(tiny_en)
    for row in rows:
        recording = media.read(LONG / row["file"])
        ours, beside = (longform.transcribe(m, recording, vocabulary, "en", 444, 16) for m in (model, theirs))
        assert words([row["transcript"]], [ours.text]) <= words([row["transcript"]], [beside.text]) + 1, row["id"]
        times = [time for segment in ours.segments for time in (segment.start, segment.end)]
        assert times == sorted(times)
