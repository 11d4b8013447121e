import hashlib
import io
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import torch
from safetensors.torch import load_file

from pipeline import prepare
from pipeline.core.errors import UserError
from pipeline.core.hub import _digest
from pipeline.speech import corpus, sources
from pipeline.whisper import BASELINE
from tests.conftest import ROOT, Project, Server, encode, noise


def run(server: Server, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Run the stage as DVC does, with the server in the hub's place."""
    home = {"HF_ENDPOINT": server.url, "HF_HOME": str(Path("hf").absolute()), "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", "pipeline.fetch"], capture_output=True, text=True, env=os.environ | home | environment
    )


REVISION = "169d4a4341b33bc18d8881c4b69c2e104e1cc0af"


@pytest.fixture
def hub(tmp_project: Project, trained: Path, hub_server: Server) -> Server:
    """Serve the random Whisper as the hub does, and make it the model."""
    names = ["config.json", "tokenizer.json", "model.safetensors"]
    for name in names:
        hub_server.files[f"/me/whisper/resolve/{REVISION}/{name}"] = (trained / name).read_bytes()
    digests = {name: hashlib.sha256((trained / name).read_bytes()).hexdigest() for name in names}
    tmp_project.set(
        model="mine",
        models__mine={
            "source": "hub",
            "repo": "me/whisper",
            "revision": REVISION,
            "files": digests | {"config.json": None},
        },
    )
    return hub_server


def test_a_model_comes_from_the_hub_once(hub: Server, trained: Path) -> None:
    first = run(hub)
    assert first.stderr.count("Traceback") == 0
    assert first.returncode == 0, first.stderr
    expected, found = (load_file(folder / "model.safetensors") for folder in (trained, BASELINE))
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    hub.requests.clear()
    second = run(hub)
    assert (second.returncode, hub.requests) == (0, [])


def test_a_dropped_hub_connection_is_tried_again(hub: Server) -> None:
    hub.drops = 1
    ended = run(hub)
    assert ended.returncode == 0, ended.stderr
    assert [path.rpartition("/")[2] for path, _ in hub.requests] == [
        "config.json",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            lambda project: project.set(models__mine__files={"weights.safetensors": None}),
            "fetch: model 'mine': weights.safetensors of me/whisper is not in revision "
            f"'{REVISION}'; correct its files in catalog.yaml\n",
        ),
        (
            lambda project: project.set(models__mine__repo="me/whisperer"),
            "fetch: model 'mine': the hub has no model 'me/whisperer' (or it is private: set HF_TOKEN)\n",
        ),
        (
            lambda project: project.set(models__mine__revision="main"),
            "fetch: model 'mine': nothing pins config.json: revision 'main' can move, so give a commit's 40 digits "
            "or the SHA-256 of config.json\n",
        ),
        (
            lambda project: project.set(models__mine__files={"config.json": "0" * 64}),
            "fetch: model 'mine': the SHA-256 of config.json is DIGEST, but "
            f"{'0' * 64} was expected; the file was removed: "
            "run it again, or correct the digest in catalog.yaml if the publisher has changed the file\n",
        ),
    ],
    ids=["file", "repository", "unpinned", "digest"],
)
def test_what_the_hub_has_not_is_one_sentence(
    change: Any, sentence: str, tmp_project: Project, hub: Server, trained: Path
) -> None:
    change(tmp_project)
    ended = run(hub)
    digest = hashlib.sha256((trained / "config.json").read_bytes()).hexdigest()
    assert ended.returncode == 1
    assert ended.stderr.splitlines(keepends=True)[-1] == sentence.replace("DIGEST", digest)
    assert "Traceback" not in ended.stderr


def test_a_hub_out_of_reach_is_one_sentence(hub: Server) -> None:
    ended = run(hub, HF_ENDPOINT="http://127.0.0.1:1")
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1] == (
        "fetch: model 'mine': config.json of me/whisper cannot be downloaded: "
        "ConnectError: [Errno 111] Connection refused; run it again; check the network, "
        "or name a mirror with HF_ENDPOINT"
    )
    assert "Traceback" not in ended.stderr


SPLITS = {"all/test.clean/0000.parquet": ["61-1-0000", "61-1-0001"], "all/validation.clean/0000.parquet": ["84-1-0000"]}


def table(ids: list[str], **columns: Any) -> bytes:
    """Return a Parquet file of noises as LibriSpeech has them on the hub; `columns` replace some of it."""
    whole: dict[str, Any] = {
        "file": [f"{name}.flac" for name in ids],
        "audio": [{"bytes": encode(noise(0.5, n)), "path": f"{name}.flac"} for n, name in enumerate(ids)],
        "text": [f"THE WORDS OF {name}" for name in ids],
        "speaker_id": [int(name.split("-")[0]) for name in ids],
        "chapter_id": [1 for _ in ids],
        "id": ids,
    }
    kept = {name: values for name, values in (whole | columns).items() if values is not None}
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(kept), file)
    return file.getvalue()


