"""The whole way at LibriSpeech's size: a corpus behind a bad server, memory over time, and `kill -9` at random points.

Usage: python -m tests.scale FOLDER [--speech LIBRISPEECH] [--utterances 3000] [--model FOLDER] [--kills 9]

The corpus is made of the utterances of a folder in LibriSpeech's layout (or of noise), again and again under new ids,
and published as OpenSLR does. The model is a random toy, or a checkpoint in Hugging Face's layout. Writes memory.csv
and memory.png to FOLDER. `tests/test_scale.py` does the same, smaller.
"""

import argparse
import csv
import hashlib
import io
import itertools
import os
import random
import re
import signal
import subprocess
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import pyarrow.parquet
from ruamel.yaml import YAML

from pipeline.core import files
from tests import study
from tests.conftest import Server, _Handler, encode, noise, serve
from tests.study import Study

SPLITS = {"test-clean": "test-clean", "test-other": "test-other", "dev-clean": "train-clean-100"}
"""What is published, and where its audio comes from."""

CALIBRATING = 8
"""Utterances of dev-clean."""

STAGES = ("download", "prepare", "quantize@fp32", "agree@fp32", "reference", "transcribe@fp32", "score@fp32")
TARGETS = STAGES[-1:]
"""What needs all the others."""


@dataclass(frozen=True)
class Spoken:
    """An utterance as LibriSpeech has it."""

    speaker: int
    chapter: str
    number: str
    text: str | None
    """None where there is no transcript: calibration needs none."""
    flac: bytes


@dataclass(frozen=True)
class Published:
    """Archives by name, and what is in them: split -> id -> text and SHA-256 of the audio."""

    archives: dict[str, bytes]
    utterances: dict[str, dict[str, tuple[str | None, str]]]


def spoken(speech: Path | None, split: str) -> list[Spoken]:
    """Read a split of LibriSpeech; without it return noise of ten speakers."""
    if speech is None:
        return [Spoken(n, "1", f"{n:04}", "EGG EBGGE", encode(noise(0.3 + n / 10, n))) for n in range(10)]
    found = []
    for path in sorted((speech / split).glob("*/*/*.flac")):
        speaker, chapter, number = path.stem.split("-")
        transcript = path.with_name(f"{speaker}-{chapter}.trans.txt")
        lines = transcript.read_text(encoding="utf-8").splitlines() if transcript.exists() else []
        texts = dict(line.split(" ", 1) for line in lines)
        found.append(Spoken(int(speaker), chapter, number, texts.get(path.stem), path.read_bytes()))
    assert found, f"{speech / split} holds no audio"
    return found


