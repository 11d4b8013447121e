"""What Python calls: the same as the commands, as data."""

from pathlib import Path

import pytest

import whisper_ptq
from tests import made
from tests.made import FP32, line


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in a project that keeps one study, `kept`, of fp32 and a smaller variant."""
    small = line("small", 0.1, -0.2, 0.4, "no worse", no_worse_than=0.5, size_mb=50.0, backend="hqq")
    (tmp_path / "studies").mkdir()
    made.write(tmp_path / "studies/kept", [FP32, small])
    monkeypatch.chdir(tmp_path)


def test_all_public_names_are_there_and_say_what_they_do() -> None:
    for name in whisper_ptq.__all__:
        assert getattr(whisper_ptq, name).__doc__, name


def test_a_choice_is_a_line_of_the_results() -> None:
    found = whisper_ptq.recommend(max_mb=60, study="kept")
    assert (found.variant, found.size_mb, found.no_worse_than) == ("small", 50.0, 0.5)
    assert whisper_ptq.recommend(study="kept").variant == "fp32"
    assert [*whisper_ptq.results("kept").variant] == ["fp32", "small"]


def test_mistakes_are_user_errors() -> None:
    with pytest.raises(whisper_ptq.UserError, match="nothing fits 1 MB"):
        whisper_ptq.recommend(max_mb=1, study="kept")
    with pytest.raises(whisper_ptq.UserError, match="did you mean 'kept'"):
        whisper_ptq.results("kapt")
    with pytest.raises(whisper_ptq.UserError, match=r"results\.csv is not here"):
        whisper_ptq.recommend()
    with pytest.raises(whisper_ptq.UserError, match=r"params\.yaml"):
        whisper_ptq.compare("fp32", "small")
