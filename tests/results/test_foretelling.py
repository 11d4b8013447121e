import numpy as np
import pandas as pd
import pytest

from pipeline.results.foretelling import correlate, spearman


def table(losses: dict[str, int], speakers: int = 12) -> pd.DataFrame:
    """Return errors of two splits, where each variant loses so many errors a speaker, more or less."""
    rng = np.random.default_rng(1)
    lines = [
        {"split": split, "id": f"{split}-{speaker}-{n}", "speaker": str(speaker), "words": 20, "fp32": 1}
        | {name: 1 + loss + int(rng.integers(2)) for name, loss in losses.items()}
        for split in ("b", "a")
        for speaker in range(speakers)
        for n in range(2)
    ]
    return pd.DataFrame(lines)


KL = pd.DataFrame({"variant": ["fp32", "v1", "v2", "v3", "v4", "v5"], "kl": [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]})


NAMES = list(KL.variant[1:])


def test_more_divergence_more_loss() -> None:
    found = correlate(KL, table({f"v{n}": 10 * n for n in range(1, 6)}), NAMES)
    assert [(one.split, one.variants, one.unit) for one in found] == [("b", 5, "speaker"), ("a", 5, "speaker")]
    assert [one.rho for one in found] == pytest.approx([1.0, 1.0])
    assert all(one.low > 0.9 and one.high == pytest.approx(1.0) for one in found)


def test_no_relation_has_a_wide_interval() -> None:
    found, _ = correlate(KL, table({"v1": 3, "v2": 9, "v3": 1, "v4": 7, "v5": 4}), NAMES)
    assert found.low < 0 < found.high


@pytest.mark.parametrize("speakers", [2, 12])
def test_few_speakers_or_unknown_ones_are_not_drawn(speakers: int) -> None:
    many = {f"v{n}": n % 3 + n // 8 for n in range(1, 13)}
    kl = pd.DataFrame({"variant": ["fp32", *many], "kl": range(13)})
    known = table(many, speakers)
    one, other = (correlate(kl, errors, list(many))[0] for errors in (known, known.assign(speaker="")))
    assert (one.rho, other.unit) == (other.rho, "utterance")
    assert (one == other) == (speakers < 10)


def test_few_variants_or_equal_losses_have_no_correlation() -> None:
    assert correlate(KL, table({f"v{n}": n for n in range(1, 6)}), NAMES[:4]) == []
    equal = table(dict.fromkeys(NAMES, 0)).assign(**dict.fromkeys(NAMES, 1))
    assert correlate(KL, equal, NAMES) == []


def test_ties_share_their_rank_and_equal_values_have_none() -> None:
    one, two = np.array([[1.0, 2.0, 2.0, 4.0]]), np.array([[1.0, 3.0, 2.0, 4.0]])
    assert spearman(one, two)[0] == pytest.approx(pd.Series(one[0]).corr(pd.Series(two[0]), method="spearman"))
    assert np.isnan(spearman(one, np.ones((1, 4)))[0])
