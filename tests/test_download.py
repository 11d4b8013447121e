import hashlib
import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from pipeline import download
from pipeline.core import params
from pipeline.core.errors import UserError
from pipeline.speech import sources
from tests.conftest import ROOT, Project, Server, archive


def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run the stage as DVC does."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", "pipeline.download", *arguments], capture_output=True, text=True, env=environment
    )


def openslr(project: Project, server: Server, *names: str) -> None:
    """Point the corpus at the server's archives, with their right digests."""
    files = {name: hashlib.sha256(server.files[f"/12/{name}"]).hexdigest() for name in names}
    project.set(
        corpus="librispeech",
        corpora__librispeech__url=f"{server.url}/12/",
        corpora__librispeech__splits=["test-clean"],
        corpora__librispeech__utterances={},
        corpora__librispeech__files=files,
        calibration__corpus="librispeech",
        calibration__split="dev-clean",
    )


@pytest.fixture
def published(tmp_path: Path, server: Server) -> Server:
    """Serve two archives in OpenSLR's shape."""
    for split in ("test-clean", "dev-clean"):
        path = archive(tmp_path / "published.tar.gz", {f"LibriSpeech/{split}/1/2/1-2-0000.flac": os.urandom(100_000)})
        server.files[f"/12/{split}.tar.gz"] = path.read_bytes()
        path.unlink()
    return server


def test_needed_are_the_scored_splits_and_the_one_that_calibrates(tmp_project: Project) -> None:
    assert download.needed(params.read()) == {"sample": ["librivox", "cards"]}
    tmp_project.set(corpus="librispeech")
    assert download.needed(params.read()) == {"librispeech": ["test-clean", "test-other"], "sample": ["cards"]}


def test_what_is_scored_and_what_calibrates_is_downloaded(tmp_project: Project, published: Server) -> None:
    openslr(tmp_project, published, "test-clean.tar.gz", "dev-clean.tar.gz")
    download.main()
    for name in ("test-clean.tar.gz", "dev-clean.tar.gz"):
        assert Path("data/raw/librispeech", name).read_bytes() == published.files[f"/12/{name}"]


