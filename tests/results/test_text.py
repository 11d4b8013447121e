import math
from typing import Any

import pytest

from pipeline.results import text
from tests.made import FP32, frame


def row(**changes: Any) -> Any:
    """Return a row of speech by forty speakers."""
    speech = {"utterances": 2620, "speakers": 40, "words": 52576}
    return next(frame(FP32 | speech | changes).itertuples())


@pytest.mark.parametrize(
    ("value", "written"),
    [(0.0, "0.00"), (99.994, "99.99"), (-0.5, "-0.50"), (100.04, "100.0"), (1032.123, "1032")],
)
def test_rates_have_the_decimals_that_tell_anything(value: float, written: str) -> None:
    assert text.number(value) == written


def test_differences_have_a_sign() -> None:
    assert text.change(0.0, -1.236, 171.25) == "+0.00 [-1.24, +171.2]"
    assert text.interval(3.2, 3.7) == "[3.20, 3.70]"


def test_what_is_not_known_is_not_written() -> None:
    assert text.number(math.nan) == text.number(math.nan, "+") == ""
    assert text.change(math.nan, math.nan, math.nan) == ""


def test_speakers_that_are_not_known_are_not_mentioned() -> None:
    assert text.extent(row(speakers=None)) == "2,620 utterances, 52,576 words"


def test_the_extent_of_a_sample_tells_of_how_many() -> None:
    assert math.isnan(row().split_utterances)
    whole = "2,620 utterances of 40 speakers, 52,576 words"
    assert text.extent(row()) == text.extent(row(split_utterances=2620)) == whole
    sample = row(split_utterances=2620, utterances=60, words=1204)
    assert text.extent(sample) == "60 of 2,620 utterances of 40 speakers alike, 1,204 words"
    assert text.extent(row(utterances=5, speakers=1, words=71)) == "5 utterances of 1 speaker, 71 words"


def test_silence_is_told_in_minutes() -> None:
    assert text.extent(row(utterances=36, words=0, minutes=9.64)) == "36 recordings without speech, 9.6 minutes"
