import csv
import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import pytest

from pipeline.core.errors import UserError
from pipeline.results import comparison, tables
from pipeline.scoring import wer

SCORED: comparison.Json = {
    "scoring": {"normalizer": "english"},
    "normalizer_version": "whisper-normalizer 0.1.15",
}


def scores(*wrong: int, words: int = 10, speakers: int = 1) -> comparison.Json:
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
        **SCORED,
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
                "hypothesis": "b " * n + "a " * (words - n),
            }
            for i, n in enumerate(wrong)
        ],
    }


def timings(total: int, **variant: Any) -> comparison.Json:
    """Return the timings of a checkpoint of `total` bytes."""
    return {
        "device": "cpu",
        "rtfx": 12.3456,
        "peak_gpu_mb": None,
        "split_utterances": {"clean": 20, "silence": 3},
        "conversions": {split: {"resampled": 4, "mixed_down": 2} for split in ("clean", "silence")},
        "versions": {"torch": "2.13.0"},
        "checkpoint": {
            "variant": {"backend": "none"} | variant,
            "calibration": ["u8", "u9"],
            "bytes": {"total": total, "scales": 7},
            "bits_per_weight": 4.5,
        },
    }


def agreements(scores: comparison.Json, kl: float = 0.0, flips: int = 0, tokens: int = 10) -> comparison.Json:
    """Return the agreement with fp32 of a variant with these scores: in each utterance the same sums."""
    same = {"tokens": tokens, "kl": kl, "flips": flips, "log_likelihood": -kl}
    rates = {"tokens": tokens, "kl": kl / tokens, "kl_p99": kl, "flips": 100 * flips / tokens, "log_likelihood": -kl}
    return {
        "dequantized": False,
        "splits": dict.fromkeys(scores["splits"], rates),
        "utterances": [{key: u[key] for key in ("id", "split", "speaker")} | same for u in scores["utterances"]],
    }


def word_errors(
    wrong: dict[str, list[int]], words: list[int], speakers: Sequence[str | None], resamples: int = 2000
) -> dict[str, comparison.Row]:
    """Return the differences of WER."""
    return comparison.differences("wer", wrong, words, speakers, resamples, seed=0)


@pytest.mark.parametrize(
    ("wrong", "verdict"),
    [
        ([2] * 10, "worse"),
        ([0] * 10, "better"),
        ([1] * 10, "undecided"),
        ([2, 0] * 5, "undecided"),
        ([9] + [1] * 9, "undecided"),  # a single utterance tells nothing, however bad
    ],
)
def test_verdicts(wrong: list[int], verdict: str) -> None:
    result = word_errors({"fp32": [1] * 10, "other": wrong}, [10] * 10, [None] * 10)
    assert result["fp32"]["verdict"] == "baseline"
    assert result["other"]["verdict"] == verdict
    assert result["other"]["wer_delta"] == pytest.approx(sum(wrong) - 10)


def test_the_more_variants_the_stronger_must_the_evidence_be() -> None:
    # 14 of 20 utterances get worse and 4 get better: p is 2 (1 + 18 + 153 + 816 + 3,060) / 2^18 = 0.031.
    wrong, words, speakers = [2] * 14 + [0] * 4 + [1] * 2, [10] * 20, [None] * 20
    few = word_errors({"fp32": [1] * 20, "a": wrong}, words, speakers)
    many = word_errors({"fp32": [1] * 20, **{f"v{i}": wrong for i in range(18)}}, words, speakers)
    assert few["a"]["verdict"] == "worse"
    assert {row["p_value"] for name, row in many.items() if name != "fp32"} == {few["a"]["p_value"]}
    assert {row["verdict"] for name, row in many.items()} == {"baseline", "undecided"}
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
        "p_no_worse_0_3": pytest.approx(math.exp(-0.105)),  # of 35 words no new error is no wonder
        "p_no_worse_0_5": pytest.approx(math.exp(-0.175)),
        "p_no_worse_1_0": pytest.approx(math.exp(-0.35)),
        "test_unit": "utterance",
        "verdict": "undecided",
        "no_worse_than": None,
        "smallest_detectable": 600 / 35,  # six words: 2 / 2^6 is below 0.05
        "units_to_decide": 86.0,  # utterances: 5 x 600 / 35, so that six words are 1.0 points
    }


