import csv
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from pipeline import compare, score
from pipeline.errors import UserError

PARAMS = """
model: tiny
corpus: two
device: cpu
backend: quanto
variants:
  fp32: {backend: none, bits: 32, format: float}
  hqq-int4: {backend: hqq, bits: 4, exclude: [proj_out, model.decoder.*]}
decoding: {}
latency: {}
calibration: {corpus: two, split: dev, utterances: 1}
scoring: {resamples: 1000}
models:
  tiny: {source: directory, path: tiny}
corpora:
  two: {source: directory, path: two, splits: [clean]}
"""


def scores(*wrong: int, words: int = 10, speakers: int = 1) -> compare.Json:
    """Return the scores of a split `clean` whose utterances u0, u1, ... have this many substitutions each.

    They are said by so many speakers in turn.
    """
    return {
        "splits": {
            "clean": {
                "utterances": len(wrong),
                "words": words * len(wrong),
                "hits": words * len(wrong) - sum(wrong),
                "substitutions": sum(wrong),
                "deletions": 0,
                "insertions": 0,
                "looping": 0,
                "looping_ids": [],
                "measure": "wer",
                "wer": 100 * sum(wrong) / (words * len(wrong)),
                "wer_low": 1.0,
                "wer_high": 30.0,
            }
        },
        "utterances": [
            {
                "id": f"u{i}",
                "split": "clean",
                "speaker": f"s{i % speakers}",
                "alignment": "S" * n + "=" * (words - n),
                "hits": words - n,
                "substitutions": n,
                "deletions": 0,
                "insertions": 0,
                "reference": "a " * words,
            }
            for i, n in enumerate(wrong)
        ],
    }


def timings(total: int, **variant: Any) -> compare.Json:
    """Return the timings of a checkpoint of `total` bytes."""
    return {
        "device": "cpu",
        "rtfx": 12.3456,
        "peak_gpu_mb": None,
        "split_utterances": {"clean": 20, "silence": 3},
        "versions": {"torch": "2.13.0"},
        "checkpoint": {
            "variant": variant,
            "calibration": ["u8", "u9"],
            "bytes": {"total": total, "scales": 7},
            "bits_per_weight": 4.5,
        },
    }


def study(folder: Path, **wrong: list[int]) -> None:
    """Write params.yaml, scores and timings; a name's underscores stand for hyphens."""
    (folder / "params.yaml").write_text(PARAMS)
    (folder / "reports/scores").mkdir(parents=True)
    (folder / "reports/timings").mkdir(parents=True)
    for name, total, variant in (
        ("fp32", 150_000_000, {"backend": "none", "bits": 32, "group_size": None, "exclude": []}),
        ("hqq-int4", 90_000_000, {"backend": "hqq", "bits": 4, "group_size": 64, "exclude": ["a", "b*"]}),
        ("candidate", 100_000_000, {"backend": "quanto", "bits": 8, "group_size": None, "exclude": []}),
    ):
        (folder / f"reports/scores/{name}.json").write_text(json.dumps(scores(*wrong[name.replace("-", "_")])))
        (folder / f"reports/timings/{name}.json").write_text(json.dumps(timings(total, **variant)))