@pytest.fixture
def speech(tmp_project: Project, hub_server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """Serve a corpus as the hub does, and make it what is scored and what calibrates."""
    for file, ids in SPLITS.items():
        hub_server.files[f"/datasets/openslr/librispeech_asr/resolve/{REVISION}/{file}"] = table(ids)
    tmp_project.set(
        corpus="librispeech-hub",
        **{
            "corpora__librispeech-hub__revision": REVISION,
            "corpora__librispeech-hub__splits": ["test-clean"],
            "corpora__librispeech-hub__utterances": {"test-clean": 2, "validation-clean": 1},
        },
        calibration={"corpus": "librispeech-hub", "split": "validation-clean", "utterances": 1},
    )
    monkeypatch.setenv("HF_ENDPOINT", hub_server.url)
    monkeypatch.setenv("HF_HOME", str(Path("hf").absolute()))
    return hub_server


def stage(name: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", f"pipeline.{name}"]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})


def test_a_corpus_comes_from_the_hub_once(speech: Server) -> None:
    speech.drops = 1
    for name in ("download", "prepare"):
        ended = stage(name)
        assert ended.returncode == 0, ended.stderr
    found = list(corpus.read(corpus.CORPUS))
    assert [(u.id, u.split, u.speaker, u.text) for u in found] == [
        ("61-1-0000", "test-clean", "61", "THE WORDS OF 61-1-0000"),
        ("61-1-0001", "test-clean", "61", "THE WORDS OF 61-1-0001"),
    ]
    assert [u.flac for u in found] == [encode(noise(0.5, n)) for n in range(2)]
    assert [u.id for u in corpus.read(corpus.CALIBRATION)] == ["84-1-0000"]
    assert sorted(
        path.relative_to("data/raw").as_posix() for path in Path("data/raw").rglob("*.*") if path.is_file()
    ) == [f"librispeech-hub/{file}" for file in SPLITS]
    speech.requests.clear()
    assert stage("download").returncode == 0
    assert speech.requests == []


def test_bytes_of_a_small_file_that_are_not_the_hubs_are_refused(hub: Server) -> None:
    """The hub tells git's name of it."""
    name = f"/me/whisper/resolve/{REVISION}/config.json"
    hub.wrong[name] = hub.files[name].replace(b"{", b"[", 1)
    ended = run(hub)
    assert ended.returncode == 1
    assert re.fullmatch(
        "fetch: model 'mine': the git object name of config.json is [0-9a-f]{40}, but [0-9a-f]{40} was expected; "
        "the file was removed: run it again",
        ended.stderr.splitlines()[-1],
    )
    assert run(hub).returncode == 0


def test_bytes_that_are_not_the_hubs_are_refused(speech: Server) -> None:
    """A file that comes whole but wrong, which the hub's own library does not see."""
    name = f"/datasets/openslr/librispeech_asr/resolve/{REVISION}/all/test.clean/0000.parquet"
    good = speech.files[name]
    speech.wrong[name] = good[:-20] + b"?" + good[-19:]
    ended = stage("download")
    assert ended.returncode == 1
    assert re.fullmatch(
        "download: corpus 'librispeech-hub': the SHA-256 of all/test.clean/0000.parquet is [0-9a-f]{64}, but "
        f"{hashlib.sha256(good).hexdigest()} was expected; the file was removed: run it again",
        ended.stderr.splitlines()[-1],
    )
    assert stage("download").returncode == 0


@pytest.mark.parametrize(
    ("columns", "sentence"),
    [
        (
            {"id": None},
            "corpus 'librispeech-hub': data/raw/librispeech-hub/all/test.clean/0000.parquet has no column 'id' "
            "(known: audio, chapter_id, file, speaker_id, text)",
        ),
        (
            {"speaker_id": None},
            "corpus 'librispeech-hub': data/raw/librispeech-hub/all/test.clean/0000.parquet has no column 'speaker' "
            "(known: audio, chapter_id, file, id, text)",
        ),
        (
            {"id": ["61-1-0000", "61-1-0000"]},
            "corpus 'librispeech-hub': utterance '61-1-0000' is there twice, the second time in "
            "data/raw/librispeech-hub/all/test.clean/0000.parquet of split 'test-clean'",
        ),
        (
            {"speaker_id": [61, None]},
            "corpus 'librispeech-hub': data/raw/librispeech-hub/all/test.clean/0000.parquet has a row "
            "without speaker_id",
        ),
        (
            {"id": [1, 2]},
            "corpus 'librispeech-hub': data/raw/librispeech-hub/all/test.clean/0000.parquet: column 'id' is not text",
        ),
        (
            {"audio": [b"one", b"two"]},
            "corpus 'librispeech-hub': data/raw/librispeech-hub/all/test.clean/0000.parquet: column 'audio' is not "
            "an object with bytes",
        ),
        (
            {"audio": [{"bytes": encode(noise(0.5)), "path": "1"}, {"bytes": None, "path": "2"}]},
            "data/raw/librispeech-hub/all/test.clean/0000.parquet: the audio of utterance '61-1-0001' is not inside "
            "the file",
        ),
        (
            {"text": ["", "SAID"]},
            "corpus 'librispeech-hub': utterance '61-1-0000' of split 'test-clean' has audio, but no transcript "
            "(1 of 2 have none); a split without transcripts cannot be scored",
        ),
    ],
    ids=["id", "speaker", "twice", "null", "number", "bytes", "path", "silent"],
)
@pytest.mark.usefixtures("speech")
def test_a_table_that_is_no_corpus_is_one_sentence(columns: dict[str, Any], sentence: str) -> None:
    for file, ids in SPLITS.items():
        path = Path("data/raw/librispeech-hub", file)
        path.parent.mkdir(parents=True)
        path.write_bytes(table(ids, **(columns if "test.clean" in file else {})))
    with pytest.raises(UserError) as error:
        prepare.main()
    assert str(error.value) == sentence


@pytest.mark.usefixtures("speech")
def test_a_damaged_table_is_one_sentence() -> None:
    assert stage("download").returncode == 0
    file = Path("data/raw/librispeech-hub/all/test.clean/0000.parquet")
    file.write_bytes(file.read_bytes()[:-10])
    ended = stage("prepare")
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1].startswith(f"prepare: {file} cannot be read (")
    assert "Traceback" not in ended.stderr


@pytest.mark.usefixtures("speech")
@pytest.mark.parametrize("file", ["../test.clean/0000.parquet", "/srv/test.clean/0000.parquet"])
def test_no_file_leaves_the_folder(file: str, tmp_project: Project) -> None:
    tmp_project.set(**{"corpora__librispeech-hub__files": {file: None, "validation-clean.parquet": None}})
    ended = stage("download")
    assert (ended.returncode, ended.stderr) == (
        1,
        f"download: corpus 'librispeech-hub': {file!r} is not a file inside the repository; "
        "correct its files in catalog.yaml\n",
    )


@pytest.mark.usefixtures("speech")
def test_a_split_that_the_files_do_not_hold(tmp_project: Project) -> None:
    tmp_project.set(**{"corpora__librispeech-hub__splits": ["test-clear"]})
    ended = stage("download")
    assert ended.stderr == (
        "download: corpus 'librispeech-hub': its files hold no split 'test-clear' (did you mean 'test-clean'?)\n"
    )


@pytest.mark.parametrize(
    ("file", "split"),
    [
        ("all/test.clean/0000.parquet", "test-clean"),
        ("data/test-00000-of-00001.parquet", "test"),
        ("data/librispeech_test_clean-00000-of-00001.parquet", "librispeech-test-clean"),
        ("test.parquet", "test"),
    ],
)
def test_files_name_their_split(file: str, split: str) -> None:
    assert sources.split_of(file) == split


@pytest.mark.usefixtures("speech")
def test_a_check_that_was_cut_off_is_made_up_for() -> None:
    """Wrong bytes that lie there, with the library's own note that they are right."""
    assert stage("download").returncode == 0
    file = Path("data/raw/librispeech-hub/all/test.clean/0000.parquet")
    good = file.read_bytes()
    file.write_bytes(good[:-1] + b"?")
    assert stage("download").returncode == 0
    assert file.read_bytes() == good


def test_small_files_are_verified_by_what_git_calls_them(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"what is up, doc?")
    digest = "bd9dbf5aae1a3862dd1526723246b20206e5fc37"  # from "Git Internals - Git Objects" of the book Pro Git
    assert _digest(tmp_path / "file", like=digest) == digest


@pytest.mark.usefixtures("speech")
def test_a_split_in_two_folders_is_refused(tmp_project: Project) -> None:
    tmp_project.set(
        **{"corpora__librispeech-hub__files": {f"{kind}/test.clean/0000.parquet": None for kind in ("clean", "all")}}
    )
    ended = stage("download")
    assert ended.stderr == (
        "download: corpus 'librispeech-hub': split 'test-clean' is in 'all/test.clean' and in 'clean/test.clean'; "
        "name files of one\n"
    )
