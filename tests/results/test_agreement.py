from typing import Any

import pytest

from pipeline.core.errors import UserError
from pipeline.results import agreement


def agreed(*sums: tuple[str, int, float, int], split: str = "clean") -> agreement.Json:
    """Return what `agree` writes of utterances u0, u1, ...: of each its speaker, tokens, KL and flips."""
    keys = ("speaker", "tokens", "kl", "flips")
    utterances = [{"id": f"u{n}", "split": split} | dict(zip(keys, each, strict=True)) for n, each in enumerate(sums)]
    tokens, kl, flips = map(sum, list(zip(*sums, strict=True))[1:])
    return {"splits": {split: {"kl": kl / tokens, "flips": 100 * flips / tokens}}, "utterances": utterances}


def columns(**agreements: agreement.Json) -> dict[str, dict[str, Any]]:
    return agreement.columns(agreements, "clean", resamples=10_000, seed=0)


def test_a_mean_is_of_tokens_and_its_interval_of_speakers() -> None:
    # Ten speakers of ten utterances of 10 tokens; all utterances of five have a KL of 0.2 and a flip.
    sums = [(f"s{n // 10}", 10, 0.2 if n < 50 else 0.0, int(n < 50)) for n in range(100)]
    row = columns(fp32=agreed(*[(speaker, tokens, 0.0, 0) for speaker, tokens, *_ in sums]), a=agreed(*sums))["a"]
    assert (row["kl"], row["flips"]) == (pytest.approx(0.01), 5.0)
    # Half of ten speakers: a standard error of sqrt(1/4 / 10) x sqrt(10 / 9) / (1/2) = 0.333 of the mean; t of 9
    # degrees of freedom is 2.262, so the bounds are the mean divided and multiplied by exp(0.754) = 2.125.
    assert (row["kl_low"], row["kl_high"]) == pytest.approx((0.01 / 2.125, 0.01 * 2.125), rel=0.03)
    assert (row["flips_low"], row["flips_high"]) == pytest.approx((5 / 2.125, 5 * 2.125), rel=0.03)
    # By utterance it would be a third as wide: of less than ten speakers, that is what is drawn.
    few = [(f"s{n // 12}", *each[1:]) for n, each in enumerate(sums)]
    row = columns(fp32=agreed(*[(speaker, tokens, 0.0, 0) for speaker, tokens, *_ in few]), a=agreed(*few))["a"]
    assert (row["kl_low"], row["kl_high"]) == pytest.approx((0.01 / 1.22, 0.01 * 1.22), rel=0.03)


def test_long_utterances_weigh_more() -> None:
    row = columns(fp32=agreed(("a", 90, 0.0, 0), ("b", 10, 0.0, 0)), a=agreed(("a", 90, 0.9, 0), ("b", 10, 0.5, 3)))[
        "a"
    ]
    assert (row["kl"], row["flips"]) == (pytest.approx(0.014), 3.0)
    assert row["kl_low"] < 0.014 < row["kl_high"]


def test_fp32_has_no_distance_and_no_doubt() -> None:
    nothing = agreed(*[(f"s{n}", 10, 0.0, 0) for n in range(12)])
    assert columns(fp32=nothing, same=nothing)["same"] == dict.fromkeys(
        ("kl", "flips", "kl_low", "kl_high", "flips_low", "flips_high"), 0.0
    )


def test_each_split_has_its_own() -> None:
    clean, other = agreed(("a", 10, 0.1, 1)), agreed(("a", 10, 0.5, 2), split="other")
    both = {"splits": clean["splits"] | other["splits"], "utterances": clean["utterances"] + other["utterances"]}
    found = {split: agreement.columns({"fp32": both}, split, 10, 0)["fp32"] for split in ("clean", "other")}
    assert [row["kl"] for row in found.values()] == pytest.approx([0.01, 0.05])
    assert [row["kl_low"] for row in found.values()] == pytest.approx([0.01, 0.05])


def scored(*ids: str) -> agreement.Json:
    return {"utterances": [{"split": "clean", "id": name} for name in ids]}


def test_other_tokens_or_utterances_are_refused() -> None:
    fp32, other = agreed(("a", 10, 0.0, 0), ("a", 5, 0.0, 0)), agreed(("a", 10, 0.1, 0), ("a", 6, 0.1, 0))
    agreement.check_same({"fp32": fp32, "a": fp32}, {"fp32": scored("u0", "u1")})
    with pytest.raises(UserError) as error:
        agreement.check_same({"fp32": fp32, "a": fp32, "b": other}, {"fp32": scored("u0", "u1")})
    assert str(error.value) == (
        "'b' was held against other tokens of fp32 than fp32 itself; "
        "run 'python -m pipeline.agree b' and 'python -m pipeline.agree fp32' again"
    )
    with pytest.raises(UserError) as error:
        agreement.check_same({"fp32": fp32}, {"fp32": scored("u0", "u2")})
    assert str(error.value) == (
        "reports/agreement is of other utterances than reports/scores; run 'dvc repro' to make both anew"
    )


def test_neighbours_by_size_are_told_apart_or_a_tie() -> None:
    # Twelve speakers, of 10 tokens each; the smallest is farther from fp32 in every one of them.
    speakers = [f"s{n}" for n in range(12)]
    kls = {"small": [0.5] * 12, "middle": [0.2] * 12, "large": [0.1, 0.3] * 6}
    of = {name: agreed(*[(s, 10, kl, 0) for s, kl in zip(speakers, each, strict=True)]) for name, each in kls.items()}
    found = agreement.neighbours(of, "clean", ["small", "middle", "large"], seed=0)
    assert list(found) == ["small", "middle"]
    small, middle = found.values()
    assert (small["larger"], middle["larger"]) == ("middle", "large")
    assert (small["kl_less_larger"], middle["kl_less_larger"]) == (pytest.approx(0.03), pytest.approx(0.0))
    assert (small["p_kl"], middle["p_kl"]) == (pytest.approx(2 * 2 / 2**12), 1.0)
    assert agreement.neighbours(of, "clean", ["small"], seed=0) == {}
