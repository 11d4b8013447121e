"""A study small enough to run whole in a test: DVC, graph and stages are the real ones, model and speech are not."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from pipeline.core import outside
from tests import toy
from tests.conftest import ROOT, encode, noise

SETTINGS = ("params.yaml", "catalog.yaml")
NOTES = ("outside/watch.yaml", *(f"outside/{name}.json" for name in outside.NAMES))
FILES = ("dvc.yaml", *SETTINGS, ".dvcignore", ".gitignore", ".dvc/config", ".dvc/.gitignore", *NOTES)
VARIANTS = ("fp32", "torch-int8-dynamic", "torch-int8-static", "hqq-int4")
UNREACHABLE = "http://127.0.0.1:9/simple"
"""An index that refuses every connection: whoever downloads anything fails."""


@dataclass(frozen=True)
class Study:
    """A copy of the project in a folder of its own, with its own git repository and DVC cache."""

    root: Path

    @property
    def speech(self) -> str:
        """Where the corpus comes from."""
        return str(self.catalog["corpora"]["noise"]["path"])

    @property
    def catalog(self) -> Any:
        """What catalog.yaml holds."""
        return YAML(typ="safe").load(self.root / "catalog.yaml")

    def run(self, *command: str) -> "subprocess.CompletedProcess[str]":
        """Run a command in the study's folder, with this Python's programs first; standard error is in stdout."""
        process = self.start(*command)
        output, _ = process.communicate()
        return subprocess.CompletedProcess(command, process.returncode, output)

    def start(self, *command: str) -> "subprocess.Popen[str]":
        """Start such a command in a session of its own, which a kill ends whole."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("GIT_", "DVC_"))}
        environment |= {
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "PIP_INDEX_URL": UNREACHABLE,
            "OMP_NUM_THREADS": "1",  # starting threads takes longer than these matrices
            "SHELL": "/bin/sh",  # that of a service account may refuse to run anything
            "DVC_NO_ANALYTICS": "1",
            "GIT_CONFIG_GLOBAL": os.devnull,
            "GIT_CONFIG_NOSYSTEM": "1",
            "DVC_SITE_CACHE_DIR": str(self.root.parent / "site-cache"),
            "DVC_GLOBAL_CONFIG_DIR": str(self.root.parent / "no-config"),
            "DVC_SYSTEM_CONFIG_DIR": str(self.root.parent / "no-config"),
        }
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        # Tests that run in the background ignore Ctrl-C, which children inherit.
        pipes["preexec_fn"] = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
        return subprocess.Popen(command, cwd=self.root, env=environment, start_new_session=True, **pipes)

    def did(self, *command: str) -> str:
        """Run a command that must succeed; return what it says."""
        done = self.run(*command)
        assert done.returncode == 0, done.stdout
        return done.stdout

    def ran(self, *command: str) -> list[str]:
        """Run a DVC command that must succeed; return the stages that it ran, sorted."""
        return sorted(ran(self.did("dvc", *command)))

    def changed(self) -> list[str]:
        """Return the stages that `dvc status` finds changed, but for those that always are."""
        return sorted(
            stage for stage in json.loads(self.did("dvc", "status", "--json")) if not stage.startswith("watch@")
        )

    def edit(self, change: Callable[[Any], object]) -> None:
        """Let `change` work on what params.yaml and catalog.yaml hold together."""
        raws = [YAML(typ="safe").load(self.root / name) for name in SETTINGS]
        merged = raws[0] | raws[1]
        change(merged)
        for name, raw in zip(SETTINGS, raws, strict=True):
            kept = {key: value for key, value in merged.items() if (key in raws[1]) == (raw is raws[1])}
            YAML(typ="safe").dump(kept, self.root / name)

    def unwatch(self) -> None:
        """Let DVC run no stage that looks for changes of the folders: as it is with models and corpora of packages."""
        (self.root / "outside/watch.yaml").write_text("watch: []\n", encoding="utf-8")
        self.commit("Watch nothing")

    def append(self, name: str, text: str) -> None:
        """Add text at the end of a file."""
        with (self.root / name).open("a", encoding="utf-8") as file:
            file.write(text)

    def read(self, name: str) -> str:
        """Return a file's text."""
        return (self.root / name).read_text(encoding="utf-8")

    def left(self) -> list[Path]:
        """List what unfinished writes and stages have left behind."""
        return [path for kind in ("partial", "pieces") for path in self.root.rglob(f".*.{kind}")]

    def begin(self) -> None:
        """Begin a history on branch main."""
        self.did("git", "init", "--quiet", "--initial-branch", "main")
        self.did("git", "config", "user.name", "A Tester")
        self.did("git", "config", "user.email", "tester@example.org")

    def commit(self, message: str) -> None:
        """Commit everything that git does not ignore."""
        self.did("git", "add", "--all")
        self.did("git", "commit", "--quiet", "--message", message)

    def copy(self, root: Path) -> "Study":
        """Return a copy with everything, the cache included."""
        shutil.copytree(self.root, root, symlinks=True)
        return Study(root)


def ran(output: str) -> list[str]:
    """Return the stages that DVC says to have run, in their order, but for those that always do."""
    return re.findall(r"^Running stage '(?!watch@)(.+)':$", output, re.MULTILINE)


def make(folder: Path) -> Study:
    """Make a study in `folder` of a random model and a few noises; nothing of it has run yet."""
    study = Study(folder / "study")
    for name in FILES:
        (study.root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, study.root / name)
    shutil.copytree(ROOT / "pipeline", study.root / "pipeline", ignore=shutil.ignore_patterns("__pycache__"))
    model, speech = toy.talkative(toy.write(folder / "toy")), _speech(folder / "speech")

    def shrink(raw: Any) -> None:
        raw |= {"model": "toy", "corpus": "noise", "device": "cpu", "backend": "hqq", "bits": 8}
        raw["models"]["toy"] = {"source": "directory", "path": str(model)}
        raw["corpora"]["noise"] = {"source": "directory", "path": str(speech), "splits": ["test"], "limit": None}
        raw["variants"] = {name: raw["variants"][name] for name in VARIANTS}
        raw["decoding"]["max_new_tokens"] = 9
        raw["calibration"] |= {"corpus": "noise", "split": "dev", "utterances": 1}
        raw["latency"]["threads"] = 1
        raw["scoring"]["resamples"] = 1000

    study.edit(shrink)
    study.begin()
    study.commit("Begin")
    return study


def _speech(folder: Path) -> Path:
    """Write splits `test` and `dev` of half-second utterances, laid out as LibriSpeech is.

    One of them is nearly what the toy says with 8 bits, and less so with 4.
    """
    for split, speaker, count in (("test", 1, 3), ("dev", 2, 1)):
        chapter = folder / split / str(speaker) / "2"
        chapter.mkdir(parents=True)
        names = [f"{speaker}-2-{number:04}" for number in range(count)]
        for seed, name in enumerate(names):
            (chapter / f"{name}.flac").write_bytes(encode(noise(0.5, seed)))
        (chapter / f"{speaker}-2.trans.txt").write_text("".join(f"{name} GGGGGDGDG EGG\n" for name in names))
    return folder
