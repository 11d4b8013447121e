"""Recordings of one's own: what is written of them, and where."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pysubs2
import pytest
import soundfile
from typer.testing import CliRunner, Result

import whisper_ptq
from pipeline import quantize, recordings
from pipeline.command import Form, app
from pipeline.core.errors import UserError
from pipeline.speech import corpus
from pipeline.whisper.longform import Segment, Transcript
from tests.conftest import ROOT, Project

Ask = Callable[..., Result]

HEARD = Transcript(
    "talk.mp3",
    3725.5,
    "en",
    [Segment(0.0, 2.5, "Is 3 < 4?"), Segment(2.52, 61.0, "R&D --> yes"), Segment(3661.001, 3725.4999, "Grüße.")],
)


@pytest.mark.parametrize("form", ["srt", "vtt"])
def test_subtitles_are_read_by_others(form: str) -> None:
    read = pysubs2.SSAFile.from_string(recordings.FORMATS[form](HEARD), format_=form)
    assert [(event.start, event.end) for event in read] == [(0, 2500), (2520, 61000), (3661001, 3725500)]
    texts = [event.plaintext for event in read]
    if form == "vtt":  # which the reader leaves as they are
        texts = [text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&") for text in texts]
    assert texts == [segment.text for segment in HEARD.segments]


def test_json_and_text_say_the_same() -> None:
    read = json.loads(recordings.to_json(HEARD))
    assert (read["file"], read["language"], read["duration"]) == ("talk.mp3", "en", 3725.5)
    assert read["segments"][1] == {"start": 2.52, "end": 61.0, "text": "R&D --> yes"}
    assert read["text"] == "Is 3 < 4? R&D --> yes Grüße."
    assert recordings.text(HEARD).split("\n") == ["Is 3 < 4?", "R&D --> yes", "Grüße.", ""]


def test_no_two_recordings_share_a_file() -> None:
    found = recordings.outputs([Path("a/one.wav"), Path("two.mp3")], Path("out"), "text")
    assert [*found.values()] == [Path("out/one.txt"), Path("out/two.txt")]
    with pytest.raises(UserError, match=r"a/one\.wav and b/one\.mp3 would both be out/one\.srt"):
        recordings.outputs([Path("a/one.wav"), Path("b/one.mp3")], Path("out"), "srt")


def test_every_format_can_be_named() -> None:
    assert {*Form} == {*recordings.FORMATS}


@pytest.fixture(scope="module")
def project(tiny_en: Path, sample: list[corpus.Utterance], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a project with real Whisper tiny.en as fp32, and three recordings: two that speak, and none."""
    root = tmp_path_factory.mktemp("own")
    Project(root).set(model="tiny-en")
    shutil.copytree(tiny_en, root / "models/baseline")
    (root / "dvc.yaml").write_bytes((ROOT / "dvc.yaml").read_bytes().replace(b"models/mixed-50", b"models/fp32"))
    for number, utterance in enumerate(sample[:2]):
        soundfile.write(root / f"{number}.wav", corpus.samples(utterance), 16_000)
    (root / "broken.mp3").write_text("no sound")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        quantize.main("fp32")
    return root


@pytest.fixture
def ask(project: Path, monkeypatch: pytest.MonkeyPatch) -> Ask:
    """Return what answers `whisper-ptq transcribe` with these words."""
    monkeypatch.chdir(project)
    return lambda *arguments: CliRunner().invoke(app, ["transcribe", *arguments])


@pytest.mark.slow
def test_one_recording_is_written_to_the_terminal(ask: Ask, sample: list[corpus.Utterance]) -> None:
    said = ask("0.wav")
    assert said.exit_code == 0, said.output
    spoken = [word.strip(".,").lower() for word in said.stdout.split()]
    assert len({*spoken} & {*sample[0].text.lower().split()}) > len(spoken) / 2
    both = ask("0.wav", "1.wav")
    assert both.stdout.startswith(f"0.wav\n{said.stdout}1.wav\n")
    as_json = [json.loads(line) for line in ask("0.wav", "1.wav", "--format", "json").stdout.splitlines()]
    assert [each["file"] for each in as_json] == ["0.wav", "1.wav"]
    assert as_json[0]["language"] == "en"


@pytest.mark.slow
def test_what_cannot_be_heard_does_not_stop_the_others(ask: Ask, project: Path) -> None:
    said = ask("broken.mp3", "0.wav", "--format", "srt", "--output", "out")
    assert said.exit_code == 1
    assert "transcribe: broken.mp3: it cannot be decoded as audio" in said.stderr
    assert "transcribe: 1 of 2 recordings could not be read" in said.stderr
    assert pysubs2.SSAFile.load(str(project / "out/0.srt")).events
    (project / "out/0.srt").write_text("mine")
    again = ask("1.wav", "0.wav", "--format", "srt", "--output", "out")
    assert again.exit_code == 0
    assert "out/0.srt is there already; --force writes it anew" in again.stdout
    assert (project / "out/0.srt").read_text() == "mine"
    assert pysubs2.SSAFile.load(str(project / "out/1.srt")).events
    assert ask("0.wav", "--format", "srt", "--output", "out", "--force").exit_code == 0
    assert (project / "out/0.srt").read_text().startswith("1\n00:00:00,000 --> ")


@pytest.mark.slow
@pytest.mark.usefixtures("ask")
def test_python_gets_the_same() -> None:
    (heard,) = whisper_ptq.transcribe(["0.wav"])
    assert heard.name == "0.wav"
    assert recordings.text(heard) == CliRunner().invoke(app, ["transcribe", "0.wav"]).stdout
    with pytest.raises(whisper_ptq.UserError, match=r"broken\.mp3"):
        list(whisper_ptq.transcribe(["broken.mp3", "0.wav"], "fp32"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["0.wav", "1.wav", "--format", "vtt"], "transcribe: subtitles of 2 recordings need files of their own"),
        (["0.wav", "--variant", "hqq-int44"], "transcribe: unknown variant 'hqq-int44' (did you mean 'hqq-int4'?)"),
        (["0.wav", "--variant", "hqq-int4"], "transcribe: "),
        (["0.wav", "--language", "de"], "transcribe: decoding: this model only transcribes English"),
    ],
)
@pytest.mark.slow
def test_mistakes_get_a_sentence(ask: Ask, words: list[str], said: str) -> None:
    answer = ask(*words)
    assert answer.exit_code == 1
    assert answer.stderr.startswith(said)
    assert answer.stdout == ""
