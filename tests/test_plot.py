import hashlib
import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import vl_convert
from ruamel.yaml import YAML

from pipeline import plot
from pipeline.results import points
from tests import made
from tests.conftest import ROOT, results_csv
from tests.made import Row, frame
from tests.results.test_charts import STUDY, quiet, result, silent
from tests.study import Study

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


def test_committed_templates_are_those_of_the_charts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    plot.write_templates()
    made, committed = (
        {path.name: path.read_text() for path in (folder / plot.TEMPLATES).iterdir()} for folder in (tmp_path, ROOT)
    )
    assert made == committed


def marks(content: Any, kind: str) -> list[dict[str, str]]:
    """Return what a specification says aloud of the marks of a kind that are seen, drawn by a Vega-Lite like DVC's."""
    svg = vl_convert.vegalite_to_svg(content, vl_version="5.8")
    said = re.findall(r'aria-label="([^"]*)" role="graphics-symbol" aria-roledescription="(\w+)([^>]*)', svg)
    seen = [text for text, each, rest in said if each == kind and ' opacity="0"' not in rest]
    return [dict(part.split(": ") for part in text.split("; ")) for text in seen]


def numbers(mark: dict[str, str], *names: str) -> tuple[float, ...]:
    """Return some of what a mark says, rounded as it is said."""
    return tuple(round(float(mark[name]), 6) for name in names)


@pytest.mark.slow
def test_dvc_draws_each_revisions_points_as_the_figures_do(tmp_path: Path) -> None:
    """Another size and rate, before and after, one beyond the axis among the others: what has moved is named."""
    study = Study(tmp_path / "study")
    shutil.copytree(ROOT / plot.TEMPLATES, study.root / plot.TEMPLATES)
    (study.root / ".dvc/config").touch()
    drawn = [entry for entry in YAML(typ="safe").load(ROOT / "dvc.yaml")["plots"] if isinstance(entry, dict)]
    YAML(typ="safe").dump({"plots": drawn}, study.root / "dvc.yaml")
    cost = {"kl": 0.02, "bits_per_weight": 4.25}
    before = [each | (cost if each["backend"] != "none" else {"kl": 0.0}) for each in STUDY]
    moved = result("hqq-int8", 4.4, 90.0) | cost | {"kl": 0.01}
    after = [moved if each["variant"] == "hqq-int8" else each for each in before]
    study.begin()
    (study.root / "reports").mkdir()
    (study.root / "reports/results.csv").write_text(results_csv(*before))
    study.commit("Run")
    (study.root / "reports/results.csv").write_text(results_csv(*after))

    told = json.loads(study.did("dvc", "plots", "diff", "HEAD", "--json"))["data"]
    contents = {name: plots[0]["content"] for name, plots in told.items()}
    assert sorted(contents) == sorted(name for entry in drawn for name in entry) == ["kl_vs_bits", "wer_vs_size"]
    for content in contents.values():
        assert [each["variant"] for each in marks(content, "text")] == ["hqq-int8"]

    rates, columns = contents["wer_vs_size"], {"HEAD": frame(*before), "workspace": frame(*after)}
    rows = [(rev, row) for rev, table in columns.items() for row in points.points(table).itertuples()]
    assert sorted(
        (each["rev"], each["variant"], *numbers(each, "size_mb", "word error rate, %"))
        for each in marks(rates, "point")
    ) == sorted((rev, row.variant, row.size, round(row.shown, 6)) for rev, row in rows)
    assert sorted(
        (each["rev"], *numbers(each, "weights on disk, MB", "low", "high"))
        for each in marks(rates, "rule")
        if each.get("low", "null") != "null"
    ) == sorted((rev, row.size, round(row.low, 6), round(row.high, 6)) for rev, row in rows if row.low == row.low)

    assert sorted(
        (each["rev"], each["variant"], float(each["kl"])) for each in marks(contents["kl_vs_bits"], "point")
    ) == sorted(
        (rev, row.variant, row.kl) for rev, table in columns.items() for row in table[table.kl > 0].itertuples()
    )
