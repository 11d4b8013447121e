import math

import numpy as np
import pytest

from pipeline.scoring import statistics
from pipeline.scoring.statistics import Estimate, Ints


def test_every_resample_draws_as_many_units_as_there_are() -> None:
    blocks = list(statistics.draws(units=7, resamples=150, seed=0))
    assert [block.shape for block in blocks] == [(64, 7), (64, 7), (22, 7)]
    assert all((block.sum(axis=1) == 7).all() for block in blocks)


def test_draws_are_the_same_for_the_same_seed_however_many_are_taken() -> None:
    few, many, other = (
        np.concatenate(list(statistics.draws(units=5, resamples=resamples, seed=seed)))
        for resamples, seed in ((100, 1), (700, 1), (100, 2))
    )
    assert (few[:64] == many[:64]).all()
    assert (few != other).any()


def test_every_unit_is_drawn_equally_often() -> None:
    drawn = np.concatenate(list(statistics.draws(units=4, resamples=10_000, seed=0)))
    assert drawn.mean(axis=0) == pytest.approx([1, 1, 1, 1], abs=0.03)


def test_rate_is_errors_over_words_of_the_whole_and_never_divides_by_zero() -> None:
    assert statistics.rate(np.array([3, 0, 2]), np.array([4, 5, 0])).tolist() == [75.0, 0.0, 200.0]


def test_bootstrap_of_two_utterances_takes_the_three_values_there_are() -> None:
    # Utterances of 1 error in 1 word, and 0 in 3: drawn as both, one and the other, one twice.
    rates = statistics.bootstrap(np.array([[1, 0]]), np.array([[1, 3]]), resamples=10_000, seed=0)
    values, counts = np.unique(rates, return_counts=True)
    assert values.tolist() == [0.0, 25.0, 100.0]
    assert counts / 10_000 == pytest.approx([0.25, 0.5, 0.25], abs=0.02)


def test_bootstrap_with_words_of_their_own_is_one_of_each() -> None:
    errors, words = np.array([[1, 0, 2], [3, 1, 0]]), np.array([[4, 5, 6], [9, 8, 7]])
    both = statistics.bootstrap(errors, words, resamples=50, seed=1)
    alone = [statistics.bootstrap(errors[i : i + 1], words[i : i + 1], resamples=50, seed=1)[0] for i in (0, 1)]
    assert (both == alone).all()


def estimates(errors: Ints, words: Ints, resamples: int, seed: int, base: int | None = None) -> list[Estimate]:
    """Return the estimates by utterance."""
    speakers = [None] * errors.shape[1]
    return statistics.by_unit(errors, words, speakers, resamples, seed, base)["utterance"]


def test_estimate_of_two_units() -> None:
    # 10 % and 0 % of equally many words: resamples give 0, 5, 5 or 10 %, whose standard deviation is sqrt(12.5), times
    # sqrt(2 / 1) for having only two units; and two units leave one degree of freedom.
    (estimate,) = estimates(np.array([[1, 0]]), np.array([[10, 10]]), resamples=20_000, seed=0)
    assert (estimate.value, estimate.units, estimate.freedom) == (5.0, 2, 1.0)
    assert estimate.error == pytest.approx(5.0, rel=0.02)


def test_standard_error_is_what_theory_gives() -> None:
    # For utterances of the same length, a corpus rate is a mean: its standard error is s / sqrt(n).
    wrong = np.random.default_rng(5).poisson(1.0, size=(1, 400))
    (estimate,) = estimates(wrong, np.full((1, 400), 10), resamples=10_000, seed=0)
    assert estimate.error == pytest.approx(100 * (wrong / 10).std(ddof=1) / 20, rel=0.03)
    assert estimate.value == pytest.approx(100 * (wrong / 10).mean())


def test_a_difference_is_paired_and_exactly_nothing_between_equal_errors() -> None:
    wrong = np.random.default_rng(0).poisson(1.0, size=50)
    words = np.full((1, 50), 20)
    base, same, worse = estimates(np.array([wrong, wrong, wrong + 1]), words, resamples=500, seed=3, base=0)
    assert (base.value, base.error) == (0.0, 0.0)
    assert (same.value, same.error, same.interval()) == (0.0, 0.0, (0.0, 0.0))
    assert (worse.value, worse.error) == pytest.approx((5.0, 0.0))  # one more error in each 20 words, whoever is drawn