def test_main_writes_the_metrics_of_the_contract_and_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Every utterance has the same rate, so that every resample has too: 10 %, 20 % and 10 %.
    study(tmp_path, fp32=[1] * 10, hqq_int4=[2] * 10, candidate=[1] * 10)
    monkeypatch.chdir(tmp_path)
    compare.main()
    assert json.loads(Path("reports/metrics.json").read_text()) == {
        "fp32": {
            "size_mb": 150.0,
            "size_reduction": 0.0,
            "clean": {
                "wer": 10.0,
                "wer_low": 1.0,
                "wer_high": 30.0,
                "wer_delta": 0.0,
                "wer_delta_low": 0.0,
                "wer_delta_high": 0.0,
            },
        },
        "hqq-int4": {
            "size_mb": 90.0,
            "size_reduction": 40.0,
            "clean": {
                "wer": 20.0,
                "wer_low": 1.0,
                "wer_high": 30.0,
                "wer_delta": 10.0,
                "wer_delta_low": 10.0,
                "wer_delta_high": 10.0,
            },
        },
        "candidate": {
            "size_mb": 100.0,
            "size_reduction": 33.333,
            "clean": {
                "wer": 10.0,
                "wer_low": 1.0,
                "wer_high": 30.0,
                "wer_delta": 0.0,
                "wer_delta_low": 0.0,
                "wer_delta_high": 0.0,
            },
        },
    }
    with Path("reports/results.csv").open(newline="") as file:
        baseline, variant, candidate = csv.DictReader(file)
    assert (baseline["verdict"], baseline["p_value"], baseline["p_holm"]) == ("baseline", "", "")
    assert (candidate["verdict"], candidate["p_value"], candidate["p_holm"]) == (
        "no significant difference",
        "1.0",
        "1.0",
    )
    assert variant == {
        "variant": "hqq-int4",
        "split": "clean",
        "backend": "hqq",
        "bits": "4",
        "group_size": "64",
        "exclude": "a b*",
        "utterances": "10",
        "split_utterances": "20",
        "words": "100",
        "hits": "80",
        "substitutions": "20",
        "deletions": "0",
        "insertions": "0",
        "looping": "0",
        "looping_ids": "",
        "measure": "wer",
        "wer": "20.0",
        "wer_low": "1.0",
        "wer_high": "30.0",
        "wer_delta": "10.0",
        "wer_delta_low": "10.0",
        "wer_delta_high": "10.0",
        "wer_delta_low_utterance": "10.0",
        "wer_delta_high_utterance": "10.0",
        "wer_delta_low_speaker": "",  # there is only one
        "wer_delta_high_speaker": "",
        "p_value": "0.001953",  # ten utterances agree: 2 / 2^10
        "p_value_utterance": "0.001953",
        "p_value_speaker": "",
        "p_holm": "0.003906",  # the smaller of two
        "verdict": "worse",
        "smallest_detectable": "7.0",  # words of a hundred: 2 / 2^7 is below 0.05 / 2, 2 / 2^6 is not
        "mapsswe_z": "3.162",  # ten segments that all differ by one: sqrt(10)
        "mapsswe_p": "0.001565",
        "size_mb": "90.0",
        "size_reduction": "40.0",
        "size_reduction_fp16": "-20.0",
        "calibration": "2",
        "bytes_total": "90000000",
        "bytes_scales": "7",
        "bits_per_weight": "4.5",
        "device": "cpu",
        "rtfx": "12.346",
        "peak_gpu_mb": "",
        "versions_torch": "2.13.0",
    }


