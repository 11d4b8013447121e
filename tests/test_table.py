import dataclasses
from pathlib import Path

import pytest

from pipeline import statistics, table
from pipeline.errors import UserError
from tests.conftest import results_csv

FP32 = table.Result(
    variant="fp32",
    split="test-clean",
    backend="none",
    utterances=2620,
    speakers=40,
    words=52576,
    minutes=324.2,
    looping=0,
    size_mb=966.9,
    size_reduction=0.0,
    wer_without_loops=3.43,
    measure="wer",
    rate=3.43,
    rate_low=3.2,
    rate_high=3.7,
    delta=0.0,
    delta_low=0.0,
    delta_high=0.0,
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
    rate=3.41,
    rate_low=3.18,
    rate_high=3.69,
    delta=-0.02,
    delta_low=-0.06,
    delta_high=0.02,
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
    wer_without_loops=612.5,
    rate=1032.123,
    rate_low=998.0,
    rate_high=1054.0,
    delta=1028.693,
    delta_low=994.6,
    delta_high=1050.6,
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
    whole = dataclasses.replace(FP32, split_utterances=2620)
    assert table.extent(whole) == "2,620 utterances of 40 speakers, 52,576 words"
    sample = dataclasses.replace(whole, utterances=60, words=1204)
    assert table.extent(sample) == "60 of 2,620 utterances of 40 speakers alike, 1,204 words"


def test_loops_are_told_beside_the_rate_without_them() -> None:
    none_left = dataclasses.replace(INT8, looping=2620, wer_without_loops=None)
    lines = table.to_text([FP32, INT2, none_left]).splitlines()[1:]
    assert [line[lines[0].index("verdict") :] for line in lines] == [
        "verdict  shows loops no loops RTFx",
        "baseline           0           7.2",
        "worse    70.25  1999    612.5  7.2",
        "n.s.      0.09  2620        -  7.2",
    ]
    assert "no loops" not in table.to_text([FP32, none_left])  # nothing but that dash would stand there


def test_the_widest_tables_are_narrower_than_120() -> None:
    widest = dataclasses.replace(INT2, size_mb=1250.0, wer_without_loops=1004.0)
    silent = dataclasses.replace(SILENT_INT2, size_mb=1250.0)
    for results in ([FP32, INT8, widest], [SILENT, silent]):
        assert max(map(len, table.to_text(results).splitlines())) in range(110, 120)


SILENT = dataclasses.replace(
    FP32,
    split="silence",
    utterances=36,
    speakers=3,
    words=0,
    minutes=9.64,
    measure="insertions_per_minute",
    rate=0.0,
    rate_low=0.0,
    rate_high=0.0,
    wer_without_loops=None,
    interval_unit="utterance",
)
SILENT_INT2 = dataclasses.replace(
    INT2, **{name: getattr(SILENT, name) for name in ("split", "utterances", "words", "measure", "wer_without_loops")}
)


def test_a_split_without_words_is_told_in_words_per_minute() -> None:
    silent_int8 = dataclasses.replace(SILENT, variant="quanto-int8", rate=12.5, rate_low=5.0, rate_high=31.25)
    silent_int8 = dataclasses.replace(silent_int8, verdict="worse", delta=12.5, delta_low=1.0, delta_high=24.0)
    assert table.to_text([SILENT, silent_int8]) == (
        "silence: 36 recordings without speech, 9.6 minutes; intervals by utterance\n"
        "variant         MB  saved  I/min           95 %  vs fp32             95 %  verdict   shows  loops  RTFx\n"
        "fp32         966.9   0.0%   0.00   [0.00, 0.00]                            baseline             0   7.2\n"
        "quanto-int8  966.9   0.0%  12.50  [5.00, 31.25]   +12.50  [+1.00, +24.00]  worse                0   7.2"
    )


def test_notes_explain_the_columns_that_are_there() -> None:
    loops = "No loops: WER % without the utterances that loop; -: all of them do.\n"
    silence = "I/min: inserted words per minute of audio, in which nothing is said.\n"
    assert table.notes([FP32, INT8]) == table.NOTES
    assert table.notes([FP32, INT2]) == table.NOTES + loops
    assert table.notes([FP32, SILENT, SILENT_INT2]) == table.NOTES + silence


def test_every_measure_can_be_written() -> None:
    assert set(table.MEASURES) == {statistics.WER, statistics.INSERTIONS}


def test_reads_what_compare_writes_and_ignores_the_rest(tmp_path: Path) -> None:
    other = "machine,p_holm,", '"x86, 2 cores",,', '"x86, 2 cores",,'
    lines = zip(other, results_csv(FP32, INT2).splitlines(), strict=True)
    (tmp_path / "results.csv").write_text("".join(f"{new}{line}\n" for new, line in lines))
    assert table.read(tmp_path / "results.csv") == [FP32, INT2]


def test_reads_splits_with_and_without_words(tmp_path: Path) -> None:
    (tmp_path / "results.csv").write_text(results_csv(FP32, SILENT))
    assert table.read(tmp_path / "results.csv") == [FP32, SILENT]


def test_reads_results_without_known_speakers(tmp_path: Path) -> None:
    unknown = dataclasses.replace(INT2, speakers=None)
    (tmp_path / "results.csv").write_text(results_csv(unknown))
    assert table.read(tmp_path / "results.csv") == [unknown]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "results.csv is not here; run 'dvc repro compare' first"),
        ("variant,split\nfp32,test-clean\n", r"results.csv is not what 'dvc repro compare' writes \('measure'\)"),
        ("variant,measure\nfp32,ber\n", r"results.csv is not what 'dvc repro compare' writes \(measure 'ber'\)"),
        ("variant,measure,wer\nfp32,wer,1.0\n", r"results.csv is not what 'dvc repro compare' writes \('wer_delta'\)"),
        ("variant,split\n", r"results.csv is not what 'dvc repro compare' writes \(no rows\)"),
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
    (tmp_path / "reports/results.csv").write_text(results_csv(FP32))
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
