import json
import math
from pathlib import Path
from typing import Any

import pytest

from pipeline.core.errors import UserError
from pipeline.scoring import normalizers, wer


def line(text: str, pred_text: str, name: str = "a-1", split: str = "test-clean") -> dict[str, Any]:
    """Return a line of a transcript."""
    return {"id": name, "split": split, "speaker": "a", "duration": 1.0, "text": text, "pred_text": pred_text}


@pytest.mark.parametrize(
    ("reference", "hypothesis", "alignment", "character_errors"),
    [
        ("the cat sat", "the cat sat", "===", 0),
        ("the cat sat", "the dog sat", "=S=", 3),
        ("the cat sat", "the cut sat", "=S=", 1),
        ("the cat sat", "the sat", "=D=", 4),  # a word and a space
        ("the cat sat", "the cat sat down", "===I", 5),
        ("the cat sat", "", "DDD", 11),
        ("the cat sat", "a dog sat down there", "SS=II", 15),
        ("", "thank you", "II", 9),
        ("", "", "", 0),
    ],
)
def test_counts(reference: str, hypothesis: str, alignment: str, character_errors: int) -> None:
    (scored,) = wer.score([line(reference, hypothesis)], str)
    assert scored == wer.Scored(
        id="a-1",
        split="test-clean",
        speaker="a",
        duration=1.0,
        hits=alignment.count("="),
        substitutions=alignment.count("S"),
        deletions=alignment.count("D"),
        insertions=alignment.count("I"),
        alignment=alignment,
        character_errors=character_errors,
        looping=False,
        reference=reference,
        hypothesis=hypothesis,
    )
    assert scored.words == len(reference.split())
    assert scored.errors == len(alignment.replace("=", ""))


def test_both_texts_are_normalized_before_they_are_compared() -> None:
    (scored,) = wer.score([line("MISTER BROWN HAS TWENTY ONE", "Mr. Brown has 21.")], normalizers.get("english"))
    assert (scored.reference, scored.hypothesis, scored.errors) == ("mister brown has 21", "mister brown has 21", 0)


def test_words_are_parted_by_any_space() -> None:
    """A line break inside a reference made one word of two."""
    (scored,) = wer.score([line(" the\ncat\u00a0sat\x85down ", "the cat  sat down")], normalizers.get("none"))
    assert (scored.alignment, scored.character_errors) == ("====", 0)


@pytest.mark.parametrize(
    ("text", "loops"),
    [
        ("", False),
        ("Yes.", False),
        ("No, no, no, she said.", False),
        ("no no no no", True),
        ("No. No! NO - no?", True),
        ("and so and so and so it goes", False),
        ("it goes and so and so and so and so", True),
        ("of the house, of the house, of the house, of the house", True),
        ("one two one three one two one three", False),
        ("he said that he said that she said that they said that we said", False),
        ("1,000,000,000,000", False),
        ("ha" * 60, True),  # one word that compresses well
        ("कि की का के", False),  # four words that differ in their vowels
        ("कि कि कि कि", True),
        (" ".join(f"{n:x}" for n in range(20_000)), False),  # in a second, not in half a minute
        (
            "He hoped there would be stew for dinner, turnips and carrots and bruised potatoes and fat mutton pieces "
            "to be ladled out in thick, peppered, flour-fattened sauce.",
            False,
        ),
    ],
)
def test_is_loop(text: str, loops: bool) -> None:
    assert wer.is_loop(text) is loops


def test_a_speaker_may_repeat_himself() -> None:
    spoken, loop = line("NO NO NO NO", "no no no no"), line("NO", "no no no no")
    assert [scored.looping for scored in wer.score([spoken, loop], str)] == [False, True]


def test_summary_of_utterances_that_all_have_the_same_rate() -> None:
    # Of words 1 in 5 and 2 in 10 are wrong, of characters 2 in 10 and 4 in 20.
    lines = [line("aa b c d e", "aa b c d xy", "1"), line("aa b c d e f g h i j", "aa b c d e f g h", "2")]
    assert wer.summarize(wer.score(lines, str), resamples=200, seed=0) == {
        "utterances": 2,
        "speakers": 1,
        "minutes": 2 / 60,
        "words": 15,
        "hits": 12,
        "substitutions": 1,
        "deletions": 2,
        "insertions": 0,
        "characters": 30,
        "character_errors": 6,
        "wrong_utterances": 2,
        "measure": "wer",
        "interval_unit": "utterance",
        "wer": 20.0,
        "wer_low": 20.0,
        "wer_high": 20.0,
        "cer": 20.0,
        "cer_low": 20.0,
        "cer_high": 20.0,
        "uer": 100.0,
        "uer_low": 100.0,
        "uer_high": 100.0,
        "insertions_per_minute": 0.0,
        "insertions_per_minute_low": 0.0,
        "insertions_per_minute_high": 0.0,
        "wer_low_utterance": 20.0,
        "wer_high_utterance": 20.0,
        "wer_low_speaker": None,
        "wer_high_speaker": None,
        "looping": 0,
        "looping_ids": [],
        "wer_without_loops": 20.0,
    }


