import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.results import __main__ as results
from tests import made
from tests.conftest import results_csv
from tests.made import Row, frame

Shown = Callable[..., str]


@pytest.fixture
def shown(capsys: pytest.CaptureFixture[str]) -> Shown:
    """Return a function that gives the printed tables of rows, without the notes below them."""

    def show(*rows: Row) -> str:
        results.show(frame(*rows))
        return capsys.readouterr().out.partition("\n\n95 %:")[0]

    return show


FP32: Row = made.FP32 | {
    "variant": "fp32",
    "split": "test-clean",
    "backend": "none",
    "utterances": 2620,
    "speakers": 40,
    "words": 52576,
    "minutes": 324.2,
    "looping": 0,
    "size_mb": 966.9,
    "size_reduction": 0.0,
    "wer_without_loops": 3.43,
    "measure": "wer",
    "rate": 3.43,
    "rate_low": 3.2,
    "rate_high": 3.7,
    "delta": 0.0,
    "delta_low": 0.0,
    "delta_high": 0.0,
    "interval_unit": "speaker",
    "verdict": "baseline",
    "smallest_detectable": None,
    "kl": 0.0,
    "flips": 0.0,
    "rtfx": 7.25,
}
INT8 = FP32 | {
    "variant": "quanto-int8",
    "backend": "quanto",
    "size_mb": 412.2,
    "size_reduction": 57.37,
    "rate": 3.41,
    "rate_low": 3.18,
    "rate_high": 3.69,
    "delta": -0.02,
    "delta_low": -0.06,
    "delta_high": 0.02,
    "verdict": "no worse",
    "no_worse_than": 0.3,
    "smallest_detectable": 0.091,
    "kl": 0.000712,
    "flips": 0.52,
}
INT2 = FP32 | {
    "variant": "torch-int8-dynamic-tensor",
    "backend": "torch",
    "size_mb": 250.0,
    "size_reduction": 74.1,
    "looping": 1999,
    "wer_without_loops": 612.5,
    "rate": 1032.123,
    "rate_low": 998.0,
    "rate_high": 1054.0,
    "delta": 1028.693,
    "delta_low": 994.6,
    "delta_high": 1050.6,
    "verdict": "worse",
    "smallest_detectable": 70.25,
    "kl": 12.345,
    "flips": 99.96,
}


def test_table_of_two_splits(shown: Shown) -> None:
    few = [
        result | {"split": "librivox", "utterances": 5, "speakers": 1, "words": 76, "interval_unit": "utterance"}
        for result in (FP32, INT8)
    ]
    assert shown(FP32, few[0], INT8, few[1]) == (
        "test-clean: 2,620 utterances of 40 speakers, 52,576 words; intervals by speaker\n"
        "variant         MB  saved  WER %  vs fp32            95 %  verdict   shows      KL  flips  loops  RTFx\n"
        "fp32         966.9   0.0%   3.43                           baseline                            0   7.2\n"
        "quanto-int8  412.2  57.4%   3.41    -0.02  [-0.06, +0.02]  loss<0.3   0.09  0.0007   0.5%      0   7.2\n"
        "\n"
        "librivox: 5 utterances of 1 speaker, 76 words; intervals by utterance "
        "(fewer than 30 utterances: a rough guess)\n"
        "variant         MB  saved  WER %  vs fp32            95 %  verdict   shows      KL  flips  loops  RTFx\n"
        "fp32         966.9   0.0%   3.43                           baseline                            0   7.2\n"
        "quanto-int8  412.2  57.4%   3.41    -0.02  [-0.06, +0.02]  loss<0.3   0.09  0.0007   0.5%      0   7.2"
    )


def test_results_of_before_divergence_was_measured_are_shown(shown: Shown) -> None:
    *_, last = shown(FP32, INT8 | {"kl": None, "flips": None}).splitlines()
    assert last == "quanto-int8  412.2  57.4%   3.41    -0.02  [-0.06, +0.02]  loss<0.3   0.09                 0   7.2"


def test_loops_are_told_beside_the_rate_without_them(shown: Shown) -> None:
    none_left = INT8 | {"looping": 2620, "wer_without_loops": None}
    lines = shown(FP32, INT2, none_left).splitlines()[1:]
    assert [line[lines[0].index("verdict") :] for line in lines] == [
        "verdict  shows     KL  flips loops no loops RTFx",
        "baseline                         0           7.2",
        "worse    70.25  12.35 100.0%  1999    612.5  7.2",
        "loss<0.3  0.09 0.0007   0.5%  2620        -  7.2",
    ]
    assert "no loops" not in shown(FP32, none_left)  # nothing but that dash would stand there


def test_the_widest_tables_are_narrower_than_120(shown: Shown) -> None:
    widest = INT2 | {"size_mb": 1250.0, "wer_without_loops": 1004.0}
    silent = SILENT_INT2 | {"size_mb": 1250.0}
    for rows in ([FP32, INT8, widest], [SILENT, silent]):
        assert max(map(len, shown(*rows).splitlines())) in range(110, 120)