@pytest.mark.parametrize(
    ("words", "freedom"),
    [
        ([20] * 10, 9.0),
        ([100] * 6 + [1] * 4, 604**2 / 60_004 - 1),  # 5.08: six speakers, and four who hardly count
        ([50], 1.0),
        ([1000, 1], 1.0),
        ([0, 0], 1.0),
    ],
)
def test_freedom(words: list[int], freedom: float) -> None:
    assert statistics.freedom(np.array([words])) == pytest.approx([freedom])


def test_interval_is_t_times_the_standard_error_either_way() -> None:
    assert Estimate(2.0, 1.0, units=10, freedom=9.0).interval() == pytest.approx((-0.2622, 4.2622), abs=1e-4)


def test_interval_of_a_rate_is_so_in_its_logarithm() -> None:
    # t x standard error / rate = 2.2622 / 4 = 0.5655, and exp(0.5655) = 1.7604.
    low, high = Estimate(4.0, 1.0, units=10, freedom=9.0).rate_interval()
    assert (low, high) == pytest.approx((4 / 1.7604, 4 * 1.7604), abs=1e-3)
    assert Estimate(0.0, 0.0, units=10, freedom=9.0).rate_interval() == (0.0, 0.0)


@pytest.mark.parametrize(
    ("units", "both", "low"),
    [
        # All eight patterns of 1, 2 and 4: sums of -7, -5, ... 7, each once.
        ([1, 2, 4], 2 / 8, 8 / 8),
        ([-1, 2, 4], 4 / 8, 7 / 8),  # 5
        ([1, 2, -4], 8 / 8, 4 / 8),  # -1
        ([-1, -2, -4], 2 / 8, 1 / 8),
        ([3, 0, 0, 0], 1.0, 1.0),  # a single unit tells nothing, however bad
        ([0, 0], 1.0, 1.0),
        ([1] * 10, 2 / 1024, 1.0),  # ten of ten heads, or ten tails
        ([1, 1, 1, -1], 10 / 16, 15 / 16),
        ([0.1, 0.2, -0.3], 1.0, 5 / 8),  # -0.6, -0.4, -0.2, 0, 0, 0.2, 0.4 and 0.6, rounded
    ],
)
def test_sign_flips_by_hand(units: list[float], both: float, low: float) -> None:
    found = statistics.sign_flips(np.array([units]), seed=0)
    assert [float(each[0]) for each in found] == pytest.approx([both, low])


def test_drawn_signs_are_near_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).normal(0.4, 1.0, (6, 18))
    exact = statistics.sign_flips(values, seed=0)
    monkeypatch.setattr(statistics, "EXACT", 17)
    drawn = statistics.sign_flips(values, seed=0)
    for one, other in zip(exact, drawn, strict=True):
        assert one == pytest.approx(other, abs=0.005)  # three standard errors of 100,000
        assert (one != other).all()
    again, other_seed = statistics.sign_flips(values, seed=0), statistics.sign_flips(values, seed=1)
    assert (again[0] == drawn[0]).all()
    assert (other_seed[0] != drawn[0]).any()


def test_rows_do_not_change_each_other() -> None:
    values = np.random.default_rng(1).normal(size=(5, 30))
    together = statistics.sign_flips(values, seed=3)
    alone = [statistics.sign_flips(values[row : row + 1], seed=3) for row in range(5)]
    assert together[0].tolist() == [float(each[0][0]) for each in alone]
    assert together[1].tolist() == [float(each[1][0]) for each in alone]


def test_sign_test_is_a_fair_coin() -> None:
    assert statistics.sign_test(0, 6) == pytest.approx(2 / 64)
    assert statistics.sign_test(9, 1) == pytest.approx(2 * 11 / 1024)
    assert (statistics.sign_test(3, 3), statistics.sign_test(0, 0)) == (1.0, 1.0)