def test_intervals_are_by_speaker_where_ten_are_known() -> None:
    # Ten speakers say two sentences of ten words; five of them are never understood.
    lines = [
        line("a b c d e f g h i j", "x" if speaker % 2 else "a b c d e f g h i j", f"{speaker}-{n}")
        | {"speaker": f"s{speaker}"}
        for speaker in range(10)
        for n in range(2)
    ]
    summary = wer.summarize(wer.score(lines, str), resamples=20_000, seed=0)
    assert (summary["speakers"], summary["interval_unit"]) == (10, "speaker")
    assert (summary["wer"], summary["uer"]) == (50.0, 50.0)
    # Standard errors 50 / sqrt(10) x sqrt(10 / 9) = 16.667 and 50 / sqrt(20) x sqrt(20 / 19) = 11.471; t is 2.2622 with
    # 9 degrees of freedom, 2.0930 with 19: factors exp(0.7541) and exp(0.4802).
    assert (summary["wer_low"], summary["wer_high"]) == pytest.approx((23.52, 106.3), rel=0.02)
    assert (summary["wer_low_speaker"], summary["wer_high_speaker"]) == (summary["wer_low"], summary["wer_high"])
    assert (summary["wer_low_utterance"], summary["wer_high_utterance"]) == pytest.approx((30.93, 80.82), rel=0.02)
    assert (summary["uer_low"], summary["uer_high"]) == (pytest.approx(23.52, rel=0.02), 100.0)  # no more than all


def test_loops_are_named_and_left_out_for_comparison() -> None:
    lines = [line("a b c d", "a b c x", "1"), line("a b", "no no no no no", "2"), line("a b c d", "a b c d", "3")]
    summary = wer.summarize(wer.score(lines, str), resamples=100, seed=0)
    assert (summary["looping"], summary["looping_ids"]) == (1, ["2"])
    assert (summary["wer"], summary["wer_without_loops"]) == (60.0, 12.5)  # 1 + 5 errors in 10 words, 1 in 8
    (loop,) = wer.score([line("a b", "no no no no no")], str)
    assert wer.summarize([loop], resamples=100, seed=0)["wer_without_loops"] is None


def silence(*pred_texts: str, seconds: float = 6.0, speakers: int = 1) -> list[wer.Scored]:
    """Return the scores of utterances in which nothing is said, of so many kinds in turn."""
    lines = [
        line("", text, f"{n:02}", "silence") | {"duration": seconds, "speaker": f"s{n % speakers}"}
        for n, text in enumerate(pred_texts)
    ]
    return wer.score(lines, str)


def test_where_nothing_is_said_inserted_words_per_minute_lead() -> None:
    # Of ten utterances of 6 s, five have a word: 5 in a minute. Their rates are 10 a minute and 0, so the standard
    # error is 5 / sqrt(10) x sqrt(10 / 9) = 1.6667; t is 2.2622 with 9 degrees of freedom: a factor of exp(0.7541).
    summary = wer.summarize(silence(*["you", ""] * 5), resamples=20_000, seed=0)
    assert (summary["measure"], summary["interval_unit"]) == ("insertions_per_minute", "utterance")
    assert (summary["words"], summary["insertions"], summary["minutes"]) == (0, 5, 1.0)
    assert summary["insertions_per_minute"] == 5.0
    bounds = (summary["insertions_per_minute_low"], summary["insertions_per_minute_high"])
    assert bounds == pytest.approx((2.352, 10.63), rel=0.02)
    assert bounds == (
        summary["insertions_per_minute_low_utterance"],
        summary["insertions_per_minute_high_utterance"],
    )
    assert summary["insertions_per_minute_low_speaker"] is None
    assert (summary["uer"], summary["wrong_utterances"]) == (50.0, 5)
    of_words = ("wer", "wer_low", "wer_high", "cer", "cer_low", "cer_high", "wer_without_loops")
    assert [summary[name] for name in of_words] == [None] * 7


