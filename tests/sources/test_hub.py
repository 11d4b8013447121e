import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pipeline import fetch
from tests.conftest import ROOT, Project, Server


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
    expected, found = (load_file(folder / "model.safetensors") for folder in (trained, fetch.BASELINE))
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
            "fetch: model 'mine': weights.safetensors of me/whisper does not exist at revision "
            f"'{REVISION}'; correct the model's files\n",
        ),
        (
            lambda project: project.set(models__mine__repo="me/whisperer"),
            "fetch: model 'mine': the hub has no repository 'me/whisperer' (or it is private: set HF_TOKEN)\n",
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
            "run it again, or correct the digest in params.yaml if the publisher has changed the file\n",
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


@pytest.mark.slow  # the hub's library tries for 23 seconds
def test_a_hub_out_of_reach_is_one_sentence(hub: Server) -> None:
    ended = run(hub, HF_ENDPOINT="http://127.0.0.1:1")
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1] == (
        "fetch: model 'mine': config.json of me/whisper cannot be downloaded: the hub is not reachable; "
        "check the network, or name a mirror with HF_ENDPOINT"
    )
    assert "Traceback" not in ended.stderr
