import csv
import json
from typing import Any

import pytest

from pipeline import score_protocols
from pipeline.core import params
from tests.conftest import Project

PROTOCOLS = [(True, 444), (True, 225), (False, 444), (False, 225)]


def lines(split: str, name: str, text: str, said: dict[tuple[bool, int], str], usual: str) -> list[dict[str, Any]]:
    """Return an utterance's line for each protocol; what is not `said` otherwise is the `usual`."""
    return [
        {
            "id": name,
            "split": split,
            "speaker": name[0],
            "duration": 3.0,
            "suppress_non_speech": suppress,
            "max_new_tokens": tokens,
            "text": text,
            "pred_text": said.get((suppress, tokens), usual),
        }
        for suppress, tokens in PROTOCOLS
    ]


@pytest.mark.usefixtures("tmp_project")
def test_what_moves_the_baseline() -> None:
    """Brackets, a loop that 225 tokens cut short, spelling that only Whisper's English normalizer forgives."""
    loop = "so it goes"
    table = score_protocols.rows(
        [
            *lines(
                "test",
                "a-1",
                "RED BLUE GREEN PINK",
                {(False, 444): "red blue (music) green pink brown"},
                "red blue green pink",
            ),
            *lines("test", "b-1", "SO IT GOES", {(True, 225): loop + " on" * 4}, loop + " on" * 8),
            *lines("test", "c-1", "THE COLOUR IS GREY", {}, "The color is gray."),
        ],
        params.read(),
    )
    found = [
        (row["suppress_non_speech"], row["max_new_tokens"], row["normalizer"], row["substitutions"], row["insertions"])
        for row in table
    ]
    # Without suppression and with 444 tokens: "brown" alone, as the normalizer drops what stands in brackets.
    assert found == [
        (True, 444, "english", 0, 8),
        (True, 225, "english", 0, 4),
        (False, 444, "english", 0, 9),
        (False, 225, "english", 0, 8),
        (True, 444, "basic", 2, 8),
    ]
    assert [row["wer"] for row in table] == pytest.approx([72.727, 36.364, 81.818, 72.727, 90.909])
    assert table[0]["wer_delta"] is None
    assert [row["wer_delta"] for row in table[1:]] == pytest.approx([-36.364, 9.091, 0.0, 18.182])
    for row in table[1:]:
        assert row["wer_delta_low"] <= row["wer_delta"] <= row["wer_delta_high"]
    assert {row["wer_without_loops"] for row in table[:2]} == {0.0}
    assert (table[3]["wer_delta_low"], table[3]["wer_delta_high"]) == (0.0, 0.0)
    assert {row["words"] for row in table} == {11}


def test_the_studys_own_protocol_comes_first(tmp_project: Project) -> None:
    tmp_project.set(decoding__suppress_non_speech=False, decoding__max_new_tokens=225, scoring__normalizer="basic")
    table = score_protocols.rows(lines("test", "a-1", "ONE", {}, "one"), params.read())
    found = [(row["suppress_non_speech"], row["max_new_tokens"], row["normalizer"]) for row in table]
    assert found[0] == (False, 225, "basic")
    assert found[-1] == (False, 225, "english")
    assert len(found) == len(set(found)) == 5


@pytest.mark.parametrize(("task", "normalizers"), [("transcribe", {"basic"}), ("translate", {"basic", "english"})])
def test_the_english_normalizer_is_tried_on_english_alone(
    tmp_project: Project, task: str, normalizers: set[str]
) -> None:
    """It deletes "um" from German, where that is a word; a translation is English."""
    tmp_project.set(decoding__language="de", decoding__task=task, scoring__normalizer="basic")
    table = score_protocols.rows(lines("test", "a-1", "UM ACHT", {}, "um acht"), params.read())
    assert {row["normalizer"] for row in table} == normalizers


def test_silence_has_insertions_only(tmp_project: Project) -> None:
    said = {(False, 444): "(music) hmm thank you"}
    (tmp_project.root / "reports").mkdir(exist_ok=True)
    file = tmp_project.root / "reports/protocols.jsonl"
    table = [*lines("noise", "a-1", "", said, ""), *lines("silence", "a-2", "", {}, "")]
    file.write_text("".join(json.dumps(line) + "\n" for line in table))
    score_protocols.main()
    with (tmp_project.root / "reports/protocol.csv").open() as written:
        rows = list(csv.DictReader(written))
    assert [row["split"] for row in rows] == ["noise"] * 5 + ["silence"] * 5
    assert [float(row["insertions_per_minute"]) for row in rows[:4]] == [0.0, 0.0, 40.0, 0.0]
    assert {row["wer"] for row in rows} == {""}
    assert {row["wer_delta"] for row in rows} == {""}
