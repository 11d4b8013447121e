"""Run the variants' stages, several at once: quantize, agree, transcribe and score of one variant are a job.

Several DVCs can run at once if each gets its own stages and waits for dvc.lock; `dvc repro` does the rest afterwards.
GPUs are dealt out. Cores are shared equally, unless OMP_NUM_THREADS is set: equal threads give equal texts. A terminal
shows each job's last line; its whole output follows when it has ended.
"""

import concurrent.futures
import contextlib
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

from pipeline.core import params, stage
from pipeline.core.errors import UserError
from pipeline.core.machine import JOBS

REPRO = (sys.executable, "-m", "dvc", "--wait-for-lock", "repro")

FIRST = ("learn", f"quantize@{params.BASELINE}", "reference")
"""Stages whose outputs several jobs read. They run first: DVC fails if another job is reading them."""

CHATTER = re.compile(
    r"Updating lock file|Generating lock file|Stage '.*' didn't change|Data and pipelines are up to date|"
    r"To track the changes|\s*git add|To enable auto staging|\s*dvc config core.autostage|Use `dvc push`"
)
"""Lines of DVC that tell nothing about a job."""


def stages_of(settings: params.Params) -> dict[str, list[str]]:
    """Return the stages of each job, by its name: a variant, or fp32's other protocols."""
    kinds = ("quantize", "agree", "transcribe", "score")
    stages = {name: [f"{kind}@{name}" for kind in kinds] for name in settings.variants}
    stages[params.CANDIDATE] = [f"{kind}_{params.CANDIDATE}" for kind in kinds]
    stages["other protocols"] = ["transcribe_protocols", "score_protocols"]  # no variant can be called so
    return {name: [stage for stage in named if stage not in FIRST] for name, named in stages.items()}


def environments(count: int, device: str) -> list[dict[str, str]]:
    """Return what is set for each of `count` jobs at once: its share of the cores, and its GPU."""
    cores = len(os.sched_getaffinity(0))
    shared = {
        JOBS: str(count),
        stage.JOBS_PID: str(os.getpid()),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, cores // count))),
    }
    gpus: list[str] = []
    if device in ("auto", "cuda"):
        import torch

        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        gpus = (visible.split(",") if visible else [*map(str, range(64))])[: torch.cuda.device_count()]
    return [shared | ({"CUDA_VISIBLE_DEVICES": gpus[n % len(gpus)]} if gpus else {}) for n in range(count)]


class Pool:
    """Runs jobs, as many at once as it has places; each place has a line on the terminal, and an environment."""

    def __init__(self, places: list[dict[str, str]], total: int) -> None:
        from tqdm import tqdm

        self.terminal = sys.stderr.isatty()
        self.ended = tqdm(total=total, desc="jobs", unit="job", position=0, disable=not self.terminal)
        self.free: queue.Queue[tuple[tqdm[Any], dict[str, str]]] = queue.Queue()
        for number, environment in enumerate(places, start=1):
            line = tqdm(bar_format="{desc}", position=number, leave=False, disable=not self.terminal)
            self.free.put((line, environment))
        self.running: set[subprocess.Popen[bytes]] = set()
        self.stopped = False
        self.starting = threading.Lock()

    def run(self, name: str, command: Sequence[str]) -> bool:
        """Run a job as soon as a place is free, show what it has said, and tell whether it succeeded."""
        line, environment = self.free.get()
        try:
            return self._run(name, command, line, environment)
        finally:
            self.free.put((line, environment))

    def _run(self, name: str, command: Sequence[str], line: Any, environment: dict[str, str]) -> bool:
        # A terminal of its own, where there is one: or the stages would show no progress.
        ours, theirs = os.openpty() if self.terminal else os.pipe()
        with os.fdopen(ours, "rb", buffering=0):
            with os.fdopen(theirs, "wb", buffering=0), self.starting:
                if self.stopped:  # `stop` sees every process that was started before it, and none is started after
                    return False
                if self.terminal:
                    size = shutil.get_terminal_size()
                    termios.tcsetwinsize(theirs, (size.lines, max(size.columns - len(name) - 3, 20)))
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=theirs,
                    stderr=theirs,
                    env=os.environ | environment,
                    start_new_session=True,  # Ctrl-C reaches it through `stop` alone
                )
                self.running.add(process)
            said = []
            for text, whole in _lines(ours):
                if whole and text and not CHATTER.match(text):
                    said.append(f"{name} | {text}\n")
                line.set_description_str(text if text.startswith(name) else f"{name}: {text}")
        succeeded = process.wait() == 0
        self.running.discard(process)
        line.set_description_str("")
        if not self.stopped:
            if said:
                with self.ended.external_write_mode():
                    print("".join(said), flush=True)
            self.ended.update()
        return succeeded

    def stop(self) -> None:
        """Interrupt what runs, and start nothing more."""
        with self.starting:
            self.stopped = True
        while self.running:
            for process in list(self.running):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGINT)
            patience = time.monotonic() + 2  # DVC has locks to give back; then again, as it may just have started
            while self.running and time.monotonic() < patience:
                time.sleep(0.05)

    def close(self) -> None:
        """Leave the terminal as it should be; nothing runs any more."""
        while not self.free.empty():
            self.free.get()[0].close()
        self.ended.close()


def _lines(source: int) -> Iterator[tuple[str, bool]]:
    """Yield what is written to `source`: each whole line, and in between the line that is being written (False)."""
    rest = b""
    while chunk := _read(source):
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield _visible(line), True
        rest = b"\r".join(rest.split(b"\r")[-3:])  # what a progress bar has overwritten is gone
        if rest:
            yield _visible(rest), False
    if rest:
        yield _visible(rest), True


def _read(source: int) -> bytes:
    try:
        return os.read(source, 1 << 16)
    except OSError:  # how a terminal says that everybody has left
        return b""


def _visible(line: bytes) -> str:
    """Return what a line shows in the end, without colours: a progress bar returns to its start and overwrites it."""
    text = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", line.decode(errors="replace"))
    parts = [part.strip() for part in text.split("\r")]
    return next(filter(None, reversed(parts)), "")


def main(jobs: int) -> None:
    """Run all jobs; one that fails does not hold up the others."""
    settings = params.read()
    if jobs < 1:
        raise UserError(f"jobs is {jobs}, but at least 1 is needed")
    stages = stages_of(settings)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in the background; but jobs shall hear `stop`
        signal.signal(signal.SIGINT, lambda *_: None)
    pool = Pool(environments(min(jobs, len(stages)), settings.device), 1 + len(stages))
    with concurrent.futures.ThreadPoolExecutor(jobs) as executor, contextlib.closing(pool):
        try:
            if not executor.submit(pool.run, "all", [*REPRO, *FIRST]).result():
                raise UserError("what all jobs need could not be made; why stands above")
            alone = {name: [*REPRO, "--single-item", *named] for name, named in stages.items()}
            started = {name: executor.submit(pool.run, name, command) for name, command in alone.items()}
            failed = [name for name, job in started.items() if not job.result()]
        except BaseException:
            pool.stop()
            raise
    if failed:
        above = "what they said stands above, the others are done"
        raise UserError(f"{len(failed)} of {len(stages)} jobs failed: {', '.join(failed)}; {above}")


if __name__ == "__main__":
    stage.run(main)