SILENT = FP32 | {
    "split": "silence",
    "utterances": 36,
    "speakers": 3,
    "words": 0,
    "minutes": 9.64,
    "measure": "insertions_per_minute",
    "rate": 0.0,
    "rate_low": 0.0,
    "rate_high": 0.0,
    "wer_without_loops": None,
    "interval_unit": "utterance",
}
SILENT_INT2 = INT2 | {name: SILENT[name] for name in ("split", "utterances", "words", "measure", "wer_without_loops")}


def test_a_split_without_words_is_told_in_words_per_minute(shown: Shown) -> None:
    silent_int8 = SILENT | {"variant": "quanto-int8", "rate": 12.5, "rate_low": 5.0, "rate_high": 31.25}
    silent_int8 = silent_int8 | {
        "verdict": "worse",
        "kl": 0.01,
        "flips": 1.0,
        "delta": 12.5,
        "delta_low": 1.0,
        "delta_high": 24.0,
    }
    assert shown(SILENT, silent_int8) == (
        "silence: 36 recordings without speech, 9.6 minutes; intervals by utterance\n"
        "variant         MB  saved  I/min  vs fp32             95 %  verdict   shows      KL  flips  loops  RTFx\n"
        "fp32         966.9   0.0%   0.00                            baseline                            0   7.2\n"
        "quanto-int8  966.9   0.0%  12.50   +12.50  [+1.00, +24.00]  worse            0.0100   1.0%      0   7.2"
    )


def test_notes_explain_the_columns_that_are_there() -> None:
    loops = "No loops: WER % without the utterances that loop; -: all of them do.\n"
    silence = "I/min: inserted words per minute of audio, in which nothing is said.\n"
    assert results.notes(frame(FP32, INT8)) == results.NOTES
    assert results.notes(frame(FP32, INT2)) == results.NOTES + loops
    assert results.notes(frame(FP32, SILENT, SILENT_INT2)) == results.NOTES + silence


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a git repository in which results of FP32 are committed."""
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports/results.csv").write_text(results_csv(FP32))
    monkeypatch.chdir(tmp_path)
    for command in (["init", "--quiet"], ["add", "."], [*AS_TESTER, "commit", "--quiet", "--message", "Run"]):
        subprocess.run(["git", *command], check=True)  # noqa: S607
    return tmp_path


AS_TESTER = ["-c", "user.name=A Tester", "-c", "user.email=tester@example.org"]


@pytest.mark.usefixtures("repository")
def test_main_says_what_the_columns_mean_and_where_the_figures_are(capsys: pytest.CaptureFixture[str]) -> None:
    results.main()
    assert capsys.readouterr().out == (
        "test-clean: 2,620 utterances of 40 speakers, 52,576 words; intervals by speaker\n"
        "variant     MB  saved  WER %  vs fp32  95 %  verdict   shows  KL  flips  loops  RTFx\n"
        "fp32     966.9   0.0%   3.43                 baseline                        0   7.2\n"
        "\n"
        "95 %: bootstrap interval of the difference to fp32, paired, by speaker or utterance as said above.\n"
        "Verdict: by sign flips, after Holm's correction over all variants, unlike the intervals. Loss<0.3: if it is "
        "worse, then\nby less than 0.3. Undecided: this speech is too little to show it worse, better, or losing less "
        "than 1.0.\n"
        "Shows: the true difference that this corpus would find significant in four cases of five.\n"
        "KL: how far its next tokens' distributions are from fp32's, nats a token; "
        "flips: tokens whose likeliest is another.\n"
        "Made on: A processor.\n"
        "Figures: reports/figures/; everything known: reports/results.csv; the page to look at: reports/index.html\n"
    )


OLD = {"machine": "A processor", "instructions": "avx2 avx512f"}
DIFFER = """\
The committed results were made on {}:
quantized kernels may round differently there, so 'dvc metrics diff' may show changes that nobody made."""


@pytest.mark.parametrize(
    ("here", "committed", "sentence"),
    [
        (OLD, OLD, ""),
        (OLD | {"machine": "Another"}, OLD, DIFFER.format("A processor (avx2 avx512f)")),
        (OLD | {"instructions": "avx2"}, OLD, DIFFER.format("A processor (avx2 avx512f)")),
        (OLD, OLD | {"instructions": ""}, ""),  # results of before instructions were recorded
        (OLD | {"machine": "Another"}, OLD | {"instructions": ""}, DIFFER.format("A processor")),
    ],
)
def test_results_of_another_processor_are_told(here: Row, committed: Row, sentence: str) -> None:
    assert results.elsewhere(frame(FP32 | here), frame(FP32 | committed)) == sentence


def test_processors_are_told_once_each(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [FP32 | OLD, INT8 | OLD, INT2 | {"machine": "A GPU", "instructions": "avx2"}]
    (repository / "reports/results.csv").write_text(results_csv(*rows))
    results.main()
    made_on, *sentence, _ = capsys.readouterr().out.splitlines()[-4:]
    assert made_on == "Made on: A processor (avx2 avx512f); A GPU (avx2)."
    assert "\n".join(sentence) == DIFFER.format("A processor")


@pytest.mark.usefixtures("repository")
def test_without_committed_results_nothing_is_said_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    found = results.committed()
    assert found is not None
    assert results.processors(found) == ["A processor"]
    monkeypatch.setattr(results, "RESULTS", Path("reports/other.csv"))
    assert results.committed() is None
    monkeypatch.setenv("PATH", "")
    assert results.committed() is None
