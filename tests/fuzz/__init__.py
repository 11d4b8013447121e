"""Spoil everything that a user brings: each input is taken, or refused with one sentence, and nothing else happens.

`kinds` makes the inputs, each from a kind and a seed; `python -m tests.fuzz 10000` tries so many.
"""

import contextlib
import faulthandler
import io
import multiprocessing
import os
import random
import resource
import tempfile
import traceback
import warnings
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from pipeline.core.errors import UserError

LIMIT = 10
"""Seconds for an input."""

ENDS = ("taken", "refused")

MEMORY = 4 << 30
"""Bytes that inputs may take: a header that promises more must not get it."""


def attempt(kind: str, seed: int) -> str:
    """Try an input in an empty folder; return "taken" or "refused". Whatever else happens is an exception.

    A refusal is a UserError of one line. Warnings are failures, too: nobody reads them in a log.
    """
    from tests.fuzz import kinds

    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.chdir(folder),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("error")
        try:
            kinds.KINDS[kind](random.Random(f"{kind}:{seed}"))
        except UserError as error:
            sentence = str(error)
            assert sentence.isprintable(), sentence
            assert "Traceback" not in sentence, sentence
            assert 10 < len(sentence) < 10_000, sentence
            return "refused"
    return "taken"


def _work(pipe: "Connection[Any, Any]") -> None:
    """Answer (kind, seed) with how it ended, in a process that may hang or die."""
    from tests.fuzz import kinds

    errors = os.fdopen(os.dup(2), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libsndfile's mpg123 talks

    kinds.warm_up()
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    pipe.send("ready")
    while True:
        try:
            kind, seed = pipe.recv()
        except EOFError:
            return
        faulthandler.dump_traceback_later(LIMIT - 1, file=errors)
        try:
            answer = attempt(kind, seed)
        except KeyboardInterrupt:
            raise
        except BaseException:  # SystemExit and the panics of libraries in Rust are not Exceptions
            answer = traceback.format_exc()
        faulthandler.cancel_dump_traceback_later()
        pipe.send(answer)


class Worker:
    """A process that tries inputs; a new one takes the place of one that hangs or dies."""

    def __init__(self) -> None:
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=_work, args=(other,), daemon=True)
        self._process.start()
        other.close()
        assert self._pipe.recv() == "ready"

    def attempt(self, kind: str, seed: int) -> str:
        """Return "taken", "refused" or what went wrong."""
        self._pipe.send((kind, seed))
        try:
            if self._pipe.poll(LIMIT):
                return str(self._pipe.recv())
            wrong = f"still running after {LIMIT} s"
        except (EOFError, ConnectionError):
            self._process.join()
            wrong = f"the process ended with {self._process.exitcode}"
        self.stop()
        self._start()
        return wrong

    def stop(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.join(1)  # unless it hangs, it ends by itself
        self._process.kill()
        self._process.join()
