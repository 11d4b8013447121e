from pathlib import Path

import numpy as np
import pytest

from pipeline import download, prepare
from pipeline.core.errors import UserError
from pipeline.speech import corpus
from tests import toy
from tests.conftest import Project, encode, noise


def test_samples_are_float32_between_minus_one_and_one() -> None:
    sound = noise(0.1)
    samples = corpus.samples(corpus.Utterance("a", "test", "1", 0.1, "TEXT", encode(sound)))
    assert samples.dtype == np.float32
    np.testing.assert_array_equal(samples, sound / np.float32(32768))


def test_nothing_prepared_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        list(corpus.read(tmp_path / "corpus"))
    assert str(error.value) == f"{tmp_path}/corpus holds no prepared speech; run 'python -m pipeline.prepare' first"


def test_a_damaged_shard_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "00000.parquet").write_bytes(b"PAR1 damaged PAR1")
    with pytest.raises(UserError, match=r"00000.parquet cannot be read \(.+\); run 'python -m pipeline.prepare' again"):
        list(corpus.read(tmp_path))


def test_real_speech_comes_through_unchanged(tmp_project: Project, shared_speech: Path) -> None:
    """Both scored splits and calibration audio, from the folder to the reader, byte for byte."""
    tmp_project.set(
        corpus="mine",
        corpora__mine={"source": "directory", "path": str(shared_speech), "splits": ["test-other", "test-clean"]},
        calibration={"corpus": "mine", "split": "train-clean-100", "utterances": 8},
    )
    download.main()
    prepare.main()
    found = list(corpus.read(corpus.CORPUS))
    assert sum(map(corpus.count, corpus.shards(corpus.CORPUS))) == len(found) == 140
    assert [(u.split, u.id) for u in found] == sorted((u.split, u.id) for u in found)
    for utterance in found:
        speaker, chapter, _ = utterance.id.split("-")
        folder = shared_speech / utterance.split / speaker / chapter
        assert utterance.flac == (folder / f"{utterance.id}.flac").read_bytes()
        assert f"{utterance.id} {utterance.text}\n" in (folder / f"{speaker}-{chapter}.trans.txt").read_text()
        assert utterance.duration == len(corpus.samples(utterance)) / 16000
    minutes = {s: sum(u.duration for u in found if u.split == s) / 60 for s in ("test-clean", "test-other")}
    assert {split: round(m, 1) for split, m in minutes.items()} == {"test-clean": 7.0, "test-other": 8.1}
    calibration = list(corpus.read(corpus.CALIBRATION))
    assert len({u.speaker for u in calibration}) == 8
    assert {u.text for u in calibration} == {""}


def test_some_utterances_are_the_same_ones_every_time(tmp_path: Path) -> None:
    for number in range(3):
        shard = tmp_path / f"test-{number % 2}/{number:05}.parquet"
        toy.speech(shard, f"test-{number % 2}", {f"{number}-{n:02}": 0.01 for n in range(20)})
    every = {utterance.id: utterance for utterance in corpus.read(tmp_path)}
    chosen = corpus.some(tmp_path, 12)
    assert len({utterance.id for utterance in chosen}) == 12
    assert all(utterance == every[utterance.id] for utterance in chosen)
    assert {utterance.id[0] for utterance in chosen} == {"0", "1", "2"}
    assert corpus.some(tmp_path, 12) == chosen
    assert corpus.some(tmp_path, 5) == chosen[:5], "a smaller number takes the first of them"
    assert len(corpus.some(tmp_path, 100)) == 60