def test_to_decide_grows_with_the_square_of_the_distance() -> None:
    reach = 2.2622 + 0.8834
    for value, far in (
        (0.5, 0.5),
        (0.0, 1.0),
        (0.2, 0.8),
        (3.0, 3.0),
        (-1.0, 2.0),
    ):  # from the margin of 1.0, or from 0
        found = Estimate(value, 1.0, units=10, freedom=9.0).to_decide(1)
        assert found == pytest.approx((reach / far) ** 2, rel=1e-4)


@pytest.mark.parametrize(
    ("speakers", "tests", "unit"),
    [(9, 1, "utterance"), (10, 18, "speaker"), (10, 35, "utterance"), (11, 35, "speaker"), (40, 35, "speaker")],
)
def test_speakers_decide_where_they_can(speakers: int, tests: int, unit: str) -> None:
    assert statistics.deciding_unit([f"s{n % speakers}" for n in range(120)], tests) == unit


def test_detectable_is_the_sum_of_both_quantiles() -> None:
    estimate = Estimate(0.3, 1.0, units=10, freedom=9.0)
    assert estimate.detectable(tests=1) == pytest.approx(2.2622 + 0.8834, abs=1e-4)
    assert estimate.detectable(tests=25) == pytest.approx(4.2968 + 0.8834, abs=1e-4)  # 0.05 / 25 = 0.002
    assert Estimate(0.0, 0.0, units=10, freedom=9.0).detectable(tests=1) == 0.0


def test_so_large_a_difference_is_found_in_four_corpora_of_five() -> None:
    rng = np.random.default_rng(8)
    needed = Estimate(0.0, 1.0, units=10, freedom=9.0).detectable(tests=1)
    # Means of ten normal deviates of standard deviation sqrt(10), and their own standard errors.
    corpora = rng.normal(needed, math.sqrt(10), size=(20_000, 10))
    t = corpora.mean(axis=1) / (corpora.std(axis=1, ddof=1) / math.sqrt(10))
    assert np.mean(t > 2.2621572) == pytest.approx(statistics.POWER, abs=0.03)


def test_sums_per_group_are_in_the_order_of_their_names() -> None:
    values = np.array([[1, 2, 3, 4], [10, 0, 0, 5]])
    assert statistics.per_group(values, ["b", "a", "b", "c"]).tolist() == [[2, 4, 4], [0, 10, 5]]


def test_speakers_are_drawn_with_everything_they_say() -> None:
    # Each speaker says two utterances of 10 words; both of the first one's are wrong throughout. By utterance there are
    # four units, by speaker two, as in the estimate of two units above (with ten times as many errors).
    errors, words = np.array([[10, 10, 0, 0]]), np.full((1, 4), 10)
    found = statistics.by_unit(errors, words, ["a", "a", "b", "b"], resamples=20_000, seed=0)
    (by_utterance,), (by_speaker,) = found["utterance"], found["speaker"]
    assert (by_utterance.value, by_utterance.units, by_utterance.freedom) == (50.0, 4, 3.0)
    assert by_utterance.error == pytest.approx(50 / math.sqrt(3), rel=0.02)  # 50 / sqrt(4) x sqrt(4 / 3)
    assert (by_speaker.value, by_speaker.units, by_speaker.freedom) == (50.0, 2, 1.0)
    assert by_speaker.error == pytest.approx(50.0, rel=0.02)


@pytest.mark.parametrize("speakers", [["a", None, "b"], ["a", "a", "a"]])
def test_without_two_known_speakers_there_is_nothing_by_speaker(speakers: list[str | None]) -> None:
    assert list(statistics.by_unit(np.array([[1, 0, 0]]), np.array([[9, 9, 9]]), speakers, 10, 0)) == ["utterance"]


@pytest.mark.parametrize(
    ("speakers", "unit"),
    [
        ([f"s{n}" for n in range(10)], "speaker"),
        ([f"s{n}" for n in range(9)] * 2, "utterance"),
        ([*(f"s{n}" for n in range(10)), None], "utterance"),
    ],
)
def test_headline_is_by_speaker_from_ten_on(speakers: list[str | None], unit: str) -> None:
    assert statistics.headline_unit(speakers) == unit


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