def test_ten_speakers_lead() -> None:
    # Of ten speakers, one gets worse in all of his twenty utterances, the others stay as they were. By utterance that
    # is clear, as 20 of 200 do; but they are one speaker of ten.
    wrong, words = [1] * 20 + [0] * 180, [10] * 200
    speakers = [f"s{n // 20}" for n in range(200)]
    row = word_errors({"fp32": [0] * 200, "a": wrong}, words, speakers, 10_000)["a"]
    assert row["wer_delta"] == 1.0
    assert row["p_value_utterance"] < 0.0001
    assert row["p_value"] == row["p_value_speaker"] == 1.0  # to one side or to the other: it tells nothing
    # The standard error over ten speakers is sqrt(0.1 x 0.9 / 10) x sqrt(10 / 9) x 10 points = 1, and t is 2.262.
    assert (row["wer_delta_low"], row["wer_delta_high"]) == pytest.approx((-1.26, 3.26), abs=0.05)
    assert (row["wer_delta_low"], row["wer_delta_high"]) == (
        row["wer_delta_low_speaker"],
        row["wer_delta_high_speaker"],
    )
    assert row["smallest_detectable"] == pytest.approx(2.262 + 0.883, rel=0.02)
    assert row["verdict"] == "undecided"


def test_nine_speakers_do_not_lead() -> None:
    wrong, words, speakers = [1] * 20 + [0] * 160, [10] * 180, [f"s{n // 20}" for n in range(180)]
    row = word_errors({"fp32": [0] * 180, "a": wrong}, words, speakers)["a"]
    assert row["p_value"] == row["p_value_utterance"] < row["p_value_speaker"]
    assert row["verdict"] == "worse"


def test_a_loss_below_a_margin_is_shown_by_enough_speech() -> None:
    # 40 speakers of 200 words: ten say a word wrong that fp32 had right, and ten the other way round; 0.3 points are
    # 0.6 words a speaker.
    wrong, fp32, speakers = [1, 0] * 10 + [0] * 20, [0, 1] * 10 + [0] * 20, [f"s{n}" for n in range(40)]
    row = word_errors({"fp32": fp32, "a": wrong}, [200] * 40, speakers)["a"]
    assert (row["verdict"], row["no_worse_than"], row["test_unit"]) == ("no worse", 0.3, "speaker")
    assert row["p_no_worse_1_0"] <= row["p_no_worse_0_5"] <= row["p_no_worse_0_3"] < 0.001
    assert row["units_to_decide"] is None
    # The same with half a point more: one more error in each 200 words.
    row = word_errors({"fp32": fp32, "a": [one + 1 for one in wrong]}, [200] * 40, speakers)["a"]
    assert (row["verdict"], row["no_worse_than"]) == ("worse", 1.0)
    assert row["p_no_worse_0_5"] > 0.4


def test_speech_that_is_too_little_shows_no_margin() -> None:
    """Forty speakers who say the same as before: in 360 words a loss of 1.0 may add nothing once in 37 corpora."""
    speakers = [f"s{n}" for n in range(40)]
    few, enough = (word_errors({"fp32": [0] * 40, "a": [0] * 40}, [words] * 40, speakers)["a"] for words in (9, 10))
    assert (few["verdict"], few["p_no_worse_1_0"]) == ("undecided", pytest.approx(math.exp(-3.6)))
    assert (enough["verdict"], enough["no_worse_than"]) == ("no worse", 1.0)
    assert enough["p_no_worse_0_5"] == pytest.approx(math.exp(-2))


def test_what_would_decide_is_more_than_there_is() -> None:
    """Of ten speakers nine have two errors more, which 24 tests leave undecided: not four speakers would decide."""
    errors = {"fp32": [0] * 10} | {f"v{n}": [2] * 9 + [0] for n in range(24)}
    row = word_errors(errors, [120] * 10, [f"s{n}" for n in range(10)])["v0"]
    assert row["verdict"] == "undecided"
    assert row["units_to_decide"] > 10