def test_a_second_run_asks_the_network_for_nothing(
    tmp_project: Project, published: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    openslr(tmp_project, published, "test-clean.tar.gz", "dev-clean.tar.gz")
    download.main()
    published.requests.clear()
    capsys.readouterr()
    download.main()
    assert published.requests == []
    assert capsys.readouterr().out == (
        "kept data/raw/librispeech/test-clean.tar.gz\nkept data/raw/librispeech/dev-clean.tar.gz\n"
    )


def test_what_params_do_not_ask_for_goes(tmp_project: Project, published: Server) -> None:
    Path("data/raw/librispeech").mkdir(parents=True)
    Path("data/raw/another").mkdir(parents=True)
    Path("data/raw/another/test.tar").write_bytes(b"of another experiment")
    Path("data/raw/librispeech/train-clean-100.tar.gz").write_bytes(b"of another experiment")
    Path("data/raw/librispeech/.dev-other.tar.gz.partial").write_bytes(b"given up")
    openslr(tmp_project, published, "test-clean.tar.gz", "dev-clean.tar.gz")
    download.main()
    assert sorted(map(str, Path("data/raw").rglob("*"))) == [
        "data/raw/librispeech",
        "data/raw/librispeech/dev-clean.tar.gz",
        "data/raw/librispeech/test-clean.tar.gz",
    ]


def test_a_split_without_a_digest_is_refused(tmp_project: Project, published: Server) -> None:
    openslr(tmp_project, published, "test-clean.tar.gz")
    with pytest.raises(UserError) as error:
        download.main()
    assert str(error.value) == (
        "corpus 'librispeech': the SHA-256 of dev-clean.tar.gz is missing; "
        "add it to corpora.librispeech.files, so that the archive can be verified"
    )


def test_a_run_that_breaks_off_ends_with_one_sentence_and_the_next_goes_on(
    tmp_project: Project, published: Server
) -> None:
    """The real command, twice, with the real waits between tries."""
    openslr(tmp_project, published, "test-clean.tar.gz", "dev-clean.tar.gz")
    published.drops, published.statuses = 1, [0, *[503] * 4]
    first = run()
    kept = Path("data/raw/librispeech/.test-clean.tar.gz.partial").stat().st_size
    url = f"{published.url}/12/test-clean.tar.gz"
    assert first.returncode == 1
    assert first.stderr.splitlines()[-1] == (
        f"download: {url}: the server answers 503 Service Unavailable; run it again later "
        f"({kept:,} bytes are kept in data/raw/librispeech/.test-clean.tar.gz.partial: "
        "the next run goes on from there, unless you delete it)"
    )
    assert "Traceback" not in first.stderr
    second = run()
    assert second.returncode == 0
    assert published.requests[-2:] == [("/12/test-clean.tar.gz", f"bytes={kept}-"), ("/12/dev-clean.tar.gz", None)]


def test_real_speech_comes_whole_through_a_bad_connection(
    tmp_project: Project, shared_speech: Path, server: Server, tmp_path: Path
) -> None:
    """LibriSpeech in OpenSLR's shape: dropped, resumed, sent with a wrong byte, and at last right."""
    names = sorted((shared_speech / "test-clean" / "1089").rglob("*.*"))
    members = {f"LibriSpeech/{name.relative_to(shared_speech).as_posix()}": name.read_bytes() for name in names}
    good = archive(tmp_path / "published.tar.gz", members).read_bytes()
    server.files = {"/12/test-clean.tar.gz": good, "/12/dev-clean.tar.gz": good}
    openslr(tmp_project, server, "test-clean.tar.gz", "dev-clean.tar.gz")
    server.drops = 1
    server.files["/12/test-clean.tar.gz"] = good[:-1] + bytes([good[-1] ^ 1])
    with pytest.raises(
        UserError,
        match=r"test-clean.tar.gz: the SHA-256 of what \S+ sends is [0-9a-f]{64}, but [0-9a-f]{64} was expected",
    ):
        download.main()
    server.files["/12/test-clean.tar.gz"] = good
    download.main()
    recordings = sources.recordings("librispeech", params.read().corpora["librispeech"], "test-clean")
    assert sorted(recordings) == [name.stem for name in names if name.suffix == ".flac"]
    assert all(recording.text for recording in recordings.values())


def test_a_directory_is_packed(tmp_project: Project, shared_speech: Path) -> None:
    tmp_project.set(
        corpus="mine",
        corpora__mine={"source": "directory", "path": str(shared_speech), "splits": ["test-clean"]},
        calibration__corpus="mine",
        calibration__split="train-clean-100",
    )
    download.main()
    with tarfile.open("data/raw/mine/test-clean.tar") as tar:
        assert sum(name.endswith(".flac") for name in tar.getnames()) == 72
        member = tar.extractfile("test-clean/121/123852/121-123852-0004.flac")
        original = shared_speech / "test-clean/121/123852/121-123852-0004.flac"
        assert isinstance(member, io.BufferedReader)
        assert member.read() == original.read_bytes()
    with tarfile.open("data/raw/mine/train-clean-100.tar") as tar:
        assert len(tar.getnames()) == 48


def test_a_directory_with_audio_where_it_is_not_looked_for_ends_with_one_sentence(
    tmp_project: Project, tmp_path: Path
) -> None:
    """Files straight in the split's folder were left out without a word."""
    (tmp_path / "speech/test").mkdir(parents=True)
    (tmp_path / "speech/test/a.wav").write_bytes(b"")
    tmp_project.set(
        corpus="mine",
        corpora__mine={"source": "directory", "path": str(tmp_path / "speech"), "splits": ["test"]},
        calibration__corpus="mine",
        calibration__split="train",
    )
    ended = run()
    sentence = "download: corpus 'mine': test/a.wav is not where it should be, in <split>/<speaker>/<chapter>/"
    assert (ended.returncode, ended.stderr.splitlines()[-1]) == (1, sentence)


def test_help_says_what_it_does() -> None:
    shown = run("--help")
    assert shown.returncode == 0
    assert "usage: python -m pipeline.download [-h]" in shown.stdout
    assert "Download the corpus and the calibration speech" in " ".join(shown.stdout.split())
