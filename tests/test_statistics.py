import numpy as np
import pytest

from pipeline import statistics


def test_every_resample_draws_as_many_units_as_there_are() -> None:
    blocks = list(statistics.draws(units=7, resamples=300, seed=0))
    assert [block.shape for block in blocks] == [(256, 7), (44, 7)]
    assert all((block.sum(axis=1) == 7).all() for block in blocks)


def test_draws_are_the_same_for_the_same_seed_however_many_are_taken() -> None:
    few, many, other = (
        np.concatenate(list(statistics.draws(units=5, resamples=resamples, seed=seed)))
        for resamples, seed in ((100, 1), (700, 1), (100, 2))
    )
    assert (few == many[:100]).all()
    assert (few != other).any()


def test_every_unit_is_drawn_equally_often() -> None:
    drawn = np.concatenate(list(statistics.draws(units=4, resamples=10_000, seed=0)))
    assert drawn.mean(axis=0) == pytest.approx([1, 1, 1, 1], abs=0.03)


def test_rate_is_errors_over_words_of_the_whole_and_never_divides_by_zero() -> None:
    assert statistics.rate(np.array([3, 0, 2]), np.array([4, 5, 0])).tolist() == [75.0, 0.0, 200.0]


def test_bootstrap_of_two_utterances_takes_the_three_values_there_are() -> None:
    # Utterances of 1 error in 1 word, and 0 in 3: drawn as both, one and the other, one twice.
    rates = statistics.bootstrap(np.array([[1, 0]]), np.array([1, 3]), resamples=10_000, seed=0)
    values, counts = np.unique(rates, return_counts=True)
    assert values.tolist() == [0.0, 25.0, 100.0]
    assert counts / 10_000 == pytest.approx([0.25, 0.5, 0.25], abs=0.02)


def test_bootstrap_gives_the_standard_error_that_theory_gives() -> None:
    # For utterances of the same length, a corpus rate is a mean: its standard error is s / sqrt(n).
    wrong = np.random.default_rng(5).poisson(1.0, size=400)
    rates = statistics.bootstrap(wrong[None], np.full(400, 10), resamples=4_000, seed=0)[0]
    assert rates.std() == pytest.approx(100 * (wrong / 10).std() / 20, rel=0.05)
    assert rates.mean() == pytest.approx(100 * (wrong / 10).mean(), rel=0.01)


def test_systems_share_the_draws_so_that_equal_errors_differ_by_exactly_nothing() -> None:
    wrong = np.random.default_rng(0).poisson(1.0, size=50)
    words = np.random.default_rng(1).integers(1, 30, size=50)
    one, other, worse = statistics.bootstrap(np.array([wrong, wrong, wrong + 1]), words, resamples=500, seed=3)
    assert statistics.interval(other - one) == (0.0, 0.0)
    assert statistics.p_value(other - one) == 1.0
    assert (worse > one).all()
    assert (statistics.bootstrap(wrong[None], words, resamples=500, seed=3)[0] == one).all()


def test_interval_holds_the_middle_95_per_cent() -> None:
    assert statistics.interval(np.arange(1001.0)) == (25.0, 975.0)


@pytest.mark.parametrize(
    ("differences", "p"),
    [
        ([1.0] * 99, 0.02),  # 2 x (0 + 1) / 100
        ([-1.0] * 99, 0.02),
        ([0.0] * 99, 1.0),
        ([-1.0] * 9 + [1.0] * 90, 0.2),  # 2 x (9 + 1) / 100
        ([-1.0] * 4 + [0.0] * 5 + [1.0] * 90, 0.2),  # zero speaks for no difference
        ([-1.0] * 50 + [1.0] * 49, 1.0),
    ],
)
def test_p_value(differences: list[float], p: float) -> None:
    assert statistics.p_value(np.array(differences)) == pytest.approx(p)


@pytest.mark.parametrize("below", [0, 10, 24, 25, 26, 60])
def test_p_value_calls_no_difference_significant_whose_interval_holds_zero(below: int) -> None:
    differences = np.concatenate([np.full(below, -1.0), np.full(1000 - below, 1.0)])
    low, high = statistics.interval(differences)
    assert not (statistics.p_value(differences) < statistics.SIGNIFICANT and low <= 0 <= high)


@pytest.mark.parametrize(
    ("p_values", "corrected"),
    [
        ([], []),
        ([0.04], [0.04]),
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),
        ([0.5, 0.6], [1.0, 1.0]),
        ([0.02, 0.02, 0.02], [0.06, 0.06, 0.06]),
    ],
)
def test_holm(p_values: list[float], corrected: list[float]) -> None:
    assert statistics.holm(p_values) == pytest.approx(corrected)