def test_fp32_alone_is_a_baseline() -> None:
    row = word_errors({"fp32": [1, 2]}, [10, 10], ["a", "b"])["fp32"]
    assert (row["verdict"], row["p_holm"], row["p_no_worse_1_0"]) == ("baseline", None, None)


def test_speakers_too_few_for_so_many_variants_leave_it_to_utterances() -> None:
    """A WER of 826 % was "no significant difference": ten speakers cannot show anything among 35 variants."""
    speakers = [f"s{n % 10}" for n in range(60)]
    bad = {f"v{n}": [80] * 60 if n == 0 else [1] * 60 for n in range(35)}
    row = word_errors({"fp32": [1] * 60} | bad, [10] * 60, speakers)["v0"]
    assert (row["verdict"], row["test_unit"]) == ("worse", "utterance")


def test_churn_is_counted_where_the_rate_stands_still() -> None:
    row = table(fp32=scores(1, 1, 0, 0, 2), a=scores(0, 0, 1, 1, 2))["a", "clean"]
    assert row["wer_delta"] == 0.0
    kept = ("other_texts", "other_ids", "regressed", "improved", "p_churn", "empty")
    assert [row[key] for key in kept] == [4, "u0 u1 u2 u3", 2, 2, 1.0, 0]


def test_neighbours_by_size_have_columns() -> None:
    of = {"fp32": scores(1, 1), "a": scores(1, 1), "b": scores(1, 1), "candidate": scores(1, 1)}
    sizes = {name: timings(total, backend="hqq") for name, total in zip(of, (400, 100, 200, 150), strict=True)}
    agreed = {name: agreements(each, kl=kl) for (name, each), kl in zip(of.items(), (0.0, 0.2, 0.1, 0.0), strict=True)}
    rows = {row["variant"]: row for row in comparison.rows(of, agreed, sizes, resamples=1000, seed=0)}
    assert (rows["a"]["larger"], rows["a"]["p_kl"]) == ("b", 0.5)
    assert rows["a"]["kl_less_larger"] == pytest.approx(0.01)
    assert {rows[name]["larger"] for name in ("fp32", "b", "candidate")} == {None}


def silent(*inserted: int) -> comparison.Json:
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
    utterances = wer.score(lines, str)
    splits = {"silence": wer.summarize(utterances, resamples=1000, seed=0)}
    return {"splits": splits, **SCORED, "utterances": [dataclasses.asdict(utterance) for utterance in utterances]}


def table(**scores: comparison.Json) -> dict[tuple[str, str], comparison.Row]:
    """Return the rows of results.csv by variant and split."""
    sizes = {name: timings(100, backend="hqq") for name in scores}
    agreed = {name: agreements(of) for name, of in scores.items()}
    rows = comparison.rows(scores, agreed, sizes, resamples=1000, seed=0)
    return {(row["variant"], row["split"]): row for row in rows}


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
    assert (row["p_value"], row["p_holm"], row["verdict"]) == (1.0, 1.0, "undecided")
    assert row["smallest_detectable"] == pytest.approx(6 * 60 / 18)  # six words


def test_metrics_hold_the_measure_of_each_split() -> None:
    def both(wrong: list[int], inserted: list[int]) -> comparison.Json:
        spoken, silence = scores(*wrong), silent(*inserted)
        utterances = spoken["utterances"] + silence["utterances"]
        return {"splits": spoken["splits"] | silence["splits"], **SCORED, "utterances": utterances}

    rows = table(fp32=both([1, 1], [0, 0]), a=both([2, 2], [0, 0])).values()
    metrics = comparison.metrics(list(rows))["a"]
    assert metrics["clean"] == {
        "wer": 20.0,
        "wer_low": 1.0,
        "wer_high": 30.0,
        "wer_delta": 10.0,
        "wer_delta_low": 10.0,
        "wer_delta_high": 10.0,
        "kl": 0.0,
        "flips": 0.0,
    }
    assert metrics["silence"] == {
        "insertions_per_minute": 0.0,
        "insertions_per_minute_low": 0.0,
        "insertions_per_minute_high": 0.0,
        "insertions_per_minute_delta": 0.0,
        "insertions_per_minute_delta_low": 0.0,
        "insertions_per_minute_delta_high": 0.0,
        "kl": 0.0,
        "flips": 0.0,
    }
    *_, clean, silence = csv.DictReader(tables.to_csv(list(rows)).splitlines())
    assert (clean["insertions_per_minute_delta"], silence["wer_delta"], silence["wer"]) == ("", "", "")