@pytest.mark.parametrize(
    ("alignments", "base", "z", "p"),
    [
        (["=S=="], ["=S=="], 0.0, 1.0),
        (["==="], ["==="], 0.0, 1.0),
        ([""], [""], 0.0, 1.0),
        # Three segments with 0, 1 and 0 errors more: mean 1/3, standard deviation sqrt(1/3), over sqrt(3): 1/3.
        (["=S==I====D="], ["=S======D="], 1.0, 0.31731),
        (["=S======D="], ["=S==I====D="], -1.0, 0.31731),
        # 1, 1 and 2: mean 4/3, standard deviation sqrt(1/3). Two right words between the first two divide them.
        (["S==S===SS="], ["=========="], 4.0, 0.00006),
        # One right word does not: 2 and 2, which are all alike, and their root mean square is 2.
        (["S=S====SS="], ["=========="], math.sqrt(2), 0.15730),
        # Nor do two right words of one system alone: 1 + 1 - 1 errors in a single segment.
        (["S==S="], ["=S==="], 1.0, 0.31731),
        # Nor two with an insertion between them: a single segment of 3.
        (["S=I=S"], ["===="], 1.0, 0.31731),
        # The end of an utterance does, however near the errors are: 1 and 1.
        (["=S", "S="], ["==", "=="], math.sqrt(2), 0.15730),
        # More insertions than words, as a loop makes them: 1 error and 5, so mean 3, standard deviation sqrt(8).
        (["S=", "=IIIII"], ["==", "="], 1.5, 0.13361),
    ],
)
def test_matched_pairs(alignments: list[str], base: list[str], z: float, p: float) -> None:
    assert statistics.mapsswe(alignments, base) == pytest.approx((z, p), abs=1e-5)


def test_matched_pairs_are_those_of_nist() -> None:
    # sctk 2.4.10's `sc_stats -t mapsswe -v` finds 10 segments, mean 0.800, standard deviation 0.789 and z 3.207 for the
    # sentences that are aligned like this (sclite).
    alignments = ["=SS=S===S=", "===I==S", "=D====I", "=====", "====", "S==S==S"]
    base = ["==S=======", "=====S", "======", "=====", "==D=", "======="]
    z, p = statistics.mapsswe(alignments, base)
    assert z == pytest.approx(3.207, abs=0.0005)
    assert p == pytest.approx(0.00134, abs=0.00001)


def test_matched_pairs_agree_with_walking_through_the_words() -> None:
    rng = np.random.default_rng(4)
    lengths = rng.integers(0, 30, size=100)
    alignments, base = (["".join(rng.choice(KINDS, size=n, p=CHANCES)) for n in lengths] for _ in range(2))
    differences = [n for pair in zip(alignments, base, strict=True) for n in walked(*pair)]
    assert len(differences) > 200
    z = np.mean(differences) / (np.std(differences, ddof=1) / math.sqrt(len(differences)))
    assert statistics.mapsswe(alignments, base)[0] == pytest.approx(z)


KINDS = ["=", "S", "D", "=I", "SII"]
CHANCES = [0.7, 0.1, 0.1, 0.05, 0.05]


def walked(alignment: str, base: str) -> list[int]:
    """Return the differences of errors of an utterance's segments, found word by word."""
    found, difference, erring, right = [], 0, False, 0
    for place, (mine, theirs) in enumerate(zip(errors(alignment), errors(base), strict=True)):
        if mine or theirs:
            difference, erring, right = difference + mine - theirs, True, 0
        elif place % 2:
            right += 1
            if erring and right == 2:
                found.append(difference)
                difference, erring = 0, False
    return [*found, difference] if erring else found


def errors(alignment: str) -> list[int]:
    """Return the errors before the first word, at it, between it and the second, and so on."""
    counts = [0]
    for kind in alignment:
        if kind == "I":
            counts[-1] += 1
        else:
            counts += [int(kind != "="), 0]
    return counts


@pytest.mark.parametrize(("tests", "units"), [(1, 6), (2, 7), (18, 10)])
def test_fewest_units_that_the_sign_test_finds(tests: int, units: int) -> None:
    assert statistics.fewest_to_show(tests) == units
    agree = [float(statistics.sign_flips(np.ones((1, count)), 0)[0][0]) for count in (units - 1, units)]
    assert agree[1] <= statistics.SIGNIFICANT / tests < agree[0]
