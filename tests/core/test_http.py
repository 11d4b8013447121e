import hashlib
from pathlib import Path

import pytest

from pipeline.core import http
from pipeline.core.errors import UserError
from tests.conftest import Server

DATA = bytes(range(256)) * 4000
DIGEST = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def url(server: Server) -> str:
    server.files["/file.tar.gz"] = DATA
    return f"{server.url}/file.tar.gz"


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_downloaded_whole(url: str, tmp_path: Path) -> None:
    http.download([url], tmp_path / "file.tar.gz", DIGEST)
    assert (tmp_path / "file.tar.gz").read_bytes() == DATA
    assert left(tmp_path) == ["file.tar.gz"]


def test_a_verified_file_is_kept_without_the_network(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file.tar.gz").write_bytes(DATA)
    http.download(["http://127.0.0.1:1/never"], tmp_path / "file.tar.gz", DIGEST)
    assert capfd.readouterr() == (f"kept {tmp_path}/file.tar.gz\n", "")


def test_a_file_with_other_bytes_is_replaced(url: str, tmp_path: Path) -> None:
    (tmp_path / "file.tar.gz").write_bytes(b"the corpus of last year")
    http.download([url], tmp_path / "file.tar.gz", DIGEST)
    assert (tmp_path / "file.tar.gz").read_bytes() == DATA


def test_a_dropped_connection_is_resumed_at_once(url: str, server: Server, tmp_path: Path) -> None:
    server.drops = 2
    http.download([url], tmp_path / "file.tar.gz", DIGEST)
    assert (tmp_path / "file.tar.gz").read_bytes() == DATA
    assert server.requests == [
        ("/file.tar.gz", None),
        ("/file.tar.gz", "bytes=512000-"),
        ("/file.tar.gz", "bytes=768000-"),
    ]


def test_a_server_that_stays_away_is_given_up_and_the_next_run_resumes(
    url: str, server: Server, tmp_path: Path
) -> None:
    server.drops, server.statuses = 1, [0, *[503] * 4]
    with pytest.raises(UserError) as error:
        http.download([url], tmp_path / "file.tar.gz", DIGEST)
    assert str(error.value) == (
        f"{url}: the server answers 503 Service Unavailable; run it again later "
        f"(512,000 bytes are kept in {tmp_path}/.file.tar.gz.partial: the next run goes on from there, "
        "unless you delete it)"
    )
    assert left(tmp_path) == [".file.tar.gz.partial"]
    http.download([url], tmp_path / "file.tar.gz", DIGEST)
    assert (tmp_path / "file.tar.gz").read_bytes() == DATA
    assert server.requests[-1] == ("/file.tar.gz", "bytes=512000-")


def test_a_server_that_ignores_ranges_is_read_from_the_start(url: str, server: Server, tmp_path: Path) -> None:
    server.ignored_ranges, server.drops = 1, 1
    http.download([url], tmp_path / "file.tar.gz", DIGEST)
    assert (tmp_path / "file.tar.gz").read_bytes() == DATA
    assert server.requests == [("/file.tar.gz", None), ("/file.tar.gz", "bytes=512000-")]


@pytest.mark.parametrize("partial", [DATA, b"another file" * 100_000, b"another file"])
def test_whatever_partial_was_left_the_next_run_recovers(url: str, tmp_path: Path, partial: bytes) -> None:
    (tmp_path / ".file.tar.gz.partial").write_bytes(partial)
    http.download([url], tmp_path / "file.tar.gz", DIGEST)
    assert (tmp_path / "file.tar.gz").read_bytes() == DATA
    assert left(tmp_path) == ["file.tar.gz"]


def test_wrong_bytes_are_removed_and_the_next_run_recovers(url: str, server: Server, tmp_path: Path) -> None:
    server.files["/file.tar.gz"] = b"\1" + DATA[1:]
    with pytest.raises(UserError) as error:
        http.download([url], tmp_path / "file.tar.gz", DIGEST)
    assert str(error.value) == (
        f"{tmp_path}/file.tar.gz: the SHA-256 of what {url} sends is "
        f"{hashlib.sha256(server.files['/file.tar.gz']).hexdigest()}, but "
        f"{DIGEST} was expected; run it again, or correct the digest in catalog.yaml if the "
        "publisher has changed the file"
    )
    assert left(tmp_path) == []
    server.files["/file.tar.gz"] = DATA
    http.download([url], tmp_path / "file.tar.gz", DIGEST)
    assert (tmp_path / "file.tar.gz").read_bytes() == DATA


def test_a_mirror_with_wrong_bytes_is_passed_over(url: str, server: Server, tmp_path: Path) -> None:
    server.files["/mirror"] = DATA[:-1] + b"?"
    http.download([f"{server.url}/mirror", url], tmp_path / "file.tar.gz", DIGEST)
    assert (tmp_path / "file.tar.gz").read_bytes() == DATA
    assert left(tmp_path) == ["file.tar.gz"]


def test_with_a_wrong_digest_the_file_that_is_there_stays(url: str, tmp_path: Path) -> None:
    """Somebody who mistypes the digest does not download it all again."""
    http.download([url], tmp_path / "file.tar.gz", DIGEST)
    with pytest.raises(UserError, match="the SHA-256 of what"):
        http.download([url], tmp_path / "file.tar.gz", "0" * 64)
    assert (tmp_path / "file.tar.gz").read_bytes() == DATA
    assert left(tmp_path) == ["file.tar.gz"]


def test_a_page_that_asks_to_log_in_does_not_cost_what_is_there(url: str, server: Server, tmp_path: Path) -> None:
    """What a hotel's network answers, with status 200, instead of the rest of the file."""
    partial = tmp_path / ".file.tar.gz.partial"
    partial.write_bytes(DATA[:500_000])
    server.files["/portal"], server.types["/portal"] = b"<html>" * 200_000, "text/html; charset=utf-8"
    server.files["/short"] = b"Please log in"
    server.ignored_ranges = 2
    with pytest.raises(UserError) as error:
        http.download([f"{server.url}/portal", f"{server.url}/short"], tmp_path / "file.tar.gz", DIGEST)
    sentence = "another file is sent, such as a page that asks to log in"
    assert str(error.value) == (
        f"{server.url}/portal: {sentence}; {server.url}/short: {sentence} "
        f"(500,000 bytes are kept in {partial}: the next run goes on from there, unless you delete it)"
    )
    http.download([url], tmp_path / "file.tar.gz", DIGEST)
    assert server.requests[-1] == ("/file.tar.gz", "bytes=500000-")


def test_tries_are_not_spent_while_they_bring_something(url: str, server: Server, tmp_path: Path) -> None:
    server.drops = 10
    http.download([url], tmp_path / "file.tar.gz", DIGEST)
    assert (tmp_path / "file.tar.gz").read_bytes() == DATA
    assert len(server.requests) == 11


def test_tries_are_spent_by_what_was_here_before(url: str, server: Server, tmp_path: Path) -> None:
    """A server that ignores ranges and breaks off at the same place each time."""
    server.drops = server.ignored_ranges = 100
    with pytest.raises(UserError, match="the connection was lost; check the network and run it again"):
        http.download([url], tmp_path / "file.tar.gz", DIGEST)
    assert len(server.requests) == 5


def test_a_server_that_sends_less_than_asked_for_is_asked_for_the_rest(
    url: str, server: Server, tmp_path: Path
) -> None:
    """Proxies limit an answer: that is a right one to a Range (RFC 9110, 15.3.7), and not the end of the file."""
    (tmp_path / ".file.tar.gz.partial").write_bytes(DATA[:500_000])
    server.most = 200_000
    http.download([url], tmp_path / "file.tar.gz", DIGEST)
    assert (tmp_path / "file.tar.gz").read_bytes() == DATA
    assert [asked for _, asked in server.requests] == ["bytes=500000-", "bytes=700000-", "bytes=900000-"]


@pytest.mark.parametrize("length", ["1024000, 1024000", "lots", "-1"])
def test_a_length_that_means_nothing_is_done_without(length: str, url: str, server: Server, tmp_path: Path) -> None:
    server.lengths = [length]
    http.download([url], tmp_path / "file.tar.gz", DIGEST)
    assert (tmp_path / "file.tar.gz").read_bytes() == DATA


def test_a_busy_server_is_asked_again(url: str, server: Server, tmp_path: Path) -> None:
    server.statuses = [503, 429]
    http.download([url], tmp_path / "file.tar.gz", DIGEST)
    assert (tmp_path / "file.tar.gz").read_bytes() == DATA


def test_a_missing_file_is_asked_for_once(url: str, server: Server, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        http.download([f"{url}x"], tmp_path / "file.tar.gz", DIGEST)
    assert str(error.value) == f"{url}x: the server answers 404 Not Found; check the address in catalog.yaml"
    assert server.requests == [("/file.tar.gzx", None)]


def test_the_next_mirror_is_tried(url: str, server: Server, tmp_path: Path) -> None:
    http.download([f"{server.url}/elsewhere/file.tar.gz", url], tmp_path / "file.tar.gz", DIGEST)
    assert (tmp_path / "file.tar.gz").read_bytes() == DATA


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        (
            "http://user:secret@127.0.0.1:1/file",
            "http://127.0.0.1:1/file: no connection; check the network and run it again",
        ),
        (
            "http://no-such-host.invalid/file?token=secret",
            "http://no-such-host.invalid/file: the host's name is not known (no network?); "
            "check the network and run it again",
        ),
        ("openslr/file", "openslr/file is not an address that can be downloaded from"),
    ],
)
def test_no_network_is_one_sentence_without_secrets(
    address: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "WAITS", (0,))
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError) as error:
        http.download([address], tmp_path / "file", DIGEST)
    assert str(error.value) == sentence
