import json
import shutil
from collections import Counter
from pathlib import Path

import pytest

from pipeline import agree, reference, transcribe, transcribe_protocols
from pipeline.core import pieces
from pipeline.speech import corpus
from pipeline.whisper.inference import decoding
from pipeline.whisper.model import weights
from tests import toy
from tests.conftest import Project


@pytest.fixture
def project(tmp_project: Project, quantized: Path) -> Project:
    """Work in a project that has been quantized, with a study protocol of 6 tokens."""
    shutil.copytree(quantized, tmp_project.root, dirs_exist_ok=True)
    return tmp_project


def test_every_protocol_says_what_a_pass_of_its_own_would_say(project: Project) -> None:
    transcribe_protocols.main()
    text = (project.root / "reports/protocols.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert Counter((line["suppress_non_speech"], line["max_new_tokens"]) for line in lines) == {
        (suppress, limit): 5 for suppress in (True, False) for limit in (6, 225, 444)
    }
    keys = [(line["split"], line["id"], line["suppress_non_speech"], line["max_new_tokens"]) for line in lines]
    assert keys == sorted(keys)

    baseline = project.root / "models/baseline"
    model = weights.load(baseline)
    utterances = {utterance.id: utterance for utterance in corpus.read(corpus.CORPUS)}
    for suppress in (True, False):
        vocabulary = decoding.Vocabulary.read(baseline, "en", "transcribe", suppress)
        for line in lines:
            if line["suppress_non_speech"] == suppress and line["max_new_tokens"] < 444:
                utterance = utterances[line["id"]]
                (alone,) = toy.texts(model, [utterance], vocabulary, line["max_new_tokens"])
                assert line["pred_text"] == alone
                assert (line["text"], line["duration"]) == (utterance.text, utterance.duration)


def test_an_interrupted_run_goes_on_where_it_stopped(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    transcribe_protocols.main()
    file = project.root / "reports/protocols.jsonl"
    whole = file.read_bytes()
    some = toy.Interrupted(5)  # batches: with suppression four, without it one of four
    monkeypatch.setattr(decoding, "transcribe", some)
    with pytest.raises(KeyboardInterrupt):
        transcribe_protocols.main()
    some.left = 3  # no more are needed
    transcribe_protocols.main()
    assert some.left == 0
    assert file.read_bytes() == whole
    pieces.remove_finished(project.root)
    assert sorted(path.name for path in (project.root / "reports").iterdir()) == ["protocols.jsonl"]


def test_the_studys_own_protocol_is_among_them(project: Project) -> None:
    transcribe_protocols.main()
    reference.main()
    agree.main("fp32")
    transcribe.main("fp32")
    lines = [json.loads(line) for line in (project.root / "reports/protocols.jsonl").read_text().splitlines()]
    own = [line["pred_text"] for line in lines if (line["suppress_non_speech"], line["max_new_tokens"]) == (True, 6)]
    transcripts = (project.root / "reports/transcripts/fp32.jsonl").read_text().splitlines()
    assert own == [json.loads(line)["pred_text"] for line in transcripts]
