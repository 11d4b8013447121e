"""The verdicts of the committed studies, found again from errors.csv by another way.

Sign flips are drawn in the pipeline where many speakers differ. Here their distribution is exact: errors are whole
numbers, and so are a thousand times the errors less a margin's share of the words, so that the sums of all patterns are
counted one unit after the other. Words and errors are errors.csv's: how they are counted, tests/scoring asks.
"""

import csv
import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from tests.conftest import ROOT

STUDIES = sorted(path.parent for path in (ROOT / "studies").glob("*/errors.csv"))
EXACT, DRAWN = 20, 100_000  # units up to which the pipeline tries all patterns; how many it draws beyond
MARGINS = ("0.3", "0.5", "1.0")

Row = dict[str, str]


def patterns(values: list[int]) -> tuple[npt.NDArray[np.float64], int]:
    """Return the share of the patterns of signs with each sum, from -most to most."""
    most = sum(map(abs, values))
    shares = np.zeros(2 * most + 1)
    shares[most] = 1.0
    for value in map(abs, values):  # no share is rolled over an end: no sum is beyond `most`
        shares = (np.roll(shares, value) + np.roll(shares, -value)) / 2
    return shares, most


def as_far(values: list[int]) -> float:
    shares, most = patterns(values)
    found = abs(sum(values))
    return float(shares[: most - found + 1].sum() + shares[most + found :].sum()) if found else 1.0


def as_low(values: list[int]) -> float:
    if sum(values) >= 0:  # half of the patterns or more: of no interest, and the sums of texts that loop are long
        return 1.0
    shares, most = patterns(values)
    return float(shares[: most + sum(values) + 1].sum())


def poisson(most: int, mean: float) -> float:
    return math.fsum(math.exp(-mean + n * math.log(mean) - math.lgamma(n + 1)) for n in range(most + 1))


def holm(values: dict[str, float]) -> dict[str, float]:
    corrected, so_far = {}, 0.0
    for rank, (name, value) in enumerate(sorted(values.items(), key=lambda pair: pair[1])):
        so_far = max(so_far, min(1.0, value * (len(values) - rank)))
        corrected[name] = so_far
    return corrected


def read(path: Path, split: str) -> list[Row]:
    with path.open(newline="") as file:
        return [row for row in csv.DictReader(file) if row["split"] == split]


def no_worse(margin: str) -> str:
    return f"p_no_worse_{margin}".replace(".", "_")


def recomputed(spoken: list[Row], names: list[str], unit: str) -> tuple[dict[str, dict[str, float]], bool]:
    """Return the corrected p-values of no difference, and of each margin, by variant; and whether flips were drawn."""
    units = sorted({row[unit] for row in spoken})
    words = dict.fromkeys(units, 0)
    for row in spoken:
        words[row[unit]] += int(row["words"])
    none: dict[str, float] = {}
    margins: dict[str, dict[str, float]] = {margin: {} for margin in MARGINS}
    for name in names:
        by_unit = dict.fromkeys(units, 0)
        new = gone = 0
        for row in spoken:
            change = int(row[name]) - int(row["fp32"])
            by_unit[row[unit]] += change
            new, gone = new + max(change, 0), gone + max(-change, 0)
        none[name] = as_far(list(by_unit.values()))
        for margin, found in margins.items():
            tenths = round(10 * float(margin))  # of a point: so many thousandths of the words
            flipped = as_low([1000 * by_unit[one] - tenths * words[one] for one in units])
            found[name] = max(flipped, poisson(new, float(margin) / 100 * sum(words.values()) + gone))
    corrected = {no_worse(margin): holm(of) for margin, of in margins.items()}
    return corrected | {"p_holm": holm(none)}, len(units) > EXACT


def test_there_is_a_study_to_recompute() -> None:
    assert STUDIES


@pytest.mark.parametrize("folder", STUDIES, ids=lambda folder: folder.name)
def test_comparisons_by_hand(folder: Path) -> None:
    with (folder / "results.csv").open(newline="") as file:
        splits = {row["split"] for row in csv.DictReader(file) if row["measure"] == "wer"}
    for split in sorted(splits):
        results = {row["variant"]: row for row in read(folder / "results.csv", split) if row["variant"] != "fp32"}
        spoken = read(folder / "errors.csv", split)
        unit = {"speaker": "speaker", "utterance": "id"}[next(iter(results.values()))["test_unit"]]
        p_values, drawn = recomputed(spoken, list(results), unit)
        words = sum(int(row["words"]) for row in spoken)
        for name, row in results.items():
            lost = sum(int(one[name]) - int(one["fp32"]) for one in spoken)
            assert float(row["wer_delta"]) == pytest.approx(100 * lost / words, abs=5e-4)
            near = False
            for column, exact in p_values.items():
                share = exact[name] / len(results)
                # Six standard deviations of what is drawn, in the worst case of Holm's factor, and one pattern.
                off = len(results) * (6 * math.sqrt(share / DRAWN) + 1 / DRAWN) if drawn else 2e-6
                told, limit = float(row[column]), 0.05 if column == "p_holm" else 0.025
                assert told == pytest.approx(exact[name], abs=off) or min(told, exact[name]) >= 0.5, (name, column)
                near |= abs(exact[name] - limit) <= off
            if near:  # another draw may say otherwise
                continue
            within = [margin for margin in MARGINS if p_values[no_worse(margin)][name] < 0.025]
            verdict = "no worse" if within else "undecided"
            if p_values["p_holm"][name] < 0.05:
                verdict = "worse" if lost > 0 else "better"
            assert (row["verdict"], row["no_worse_than"]) == (verdict, within[0] if within else ""), (name, split)
