"""The verdicts of the committed studies, found again from errors.csv by another way, for three variants of each.

Sign flips are drawn in the pipeline where many speakers differ. Here their distribution is exact: errors are whole
numbers, and so are a thousand times the errors less a margin's share of the words, so that the sums of all patterns are
counted one unit after the other.
"""

import csv
import math
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest

from tests.conftest import ROOT

STUDIES = sorted(path.parent for path in (ROOT / "studies").glob("*/errors.csv"))
DRAWN = 100_000  # patterns in the pipeline
CHOSEN = 3


def patterns(values: list[int]) -> tuple[np.ndarray, int]:
    """Return the share of the patterns of signs with each sum, from -most to most."""
    most = sum(map(abs, values))
    shares = np.zeros(2 * most + 1)
    shares[most] = 1.0
    for value in map(abs, values):
        shares = (np.roll(shares, value) + np.roll(shares, -value)) / 2
    return shares, most


def as_far(values: list[int]) -> float:
    shares, most = patterns(values)
    found = abs(sum(values))
    return float(shares[: most - found + 1].sum() + shares[most + found :].sum()) if found else 1.0


def as_low(values: list[int]) -> float:
    if sum(values) >= 0:  # as probable as not, or more: of no interest, and the sums of texts that loop are long
        return 1.0
    shares, most = patterns(values)
    return float(shares[: most + sum(values) + 1].sum())


def poisson(most: int, mean: float) -> float:
    return sum(math.exp(-mean + n * math.log(mean) - math.lgamma(n + 1)) for n in range(most + 1))


def holm(values: dict[str, float]) -> dict[str, float]:
    corrected, so_far = {}, 0.0
    for rank, (name, value) in enumerate(sorted(values.items(), key=lambda pair: pair[1])):
        so_far = max(so_far, min(1.0, value * (len(values) - rank)))
        corrected[name] = so_far
    return corrected


def read(folder: Path, name: str, split: str) -> list[dict[str, str]]:
    with (folder / name).open(newline="") as file:
        return [row for row in csv.DictReader(file) if row["split"] == split]


def recomputed(spoken: list[dict[str, str]], names: list[str]) -> dict[str, dict[str, float]]:
    """Return the corrected p-values of no difference, and of a loss of each margin, by variant."""
    speakers = sorted({row["speaker"] for row in spoken})
    words = {one: sum(int(row["words"]) for row in spoken if row["speaker"] == one) for one in speakers}
    total = sum(words.values())
    none: dict[str, float] = {}
    margins: dict[str, dict[str, float]] = {"0.3": {}, "0.5": {}, "1.0": {}}
    for name in names:
        changes = [(row["speaker"], int(row[name]) - int(row["fp32"])) for row in spoken]
        by_speaker = {one: sum(change for speaker, change in changes if speaker == one) for one in speakers}
        none[name] = as_far(list(by_speaker.values()))
        new = sum(max(change, 0) for _, change in changes)
        gone = sum(max(-change, 0) for _, change in changes)
        for margin, found in margins.items():
            points = round(10 * float(margin))  # a tenth of a point of so many words is a thousandth of them
            flipped = as_low([1000 * by_speaker[one] - points * words[one] for one in speakers])
            found[name] = max(flipped, poisson(new, float(margin) / 100 * total + gone))
    return {"p_holm": holm(none), **{f"p_no_worse_{margin}": holm(of) for margin, of in margins.items()}}


def test_there_is_a_study_to_recompute() -> None:
    assert STUDIES


@pytest.mark.parametrize("folder", STUDIES, ids=lambda folder: folder.name)
def test_three_comparisons_by_hand(folder: Path) -> None:
    for split in ("test-clean", "test-other"):
        results = {row["variant"]: row for row in read(folder, "results.csv", split)}
        spoken = read(folder, "errors.csv", split)
        names = [name for name in results if name != "fp32"]
        by_delta = sorted(names, key=lambda name: float(results[name]["wer_delta"]))
        p_values = recomputed(spoken, names)
        for name in (by_delta[0], by_delta[len(names) // 2], by_delta[-1])[:CHOSEN]:
            row = results[name]
            words = sum(int(one["words"]) for one in spoken)
            lost = sum(int(one[name]) - int(one["fp32"]) for one in spoken)
            assert float(row["wer_delta"]) == pytest.approx(100 * lost / words, abs=5e-4)
            assert row["test_unit"] == "speaker"
            for column, of in p_values.items():
                told, exact = float(row[column.replace(".", "_")]), of[name]
                if exact == 1.0:
                    assert told >= 0.5
                    continue
                drawn = exact / len(names)
                off = NormalDist().inv_cdf(0.9999) * len(names) * math.sqrt(drawn * (1 - drawn) / DRAWN)
                assert told == pytest.approx(exact, abs=off + len(names) / DRAWN), (name, split, column)
            worse = p_values["p_holm"][name] < 0.05
            within = [margin for margin in ("0.3", "0.5", "1.0") if p_values[f"p_no_worse_{margin}"][name] < 0.025]
            expected = ("worse" if lost > 0 else "better") if worse else "no worse" if within else "undecided"
            assert (row["verdict"], row["no_worse_than"]) == (expected, within[0] if within else "")
