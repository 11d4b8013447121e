import csv
import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.core.errors import UserError
from pipeline.results import tables
from pipeline.scoring import statistics
from tests import made
from tests.conftest import ROOT, results_csv
from tests.made import FP32, line

TABLES = sorted([*ROOT.glob("reports/*.csv"), *ROOT.glob("studies/*/*.csv")])
COUNTED = [path for path in TABLES if path.name == tables.ERRORS.name]  # whose columns are variants
TABLES = [path for path in TABLES if path not in COUNTED]


@pytest.mark.parametrize(
    ("column", "documented"),
    [
        ("wer", True),
        ("wer_delta_low_speaker", True),
        ("insertions_per_minute_high", True),
        ("p_value_utterance", True),
        ("bytes_scales", True),
        ("latency_p90_ms", True),
        ("versions_optimum-quanto", True),
        ("group_size", True),
        ("instructions", True),
        ("kl", True),
        ("kl_low", True),
        ("flips_high", True),
        ("ber", False),
        ("ber_low", False),
        ("_low", False),
        ("p_value_sentence", False),
    ],
)
def test_what_is_documented(column: str, documented: bool) -> None:
    assert bool(tables.meaning(column)) == documented


def test_a_column_that_is_not_documented_is_not_written() -> None:
    with pytest.raises(AssertionError, match=r"document \['ber'\] in pipeline/results/tables.py"):
        tables.to_csv([{"variant": "fp32", "wer": 1.0, "ber": 2.0}])


def test_rounding_keeps_what_can_be_told_apart() -> None:
    row = {"variant": "a", "words": 1204, "wer": 4.152823920265781, "wer_delta": -0.0001}
    row |= {
        "p_value_speaker": 0.00035999999,
        "mapsswe_p": 0.00123456,
        "p_holm": None,
        "kl": 0.00071239,
        "flips": 0.5219,
    }
    assert json.dumps(tables.rounded(row)) == (
        '{"variant": "a", "words": 1204, "wer": 4.153, "wer_delta": 0.0, "p_value_speaker": 0.00036, '
        '"mapsswe_p": 0.001235, "p_holm": null, "kl": 0.000712, "flips": 0.522}'
    )


def test_csv_has_every_column_that_any_row_has() -> None:
    rows: list[dict[str, Any]] = [{"bits": 1, "p_holm": None}, {"bits": 0.00001, "machine": "x, y", "symmetric": True}]
    assert tables.to_csv(rows) == 'bits,p_holm,machine,symmetric\n1,,,\n1e-05,,"x, y",True\n'


@pytest.mark.parametrize("path", COUNTED, ids=lambda path: path.parent.name)
def test_committed_errors_are_those_of_the_results(path: Path) -> None:
    errors, results = tables.read_errors(path), tables.read(path.with_name("results.csv"))
    assert list(errors.columns) == ["split", "id", "speaker", "words", *dict.fromkeys(results.variant)]
    for row in results.itertuples():
        spoken = errors[errors.split == row.split]
        counted = (len(spoken), spoken.words.sum(), spoken[row.variant].sum())
        assert counted == (row.utterances, row.words, row.substitutions + row.deletions + row.insertions)


def test_errors_that_are_not_here_or_not_errors_are_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"errors.csv is not here; run 'dvc repro compare' first"):
        tables.read_errors(tmp_path / "errors.csv")
    (tmp_path / "errors.csv").write_text("split,id,speaker,words,fp32\na,b,c,many,1\n")
    with pytest.raises(UserError, match=r"is not what 'dvc repro compare' writes"):
        tables.read_errors(tmp_path / "errors.csv")


@pytest.mark.parametrize("path", TABLES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_committed_tables_are_documented_and_can_be_read(path: Path) -> None:
    """Those of earlier studies, too, which have no columns of their whole splits, jobs and instructions."""
    with path.open() as file:
        lines = list(csv.DictReader(file))
    assert [column for column in lines[0] if not tables.meaning(column)] == []
    read = tables.read(path)
    assert len(read) == len(lines)
    for column, kind in read.dtypes.items():
        text = tables.meaning(str(column)).startswith("text: ")
        assert str(kind) in (("str",) if text else ("int64", "float64")), column
    missing = {column for column in read.columns if column not in lines[0]}
    assert missing <= {
        *tables.NEWER,
        *(f"{name}{bound}" for name in ("rate", "delta") for bound in ("", "_low", "_high")),
    }


def test_what_earlier_studies_do_not_tell() -> None:
    row = next(tables.read(ROOT / "studies/base-paper/results.csv").itertuples())
    assert (row.jobs, row.instructions) == (1, "")
    assert row.split_utterances != row.split_utterances
    assert (row.kl == row.kl, row.flips == row.flips, row.tokens == row.tokens) == (False,) * 3
    assert (row.rate, row.rate_low, row.delta_high) == (row.wer, row.wer_low, 0.0)


def test_every_measure_can_be_written() -> None:
    assert set(tables.MEASURES) == {statistics.WER, statistics.INSERTIONS}


def test_rate_and_difference_are_those_of_the_splits_measure() -> None:
    silent = {"split": "silence", "measure": "insertions_per_minute", "words": 0, "wer_without_loops": None}
    spoken, silence = made.frame(FP32, line("a", 0.5, 0.1, 0.9) | silent).itertuples()
    assert (spoken.wer, spoken.rate, spoken.wer_delta, spoken.delta_low) == (3.5, 3.5, 0.0, 0.0)
    assert (silence.insertions_per_minute, silence.rate) == (4.0, 4.0)
    assert (silence.delta, silence.delta_low, silence.delta_high) == (0.5, 0.1, 0.9)
    assert silence.wer != silence.wer


def test_texts_without_a_value_are_empty_and_numbers_nan() -> None:
    row = next(made.frame(FP32 | {"speakers": None, "variant": "NA", "split": "1"}).itertuples())
    assert (row.variant, row.split, row.granularity, row.looping_ids) == ("NA", "1", "", "")
    assert row.speakers != row.speakers
    assert row.p_holm != row.p_holm


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "results.csv is not here; run 'dvc repro compare' first"),
        ("", r"results.csv is not what 'dvc repro compare' writes \(No columns to parse from file\); run it again"),
        ("variant,split\n", r"results.csv is not what 'dvc repro compare' writes \(no rows\)"),
        ("variant,split\nfp32,test-clean\n", r"results.csv is not what 'dvc repro compare' writes \('backend'\)"),
        (
            results_csv(FP32).replace(",wer,speaker", ",ber,speaker"),
            r"is not what 'dvc repro compare' writes \(measure 'ber'\)",
        ),
        (results_csv(FP32).replace("966.9", "1e999"), r"writes \(an infinite number\); run it again"),
        (results_csv(FP32).replace("wer_delta,", "delta,"), r"is not what 'dvc repro compare' writes \('wer_delta'\)"),
        (results_csv(FP32).replace(",15.04,", ",a quarter,"), r"writes \(Unable to parse string 'a quarter' "),
        ("a,b\n1,2,3,4\n1,2,3,4,5\n", r"writes \(Error tokenizing data. .*saw 5\); run it again"),
    ],
)
def test_another_file_is_refused(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "results.csv").write_text(content)
    with pytest.raises(UserError, match=message):
        tables.read(tmp_path / "results.csv")
