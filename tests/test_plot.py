import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from pipeline import plot
from tests import made
from tests.conftest import ROOT, results_csv
from tests.made import Row
from tests.results.test_charts import STUDY, quiet, result, silent

FIGURES = ("wer_vs_size", "wer_vs_speed", "wer", "sensitivity")


def draw(folder: Path, results: Sequence[Row], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the digests of the figures, after checking that they are pictures of some content."""
    (folder / "reports").mkdir(parents=True)
    (folder / "reports/results.csv").write_text(results_csv(*results))
    (folder / "reports/sensitivity.csv").write_text(made.sensitivity())
    monkeypatch.chdir(folder)
    plot.main()
    pictures = [Path(f"reports/figures/{name}.svg").read_bytes() for name in FIGURES]
    for picture in pictures:
        assert picture.startswith(b"<svg")
        assert len(picture) > 5_000
        assert b"NaN" not in picture
    return [hashlib.sha256(picture).hexdigest() for picture in pictures]


def test_the_same_table_gives_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    both = [*STUDY, *(row | {"split": "test-other"} for row in STUDY)]
    assert draw(tmp_path / "a", both, monkeypatch) == draw(tmp_path / "b", both, monkeypatch)


@pytest.mark.parametrize(
    "results",
    [
        [result("fp32", 0.0)],
        [result("fp32", 4.0, 151.0), result("candidate", 4.0, 151.0)],
        [result("fp32", 4.0, 151.0), result("candidate", 1500.0, 90.0)],
        [quiet("fp32"), quiet("candidate")],
        [*STUDY, *(silent(each["variant"], each["rate"]) for each in STUDY)],
    ],
)
def test_any_study_can_be_drawn(results: list[Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw(tmp_path, results, monkeypatch)


COMMITTED = [ROOT / "reports", *sorted((ROOT / "studies").glob("*/"))]


@pytest.mark.parametrize("folder", COMMITTED, ids=lambda folder: str(folder.name))
def test_committed_figures_are_those_of_their_table(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "reports").mkdir()
    for name in {"results.csv", "sensitivity.csv"} & {path.name for path in folder.iterdir()}:
        shutil.copy(folder / name, tmp_path / "reports")
    monkeypatch.chdir(tmp_path)
    plot.main()
    committed = {path.name: path.read_bytes() for path in (folder / "figures").iterdir()}
    assert {path.name: path.read_bytes() for path in Path("reports/figures").iterdir()} == committed


def test_earlier_studies_have_no_heat_map(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw(tmp_path, STUDY, monkeypatch)
    shutil.rmtree("reports/figures")
    Path("reports/sensitivity.csv").unlink()
    plot.main()
    assert {path.stem for path in Path("reports/figures").iterdir()} == {*FIGURES} - {"sensitivity"}
