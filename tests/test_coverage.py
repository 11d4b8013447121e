import numpy as np
import pytest

from benchmarks import coverage
from benchmarks.coverage import Corpus

SMALL = Corpus("small", (9, 6, 6, 5, 4, 4, 3, 1, 1, 1), wer=8.0, differences=(2.0,), trials=1)


def test_uneven_shares_utterances_out_without_losing_any() -> None:
    shares = coverage.uneven(4, 100)
    assert shares == (10, 20, 30, 40)
    assert sum(coverage.uneven(33, 2939)) == 2939


@pytest.mark.parametrize("unit", ["utterance", "speaker"])
def test_simulated_corpora_have_the_truth_on_average(unit: str) -> None:
    rng = np.random.default_rng(1)
    corpora = [coverage.simulate(SMALL, 2.0, unit, rng)[:2] for _ in range(3000)]
    fp32, variant = sum(errors.sum(axis=1) for errors, _ in corpora) / sum(words.sum() for _, words in corpora)
    assert 100 * fp32 == pytest.approx(8.0, abs=0.15)
    assert 100 * (variant - fp32) == pytest.approx(2.0, abs=0.1)


def test_speakers_say_as_many_utterances_as_the_corpus_has_it() -> None:
    errors, words, speakers = coverage.simulate(SMALL, 2.0, "speaker", np.random.default_rng(1))
    assert (errors.shape, words.shape) == ((2, 40), (1, 40))
    assert [speakers.count(f"s{n:02}") for n in range(10)] == [9, 6, 6, 5, 4, 4, 3, 1, 1, 1]


@pytest.mark.parametrize("unit", ["utterance", "speaker"])
def test_intervals_hold_the_truth_as_often_as_they_say(unit: str) -> None:
    """A quick look, at one corpus; `python -m benchmarks.coverage` takes the time to tell 93 from 95 %."""
    held = np.mean([coverage.trial(SMALL, 2.0, unit, seed) for seed in range(300)], axis=0)
    assert 0.91 <= held[0] <= 0.99
    assert 0.91 <= held[1] <= 0.99


@pytest.mark.parametrize(("difference", "wrong"), [(0.0, ["worse", "better"]), (1.0, ["<1.0"])])
def test_verdicts_err_as_rarely_as_they_say(difference: float, wrong: list[str]) -> None:
    found = np.mean([coverage.trial(SMALL, difference, "speaker", seed) for seed in range(300)], axis=0)
    assert sum(found[coverage.COLUMNS.index(name)] for name in wrong) <= 0.09
