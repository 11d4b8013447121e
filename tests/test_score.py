import json
import shutil
from pathlib import Path

import pytest

from pipeline import score
from pipeline.core.errors import UserError
from tests.conftest import ROOT
from tests.scoring.test_wer import line


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
        "normalizer_version": "whisper-normalizer 0.1.15",
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