def test_a_dropped_variant_disappears(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study(tmp_path, fp32=[1, 1], hqq_int4=[2, 2], candidate=[1, 1])
    kept = [line for line in PARAMS.splitlines() if "hqq-int4" not in line]
    (tmp_path / "params.yaml").write_text("\n".join(kept))
    monkeypatch.chdir(tmp_path)
    compare.main()
    assert list(json.loads(Path("reports/metrics.json").read_text())) == ["fp32", "candidate"]


def word_errors(
    wrong: dict[str, list[int]], words: list[int], speakers: Sequence[str | None], resamples: int = 2000
) -> dict[str, compare.Row]:
    """Return the differences of WER."""
    return compare.differences("wer", wrong, 1, words, speakers, resamples, seed=0)


@pytest.mark.parametrize(
    ("wrong", "verdict"),
    [
        ([2] * 10, "worse"),
        ([0] * 10, "better"),
        ([1] * 10, "no significant difference"),
        ([2, 0] * 5, "no significant difference"),
        ([9] + [1] * 9, "no significant difference"),  # a single utterance tells nothing, however bad
    ],
)
def test_verdicts(wrong: list[int], verdict: str) -> None:
    result = word_errors({"fp32": [1] * 10, "other": wrong}, [10] * 10, [None] * 10)
    assert result["fp32"]["verdict"] == "baseline"
    assert result["other"]["verdict"] == verdict
    assert result["other"]["wer_delta"] == pytest.approx(sum(wrong) - 10)


def test_the_more_variants_the_stronger_must_the_evidence_be() -> None:
    # 14 of 20 utterances get worse and 4 get better: p is about 0.015.
    wrong, words, speakers = [2] * 14 + [0] * 4 + [1] * 2, [10] * 20, [None] * 20
    few = word_errors({"fp32": [1] * 20, "a": wrong}, words, speakers)
    many = word_errors({"fp32": [1] * 20, **{f"v{i}": wrong for i in range(18)}}, words, speakers)
    assert few["a"]["verdict"] == "worse"
    assert {row["p_value"] for name, row in many.items() if name != "fp32"} == {few["a"]["p_value"]}
    assert {row["verdict"] for name, row in many.items()} == {"baseline", "no significant difference"}
    assert many["v0"]["smallest_detectable"] > few["a"]["smallest_detectable"]


def test_identical_transcripts_differ_by_exactly_nothing() -> None:
    wrong, words, speakers = [0, 3, 1, 7, 0], [5, 9, 11, 8, 2], ["a", "b", "a", "c", "b"]
    assert word_errors({"fp32": wrong, "same": wrong}, words, speakers)["same"] == {
        "wer_delta": 0.0,
        "wer_delta_low": 0.0,
        "wer_delta_high": 0.0,
        "wer_delta_low_utterance": 0.0,
        "wer_delta_high_utterance": 0.0,
        "wer_delta_low_speaker": 0.0,
        "wer_delta_high_speaker": 0.0,
        "p_value": 1.0,
        "p_value_utterance": 1.0,
        "p_value_speaker": 1.0,
        "p_holm": 1.0,
        "verdict": "no significant difference",
        "smallest_detectable": 600 / 35,  # six words: 2 / 2^6 is below 0.05
    }


def test_ten_speakers_lead() -> None:
    # Of ten speakers, one gets worse in all of his twenty utterances, the others stay as they were. By utterance that
    # is clear, as 20 of 200 do; but they are one speaker of ten.
    wrong, words = [1] * 20 + [0] * 180, [10] * 200
    speakers = [f"s{n // 20}" for n in range(200)]
    row = word_errors({"fp32": [0] * 200, "a": wrong}, words, speakers, 10_000)["a"]
    assert row["wer_delta"] == 1.0
    assert row["p_value_utterance"] < 0.0001
    # The standard error over ten speakers is sqrt(0.1 x 0.9 / 10) x sqrt(10 / 9) x 10 points = 1; t is then 1, and
    # Student's t with 9 degrees of freedom is beyond it in 34.3 % of all cases.
    assert row["p_value"] == row["p_value_speaker"] == pytest.approx(0.343, abs=0.01)
    assert (row["wer_delta_low"], row["wer_delta_high"]) == pytest.approx((-1.26, 3.26), abs=0.05)
    assert (row["wer_delta_low"], row["wer_delta_high"]) == (
        row["wer_delta_low_speaker"],
        row["wer_delta_high_speaker"],
    )
    assert row["smallest_detectable"] == pytest.approx(2.262 + 0.883, rel=0.02)
    assert row["verdict"] == "no significant difference"


def test_nine_speakers_do_not_lead() -> None:
    wrong, words, speakers = [1] * 20 + [0] * 160, [10] * 180, [f"s{n // 20}" for n in range(180)]
    row = word_errors({"fp32": [0] * 180, "a": wrong}, words, speakers)["a"]
    assert row["p_value"] == row["p_value_utterance"] < row["p_value_speaker"]
    assert row["verdict"] == "worse"


def silent(*inserted: int) -> compare.Json:
    """Return the scores of a split `silence`, of 6 s for each number of inserted words, as score writes them."""
    lines = [
        {
            "id": f"hiss-{n}",
            "split": "silence",
            "speaker": "hiss",
            "duration": 6.0,
            "text": "",
            "pred_text": "a " * words,
        }
        for n, words in enumerate(inserted)
    ]
    utterances = score.score(lines, str)
    splits = {"silence": score.summarize(utterances, resamples=1000, seed=0)}
    return {"splits": splits, "utterances": [dataclasses.asdict(utterance) for utterance in utterances]}


def table(**scores: compare.Json) -> dict[tuple[str, str], compare.Row]:
    """Return the rows of results.csv by variant and split."""
    sizes = {name: timings(100, backend="hqq") for name in scores}
    return {(row["variant"], row["split"]): row for row in compare.rows(scores, sizes, resamples=1000, seed=0)}


def test_where_nothing_is_said_inserted_words_per_minute_are_compared() -> None:
    # A minute in ten utterances: two words of fp32, and one more in each utterance.
    rows = table(fp32=silent(1, 1, *[0] * 8), a=silent(2, 2, *[1] * 8))
    row = rows["a", "silence"]
    assert (row["insertions_per_minute"], rows["fp32", "silence"]["insertions_per_minute"]) == (12.0, 2.0)
    bounds = [row[f"insertions_per_minute_delta{end}"] for end in ("", "_low", "_high")]
    assert bounds == pytest.approx([10.0] * 3)
    assert row["p_value"] == 2 / 2**10  # all ten utterances agree
    assert row["verdict"] == "worse"
    assert row["smallest_detectable"] == 6.0  # words in this minute: 2 / 2^6 is below 0.05
    assert (row["mapsswe_z"], row["mapsswe_p"], row["wer"]) == (None, None, None)
    assert [name for name in row if name.startswith("wer_delta")] == []


def test_differences_of_insertions_have_the_interval_of_their_mean() -> None:
    # Five of ten utterances of 6 s get a word: 10 a minute and 0, so 5 with a standard error of 1.6667; t is 2.2622.
    row = table(fp32=silent(*[0] * 10), a=silent(*[1, 0] * 5))["a", "silence"]
    bounds = [row[f"insertions_per_minute_delta{end}"] for end in ("", "_low", "_high")]
    assert bounds == pytest.approx([5.0, 5 - 3.770, 5 + 3.770], rel=0.1)
    assert row["smallest_detectable"] == 6.0  # words: more than (2.2622 + 0.8834) * 1.6667 = 5.2


@pytest.mark.parametrize("inserted", [[0, 0, 0], [0, 30, 2]])
def test_the_same_words_written_in_silence_differ_by_exactly_nothing(inserted: list[int]) -> None:
    row = table(fp32=silent(*inserted), same=silent(*inserted))["same", "silence"]
    deltas = [row[f"insertions_per_minute_delta{end}"] for end in ("", "_low", "_high")]
    assert deltas == [0.0, 0.0, 0.0]
    assert (row["p_value"], row["p_holm"], row["verdict"]) == (1.0, 1.0, "no significant difference")
    assert row["smallest_detectable"] == pytest.approx(6 * 60 / 18)  # six words


def test_metrics_hold_the_measure_of_each_split() -> None:
    def both(wrong: list[int], inserted: list[int]) -> compare.Json:
        spoken, silence = scores(*wrong), silent(*inserted)
        utterances = spoken["utterances"] + silence["utterances"]
        return {"splits": spoken["splits"] | silence["splits"], "utterances": utterances}

    rows = table(fp32=both([1, 1], [0, 0]), a=both([2, 2], [0, 0])).values()
    metrics = compare.metrics(list(rows))["a"]
    assert metrics["clean"] == {
        "wer": 20.0,
        "wer_low": 1.0,
        "wer_high": 30.0,
        "wer_delta": 10.0,
        "wer_delta_low": 10.0,
        "wer_delta_high": 10.0,
    }
    assert metrics["silence"] == {
        "insertions_per_minute": 0.0,
        "insertions_per_minute_low": 0.0,
        "insertions_per_minute_high": 0.0,
        "insertions_per_minute_delta": 0.0,
        "insertions_per_minute_delta_low": 0.0,
        "insertions_per_minute_delta_high": 0.0,
    }
    *_, clean, silence = csv.DictReader(compare.to_csv(list(rows)).splitlines())
    assert (clean["insertions_per_minute_delta"], silence["wer_delta"], silence["wer"]) == ("", "", "")


def test_many_loops_are_counted_rather_than_named() -> None:
    names = [f"u{n}" for n in range(25)]
    assert compare.shortened(names[:3]) == "u0 u1 u2"
    assert compare.shortened(names).endswith(" u18 u19 and 5 more")
    assert compare.shortened([]) == ""


def test_different_utterances_are_refused() -> None:
    with pytest.raises(UserError) as raised:
        compare.check_same({"fp32": scores(1, 1), "a": scores(1, 1), "b": scores(1)})
    assert str(raised.value) == (
        "'fp32' and 'b' cannot be compared: the reference of 'u1' in split 'clean' is 'a a a a a a a a a a ' in one, "
        "missing in the other; run 'python -m pipeline.transcribe' and 'python -m pipeline.score' again for both"
    )


def test_different_references_are_refused() -> None:
    with pytest.raises(
        UserError, match="the reference of 'u0' in split 'clean' is 'a a ' in one, 'a a a ' in the other"
    ):
        compare.check_same({"fp32": scores(1, words=2), "a": scores(1, words=3)})


def test_sizes() -> None:
    assert compare.sizes(412_200_000, 966_900_000) == pytest.approx(
        {"size_mb": 412.2, "size_reduction": 57.369, "size_reduction_fp16": 14.738}, abs=0.001
    )


def test_rounding_keeps_what_can_be_told_apart() -> None:
    row = {"variant": "a", "words": 1204, "wer": 4.152823920265781, "wer_delta": -0.0001}
    row |= {"p_value_speaker": 0.00035999999, "mapsswe_p": 0.00123456, "p_holm": None}
    assert json.dumps(compare.rounded(row)) == (
        '{"variant": "a", "words": 1204, "wer": 4.153, "wer_delta": 0.0, "p_value_speaker": 0.00036, '
        '"mapsswe_p": 0.001235, "p_holm": null}'
    )


def test_csv_has_every_column_that_any_row_has() -> None:
    assert compare.to_csv([{"a": 1, "b": None}, {"a": "x, y", "c": True}]) == 'a,b,c\n1,,\n"x, y",,True\n'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "fp32.json is not here; run 'dvc repro', or 'python -m pipeline.score fp32'"),
        ("{", "is not valid JSON"),
    ],
)
def test_a_missing_or_broken_file_is_refused(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "fp32.json").write_text(content)
    with pytest.raises(UserError, match=message):
        compare.read(tmp_path / "fp32.json", "score")