def test_long_recordings_count_for_more_than_short_ones() -> None:
    half_a_minute, long = silence("a b c", seconds=30.0), silence("a", seconds=90.0)
    summary = wer.summarize(half_a_minute + long, resamples=100, seed=0)
    assert (summary["minutes"], summary["insertions_per_minute"]) == (2.0, 2.0)


def test_intervals_of_insertions_are_by_kind_of_sound_too() -> None:
    summary = wer.summarize(silence(*["you", ""] * 4, speakers=2), resamples=1000, seed=0)
    assert summary["insertions_per_minute_low_speaker"] < summary["insertions_per_minute_low_utterance"]


def test_a_model_that_writes_nothing_in_silence_has_a_rate_of_nothing() -> None:
    summary = wer.summarize(silence("", "", "", speakers=3), resamples=100, seed=0)
    rates = [summary[f"insertions_per_minute{end}"] for end in ("", "_low", "_high", "_low_speaker", "_high_speaker")]
    assert rates == [0.0] * 5
    assert (summary["uer"], summary["uer_high"], summary["looping"]) == (0.0, 0.0, 0)


def test_insertions_among_words_are_told_too_but_do_not_lead() -> None:
    lines = [line("a b", "a b c", "1") | {"duration": 15.0}, line("", "d", "2") | {"duration": 15.0}]
    summary = wer.summarize(wer.score(lines, str), resamples=100, seed=0)
    assert (summary["measure"], summary["wer"], summary["insertions_per_minute"]) == ("wer", 100.0, 4.0)
    assert summary["insertions_per_minute_low"] == summary["insertions_per_minute_high"] == 4.0  # 1 in 15 s, twice


def test_a_split_is_described_by_its_measure() -> None:
    spoken = wer.summarize(wer.score([line("a b", "a x")], str), resamples=100, seed=0)
    assert wer.described(spoken) == "WER 50.00 % [50.00, 50.00] by utterance, of 2 words"
    silent = wer.summarize(silence("you", "you", seconds=30.0), resamples=100, seed=0)
    assert wer.described(silent) == "2.00 inserted words per minute [2.00, 2.00] by utterance, in 1.0 minutes"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "fp32.jsonl is not here; run 'python -m pipeline.transcribe fp32' first"),
        ("", "fp32.jsonl holds no transcripts; run 'python -m pipeline.transcribe fp32' first"),
        (
            '{"id": "a"}\n',
            "fp32.jsonl, line 1: an object with the texts split, id, text and pred_text and the number "
            "duration, in seconds, is needed; run 'python -m pipeline.transcribe fp32' first",
        ),
        (json.dumps(line("a", "a")) + "\n{", "fp32.jsonl, line 2: an object with"),
        ("[]\n", "fp32.jsonl, line 1: an object with"),
        ("caf\xe9", "fp32.jsonl is not a text in UTF-8; run 'python -m pipeline.transcribe fp32' first"),
        *(
            (json.dumps(line("a", "a") | odd), "fp32.jsonl, line 1: an object with")
            for odd in ({"duration": "1 s"}, {"duration": math.nan}, {"duration": -1}, {"duration": 1e308})
        ),
        (json.dumps(line("a", "a") | {"speaker": ["a"]}), "fp32.jsonl, line 1: an object with"),
        (json.dumps(line("a", "half \ud800")), "fp32.jsonl, line 1: an object with"),
        ("[" * 10_000, "fp32.jsonl, line 1: an object with"),
    ],
)
def test_a_broken_transcript_is_refused(tmp_path: Path, content: str | None, message: str) -> None:
    """Transcripts of other tools, with NaN for a duration or half an emoji in a text: the traceback is in numpy."""
    path = tmp_path / "fp32.jsonl"
    if content is not None:
        path.write_text(content, encoding="latin-1")
    with pytest.raises(UserError) as raised:
        wer.read(path)
    assert message in str(raised.value)


def test_a_transcript_is_read_in_order_whatever_it_holds(tmp_path: Path) -> None:
    lines = [line("a", "x", "2", "b"), line("a", "line\u2028separator", "1", "b"), line("a", "x", "3", "a")]
    (tmp_path / "fp32.jsonl").write_text("".join(json.dumps(item, ensure_ascii=False) + "\n" for item in lines))
    assert wer.read(tmp_path / "fp32.jsonl") == [lines[2], lines[1], lines[0]]