def test_torchao_is_held_against_torch_ao_of_equal_settings() -> None:
    dynamic = {"activations": "dynamic", "granularity": "channel"}
    settings = {
        "fp32": {},
        "ao": {"backend": "torch", **dynamic, "rest": "float32"},
        "tensor": {"backend": "torch", **dynamic, "granularity": "tensor"},
        "torchao": {"backend": "torchao", **dynamic, "rest": "float16"},
        "weight-only": {"backend": "torchao"},
    }
    same = scores(1, 1)
    kls = dict(zip(settings, (0.0, 0.4, 0.5, 0.1, 0.2), strict=True))
    rows = comparison.rows(
        dict.fromkeys(settings, same),
        {name: agreements(same, kl) for name, kl in kls.items()},
        {
            name: timings(100, **variant) | {"latency": {"p50_ms": 150.0 if name == "torchao" else 100.0}}
            for name, variant in settings.items()
        },
        resamples=1000,
        seed=0,
    )
    found = {
        row["variant"]: [row[key] for key in ("torch_ao", "kl_of_torch_ao", "latency_of_torch_ao")] for row in rows
    }
    assert found.pop("torchao") == ["ao", pytest.approx(0.25), 1.5]
    assert found == {name: [None, None, None] for name in found}


def test_many_loops_are_counted_rather_than_named() -> None:
    names = [f"u{n}" for n in range(25)]
    assert comparison.shortened(names[:3]) == "u0 u1 u2"
    assert comparison.shortened(names).endswith(" u18 u19 and 5 more")
    assert comparison.shortened([]) == ""


def test_different_utterances_are_refused() -> None:
    with pytest.raises(UserError) as raised:
        comparison.check_same({"fp32": scores(1, 1), "a": scores(1, 1), "b": scores(1)})
    assert str(raised.value) == (
        "'fp32' and 'b' cannot be compared: the reference of 'u1' in split 'clean' is 'a a a a a a a a a a ' in one, "
        "missing in the other; run 'python -m pipeline.transcribe' and 'python -m pipeline.score' again for both"
    )


def test_different_references_are_refused() -> None:
    with pytest.raises(
        UserError, match="the reference of 'u0' in split 'clean' is 'a a ' in one, 'a a a ' in the other"
    ):
        comparison.check_same({"fp32": scores(1, words=2), "a": scores(1, words=3)})


def test_sizes() -> None:
    assert comparison.sizes(412_200_000, 966_900_000) == pytest.approx(
        {"size_mb": 412.2, "size_reduction": 57.369, "size_reduction_fp16": 14.738}, abs=0.001
    )


def test_the_candidate_is_told_by_its_measure_and_its_change() -> None:
    rows = [
        {"variant": variant, "split": split, "size_mb": size, "measure": measure, measure: rate, "kl": 0.000712}
        | {f"{measure}_delta{bound}": value for bound, value in zip(("", "_low", "_high"), change, strict=True)}
        for variant, split, size, measure, rate, change in (
            ("fp32", "clean", 151.06, "wer", 4.225, (0.0, 0.0, 0.0)),
            ("candidate", "clean", 101.7, "wer", 1.408, (-2.817, -13.623, 7.989)),
            ("candidate", "silence", 101.7, "insertions_per_minute", 0.5, (0.0, 0.0, 0.0)),
        )
    ]
    assert comparison.candidate(rows) == {
        "size_mb": 101.7,
        "clean": {"wer": 1.408, "vs_fp32": "-2.82 [-13.62, +7.99]", "kl": 0.000712},
        "silence": {"insertions_per_minute": 0.5, "vs_fp32": "+0.00 [+0.00, +0.00]", "kl": 0.000712},
    }
