import dataclasses
from pathlib import Path

import pytest

from pipeline import compare, table
from pipeline.errors import UserError

FP32 = table.Result(
    variant="fp32",
    split="test-clean",
    backend="none",
    utterances=2620,
    speakers=40,
    words=52576,
    looping=0,
    size_mb=966.9,
    size_reduction=0.0,
    wer=3.43,
    wer_low=3.2,
    wer_high=3.7,
    wer_delta=0.0,
    wer_delta_low=0.0,
    wer_delta_high=0.0,
    interval_unit="speaker",
    verdict="baseline",
    smallest_detectable=None,
    rtfx=7.25,
)
INT8 = dataclasses.replace(
    FP32,
    variant="quanto-int8",
    backend="quanto",
    size_mb=412.2,
    size_reduction=57.37,
    wer=3.41,
    wer_low=3.18,
    wer_high=3.69,
    wer_delta=-0.02,
    wer_delta_low=-0.06,
    wer_delta_high=0.02,
    verdict="no significant difference",
    smallest_detectable=0.091,
)
INT2 = dataclasses.replace(
    FP32,
    variant="torch-int8-dynamic-tensor",
    backend="torch",
    size_mb=250.0,
    size_reduction=74.1,
    looping=1999,
    wer=1032.123,
    wer_low=998.0,
    wer_high=1054.0,
    wer_delta=1028.693,
    wer_delta_low=994.6,
    wer_delta_high=1050.6,
    verdict="worse",
    smallest_detectable=70.25,
)


def test_table_of_two_splits() -> None:
    few = [
        dataclasses.replace(result, split="librivox", utterances=5, speakers=1, words=76, interval_unit="utterance")
        for result in (FP32, INT8)
    ]
    assert table.to_text([FP32, few[0], INT8, few[1]]) == (
        "test-clean: 2,620 utterances of 40 speakers, 52,576 words; intervals by speaker\n"
        "variant         MB  saved  WER %          95 %  vs fp32            95 %  verdict   shows  loops  RTFx\n"
        "fp32         966.9   0.0%   3.43  [3.20, 3.70]                           baseline             0   7.2\n"
        "quanto-int8  412.2  57.4%   3.41  [3.18, 3.69]    -0.02  [-0.06, +0.02]  n.s.       0.09      0   7.2\n"
        "\n"
        "librivox: 5 utterances of 1 speaker, 76 words; intervals by utterance "
        "(fewer than 30 utterances: a rough guess)\n"
        "variant         MB  saved  WER %          95 %  vs fp32            95 %  verdict   shows  loops  RTFx\n"
        "fp32         966.9   0.0%   3.43  [3.20, 3.70]                           baseline             0   7.2\n"
        "quanto-int8  412.2  57.4%   3.41  [3.18, 3.69]    -0.02  [-0.06, +0.02]  n.s.       0.09      0   7.2"
    )


def test_speakers_that_are_not_known_are_not_mentioned() -> None:
    assert table.extent(dataclasses.replace(FP32, speakers=None)) == "2,620 utterances, 52,576 words"


def test_the_widest_table_is_narrower_than_120() -> None:
    lines = table.to_text([FP32, INT8, INT2]).splitlines()
    assert lines[-1] == (
        "torch-int8-dynamic-tensor  250.0  74.1%   1032  [998.0, 1054]    +1029  [+994.6, +1051]  worse"
        "     70.25   1999   7.2"
    )
    assert max(map(len, lines)) < 120


def test_reads_what_compare_writes_and_ignores_the_rest(tmp_path: Path) -> None:
    rows = [dataclasses.asdict(result) | {"machine": "x86, 2 cores", "p_holm": None} for result in (FP32, INT2)]
    (tmp_path / "results.csv").write_text(compare.to_csv(rows))
    assert table.read(tmp_path / "results.csv") == [FP32, INT2]


def test_reads_results_without_known_speakers(tmp_path: Path) -> None:
    unknown = dataclasses.replace(INT2, speakers=None)
    (tmp_path / "results.csv").write_text(compare.to_csv([dataclasses.asdict(unknown)]))
    assert table.read(tmp_path / "results.csv") == [unknown]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "results.csv is not here; run 'dvc repro compare' first"),
        ("variant,split\nfp32,test-clean\n", r"results.csv is not what compare writes \('backend'\)"),
        ("variant,split\n", r"results.csv is not what compare writes \(no rows\)"),
    ],
)
def test_another_file_is_refused(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "results.csv").write_text(content)
    with pytest.raises(UserError, match=message):
        table.read(tmp_path / "results.csv")


def test_main_says_what_the_columns_mean_and_where_the_figures_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports/results.csv").write_text(compare.to_csv([dataclasses.asdict(FP32)]))
    monkeypatch.chdir(tmp_path)
    table.main()
    assert capsys.readouterr().out == (
        "test-clean: 2,620 utterances of 40 speakers, 52,576 words; intervals by speaker\n"
        "variant     MB  saved  WER %          95 %  vs fp32  95 %  verdict   shows  loops  RTFx\n"
        "fp32     966.9   0.0%   3.43  [3.20, 3.70]                 baseline             0   7.2\n"
        "\n"
        "95 %: bootstrap intervals, paired where against fp32, by speaker or utterance as said above.\n"
        "Verdict: after Holm's correction over all variants, unlike the intervals; n.s.: no significant difference.\n"
        "Shows: the true difference that this corpus would find significant in four cases of five.\n"
        "Figures: reports/figures/wer_vs_size.png and reports/figures/wer.png; everything known: reports/results.csv\n"
    )