def publish(speech: Path | None, utterances: int) -> Published:
    """Make archives of test-clean and test-other with so many utterances in all, and of a small dev-clean."""
    counts = {"test-clean": utterances // 2, "test-other": utterances - utterances // 2, "dev-clean": CALIBRATING}
    made = Published({}, {})
    for n, (split, source) in enumerate(SPLITS.items()):
        originals = spoken(speech, source)
        texts: dict[str, str] = {}
        known: dict[str, tuple[str | None, str]] = {}
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w:gz", compresslevel=1) as tar:
            for copy, original in itertools.islice(
                ((copy, one) for copy in itertools.count() for one in originals), counts[split]
            ):
                speaker = original.speaker + 10_000 * copy + 1_000_000 * n
                chapter = f"LibriSpeech/{split}/{speaker}/{original.chapter}"
                name = f"{speaker}-{original.chapter}-{original.number}"
                _add(tar, f"{chapter}/{name}.flac", original.flac)
                known[name] = (original.text, hashlib.sha256(original.flac).hexdigest())
                if original.text is not None:
                    transcript = f"{chapter}/{speaker}-{original.chapter}.trans.txt"
                    texts[transcript] = texts.get(transcript, "") + f"{name} {original.text}\n"
            for transcript, text in texts.items():
                _add(tar, transcript, text.encode())
        made.archives[f"{split}.tar.gz"] = file.getvalue()
        made.utterances[split] = known
    return made


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


@contextmanager
def served(published: Published) -> Iterator[Server]:
    """Serve the archives badly.

    Three connections are lost, one request for the rest of a file is answered with all of it, and one archive comes
    with a wrong byte once.
    """
    with contextmanager(serve)(_Handler) as server:
        server.files = {f"/12/{name}": data for name, data in published.archives.items()}
        data = server.files["/12/test-other.tar.gz"]
        middle = len(data) // 2
        server.wrong["/12/test-other.tar.gz"] = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
        server.drops, server.ignored_ranges = 3, 1
        yield server


def make(folder: Path, published: Published, server: Server, model: Path | None = None) -> Study:
    """Make a study of fp32 on what the server has; nothing of it has run yet."""
    made = study.make(folder)

    def change(raw: Any) -> None:
        raw["corpus"] = raw["calibration"]["corpus"] = "librispeech"
        raw["calibration"]["split"] = "dev-clean"
        corpus = raw["corpora"]["librispeech"]
        corpus["url"] = f"{server.url}/12"
        corpus["files"] = {name: hashlib.sha256(data).hexdigest() for name, data in published.archives.items()}
        corpus["utterances"] = {split: len(known) for split, known in published.utterances.items()}
        raw["variants"] = {"fp32": raw["variants"]["fp32"]}
        if model:
            raw["models"]["toy"]["path"] = str(model.resolve())
            raw["decoding"]["max_new_tokens"] = 444

    made.edit(change)
    made.commit("A larger corpus")
    return made


def prepared(made: Study) -> dict[str, dict[str, tuple[str | None, str]]]:
    """Return what is in data/corpus, as `Published.utterances` says it."""
    found: dict[str, dict[str, tuple[str | None, str]]] = {}
    for shard in sorted((made.root / "data/corpus").rglob("*.parquet")):
        for row in pyarrow.parquet.read_table(shard).to_pylist():
            known = found.setdefault(row["split"], {})
            assert row["id"] not in known
            known[row["id"]] = (row["text"], hashlib.sha256(row["audio"]["bytes"]).hexdigest())
    return found


@dataclass
class Watch:
    """Resident memory of the stage that a DVC process runs, over time."""

    dvc: int
    samples: list[tuple[float, str, float]] = field(default_factory=list)
    """Seconds since the start, stage, MB (10^6 bytes)."""
    running: bool = True

    def __enter__(self) -> "Watch":
        self.thread = threading.Thread(target=self._sample, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.running = False
        self.thread.join()

    def _sample(self) -> None:
        started = time.monotonic()
        while self.running:
            found = stage(self.dvc)
            if found:
                process, name = found
                with suppress(psutil.Error):
                    used = process.memory_info().rss / 1e6
                    self.samples.append((round(time.monotonic() - started, 2), name, round(used, 1)))
            time.sleep(0.1)

    def seconds(self) -> dict[str, float]:
        """Return how long each stage ran."""
        times: dict[str, list[float]] = {}
        for moment, name, _ in self.samples:
            times.setdefault(name, []).append(moment)
        return {name: moments[-1] - moments[0] for name, moments in times.items()}

    def peaks(self) -> dict[str, float]:
        """Return the most memory of each stage, in MB."""
        peaks: dict[str, float] = {}
        for _, name, used in self.samples:
            peaks[name] = max(used, peaks.get(name, 0))
        return peaks


def stage(dvc: int, kind: str = "") -> tuple[Any, str] | None:
    """Find the stage that a DVC process runs, or one whose name begins with `kind`."""
    with suppress(psutil.Error, IndexError):
        for process in psutil.Process(dvc).children(recursive=True):
            words = process.cmdline()
            if words[1:2] == ["-m"] and words[2].startswith(f"pipeline.{kind}"):
                return process, "@".join([words[2].removeprefix("pipeline."), *words[3:4]])
    return None


def runs(dvc: int, name: str) -> bool:
    """Tell whether a DVC process runs this stage."""
    found = stage(dvc)
    return found is not None and found[1] == name


@contextmanager
def started(made: Study, *command: str) -> "Iterator[subprocess.Popen[str]]":
    """Start a command in a session of its own, as a terminal does; what is left of it is killed in the end."""
    process = made.start(*command)
    try:
        yield process
    finally:
        kill(process.pid)
        process.wait()


def kill(session: int) -> None:
    """Kill every process of a session at once, as the end of a machine does."""
    with suppress(ProcessLookupError):
        os.killpg(session, signal.SIGKILL)


def run(made: Study) -> tuple[str, Watch]:
    """Run all stages; return what it says, and what its stages needed. It must succeed, at the second go at most."""
    said = ""
    for attempt in (1, 2):
        with started(made, "dvc", "repro", *TARGETS) as process, Watch(process.pid) as watch:
            said += process.communicate()[0]
        if process.returncode == 0:
            return said, watch
        assert attempt == 1, said
        assert "run it again" in said, said
    raise AssertionError


def forget(made: Study, name: str) -> None:
    """Bring a stage into the state before its first run."""
    lock = made.root / "dvc.lock"
    content = YAML(typ="safe").load(lock)
    entry = content["stages"].pop(name)
    YAML(typ="safe").dump(content, lock)
    for path in (*(out["path"] for out in entry["outs"]), ".dvc/cache/runs"):
        files.remove(made.root / path)
        files.remove((made.root / path).with_name(f".{Path(path).name}.pieces"))


def state(made: Study) -> dict[str, str]:
    """Return the digest of every file that a study has made, timings and DVC's own aside.

    In DVC's cache there may be more objects after a kill, but whole ones only.
    """
    timed = ("reports/timings", "dvc.lock", "reports/results.csv", "reports/figures", "reports/index.html")
    paths = (path.relative_to(made.root).as_posix() for path in made.root.rglob("*") if path.is_file())
    kept = (path for path in paths if not path.startswith((".git/", ".dvc/", *timed)) and ".pieces/" not in path)
    cache = made.root / ".dvc/cache/files/md5"
    for path in cache.rglob("*"):
        name = path.relative_to(cache).as_posix().replace("/", "")
        assert path.is_dir() or re.fullmatch(r"[0-9a-f]{32}(\.dir)?", name), path
        assert path.is_dir() or hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest() == name[:32], path
    return {path: files.sha256(made.root / path) for path in sorted(kept)}


def cut_short(
    made: Study, name: str, after: float, end: Callable[[int], None] = kill, shell: str = "sh"
) -> tuple[bool, str, float]:
    """Run a stage for the first time, in the shell that DVC takes for its user's, and end it `after` seconds.

    Return whether it was still at work (else nothing is ended), what DVC and the stage said, and how many seconds it
    took to end.
    """
    forget(made, name)
    with started(made, "env", f"SHELL={shell}", "dvc", "repro", name) as process:
        while process.poll() is None and not runs(process.pid, name):
            time.sleep(0.01)
        time.sleep(after)
        at_work = runs(process.pid, name)
        if at_work:  # else DVC may be writing dvc.lock, which it does in place
            end(process.pid)
        ended = time.monotonic()
        said, _ = process.communicate()
    return at_work, said, time.monotonic() - ended


def interrupt(session: int) -> None:
    """Do what Ctrl-C does."""
    os.killpg(session, signal.SIGINT)


def only_dvc(dvc: int) -> None:
    """Kill DVC, but not its stage."""
    os.kill(dvc, signal.SIGKILL)


def only_stage(dvc: int) -> None:
    """Kill the stage, but not DVC."""
    found = stage(dvc)
    if found:
        found[0].kill()


def survives(
    made: Study, name: str, after: float, victim: Callable[[int], None], whole: dict[str, str], shell: str = "sh"
) -> str:
    """Kill a stage in the middle; the next run must leave what an uninterrupted one does. Return what that says."""
    while not cut_short(made, name, after, victim, shell)[0]:  # it had finished already
        after *= 0.7
    made.did("dvc", "repro", *TARGETS)
    now = state(made)
    assert now == whole, sorted(path for path in now.keys() | whole.keys() if now.get(path) != whole.get(path))
    assert [left for left in made.left() if not (left / "finished").exists()] == []  # `compare` would remove these
    return f"{name}: killed by {victim.__name__} after {after:.1f} s, and survived"


def draw(watch: Watch, folder: Path) -> None:
    """Write the samples as memory.csv and memory.png."""
    import altair as alt
    import pandas as pd

    with (folder / "memory.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("seconds", "stage", "rss_mb"), *watch.samples])
    most = {name: f"{name}: at most {used:.0f} MB" for name, used in watch.peaks().items()}
    drawn = pd.DataFrame([(*sample, most[sample[1]]) for sample in watch.samples], columns=["s", "of", "mb", "stage"])
    lines = (
        alt.Chart(drawn)
        .mark_line()
        .encode(
            alt.X("s:Q", title="seconds"), alt.Y("mb:Q", title="resident memory, MB"), alt.Color("stage:N", title=None)
        )
    )
    lines.properties(width=800, height=400).save(folder / "memory.png")


def main() -> None:
    """Do it all, and tell about it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="a folder that is not there yet")
    parser.add_argument("--speech", type=Path, help="a folder in LibriSpeech's layout; without it, noise")
    parser.add_argument("--utterances", type=int, default=3000)
    parser.add_argument("--model", type=Path, help="a checkpoint in Hugging Face's layout; without it, a random toy")
    parser.add_argument("--kills", type=int, default=9, help="how often stages are killed: each once, then agree")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True)
    published = publish(arguments.speech, arguments.utterances)
    for name, data in published.archives.items():
        print(f"{name}: {len(data) / 1e6:.1f} MB", flush=True)
    with served(published) as server:
        made = make(arguments.folder, published, server, arguments.model)
        said, watch = run(made)
        print(said)
        assert prepared(made) == {split: known for split, known in published.utterances.items() if split != "dev-clean"}
        assert (server.drops, server.ignored_ranges, server.wrong) == (0, 0, {})
        for name, seconds in watch.seconds().items():
            print(f"{name}: {seconds:.1f} s, at most {watch.peaks()[name]:.0f} MB", flush=True)
        draw(watch, arguments.folder)
        whole = state(made)
        generator = random.Random(0)
        names = [*STAGES, *[STAGES[3]] * arguments.kills][: arguments.kills]
        for name, victim in zip(names, itertools.cycle((kill, only_dvc, only_stage))):
            after = watch.seconds().get(name, 0.5) * generator.random()
            print(survives(made, name, after, victim, whole), flush=True)


if __name__ == "__main__":
    main()
