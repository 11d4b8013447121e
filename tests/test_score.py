import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from pipeline import score
from pipeline.core.errors import UserError
from tests.conftest import ROOT


def line(text: str, pred_text: str, name: str = "a-1", split: str = "test-clean") -> dict[str, Any]:
    """Return a line of a transcript."""
    return {"id": name, "split": split, "speaker": "a", "duration": 1.0, "text": text, "pred_text": pred_text}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "fp32.jsonl is not here; run 'python -m pipeline.transcribe fp32' first"),
        ("", "fp32.jsonl holds no transcripts; run 'python -m pipeline.transcribe fp32' first"),
        (
            '{"id": "a"}\n',
            "fp32.jsonl, line 1: an object with the texts split, id, text and pred_text and the number "
            "duration is needed; run 'python -m pipeline.transcribe fp32' first",
        ),
        (json.dumps(line("a", "a")) + "\n{", "fp32.jsonl, line 2: an object with"),
        ("[]\n", "fp32.jsonl, line 1: an object with"),
        (json.dumps(line("a", "a") | {"duration": "1 s"}), "fp32.jsonl, line 1: an object with"),
    ],
)
def test_a_broken_transcript_is_refused(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "fp32.jsonl"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError) as raised:
        score.read(path)
    assert message in str(raised.value)


def test_a_transcript_is_read_in_order_whatever_it_holds(tmp_path: Path) -> None:
    lines = [line("a", "x", "2", "b"), line("a", "line\u2028separator", "1", "b"), line("a", "x", "3", "a")]
    (tmp_path / "fp32.jsonl").write_text("".join(json.dumps(item, ensure_ascii=False) + "\n" for item in lines))
    assert score.read(tmp_path / "fp32.jsonl") == [lines[2], lines[1], lines[0]]


def test_main_writes_counts_rates_and_what_they_come_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("params.yaml", "catalog.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "reports/transcripts").mkdir(parents=True)
    transcript = json.dumps(line("TWENTY ONE CATS", "21 dogs.")) + "\n"
    (tmp_path / "reports/transcripts/fp32.jsonl").write_text(transcript)
    monkeypatch.chdir(tmp_path)
    score.main("fp32")
    assert json.loads(Path("reports/scores/fp32.json").read_text()) == {
        "variant": "fp32",
        "scoring": {"normalizer": "english", "resamples": 10_000, "seed": 0},
        "splits": {
            "test-clean": {
                "utterances": 1,
                "speakers": 1,
                "minutes": 1 / 60,
                "words": 2,
                "hits": 1,
                "substitutions": 1,
                "deletions": 0,
                "insertions": 0,
                "characters": 7,
                "character_errors": 3,
                "wrong_utterances": 1,
                "measure": "wer",
                "interval_unit": "utterance",
                "wer": 50.0,
                "wer_low": 50.0,
                "wer_high": 50.0,
                "cer": 42.857142857142854,
                "cer_low": 42.857142857142854,
                "cer_high": 42.857142857142854,
                "uer": 100.0,
                "uer_low": 100.0,
                "uer_high": 100.0,
                "insertions_per_minute": 0.0,
                "insertions_per_minute_low": 0.0,
                "insertions_per_minute_high": 0.0,
                "wer_low_utterance": 50.0,
                "wer_high_utterance": 50.0,
                "wer_low_speaker": None,
                "wer_high_speaker": None,
                "looping": 0,
                "looping_ids": [],
                "wer_without_loops": 50.0,
            }
        },
        "utterances": [
            {
                "id": "a-1",
                "split": "test-clean",
                "speaker": "a",
                "duration": 1.0,
                "hits": 1,
                "substitutions": 1,
                "deletions": 0,
                "insertions": 0,
                "alignment": "=S",
                "character_errors": 3,
                "looping": False,
                "reference": "21 cats",
                "hypothesis": "21 dogs",
            }
        ],
    }


def test_main_refuses_a_variant_that_params_do_not_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("params.yaml", "catalog.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"unknown variant 'fp33' \(did you mean 'fp32'\?\)"):
        score.main("fp33")
