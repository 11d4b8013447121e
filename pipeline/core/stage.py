"""The frame every stage runs in: its command line, and one line and a non-zero exit for whatever ends it early.

A stage also ends with the DVC that started it: the next run would otherwise write the same files at the same time.
"""

import argparse
import contextlib
import functools
import inspect
import os
import select
import signal
import sys
import threading
import types
from collections.abc import Callable, Iterator
from pathlib import Path

from pipeline.core.errors import UserError, is_disk_full

JOBS_PID = "WHISPER_PTQ_JOBS_PID"
"""The process that runs several DVCs at once, if one does (`jobs`)."""

_HELP = {
    "variant": "a key of `variants` in params.yaml, or `candidate`",
    "jobs": "how many run at once",
    "name": "model, corpus or calibration",
}


def run(main: Callable[..., None]) -> None:
    """Run the module that Python was started with: its docstring is its --help, its `main` has its arguments."""
    module = sys.modules["__main__"]
    assert module.__spec__ is not None
    path = module.__spec__.name.removesuffix(".__main__")  # a package is called by its own name
    parser = argparse.ArgumentParser(prog=f"python -m {path}", description=module.__doc__)
    for name, parameter in inspect.signature(main).parameters.items():
        parser.add_argument(name, type=parameter.annotation, help=_HELP[name])
    arguments = vars(parser.parse_args())
    with guarded(path.rpartition(".")[2]):
        main(**arguments)


@contextlib.contextmanager
def guarded(name: str) -> Iterator[None]:
    """Turn a user's mistake, a full disk and an interruption (Ctrl-C, `kill`, the terminal's end) into one line.

    Everything else is a bug and keeps its traceback.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup ignores the end of the terminal
            signal.signal(number, functools.partial(_interrupt, name))
    try:
        if "DVC_STAGE" in os.environ:
            _end_with_parents()
        yield
    except KeyboardInterrupt:
        sys.exit(_interrupted(name))
    except UserError as error:
        sys.exit(_say(name, str(error), 1))
    except Exception as error:
        if not is_disk_full(error):
            raise
        # A failed copy names its source first.
        where = getattr(error, "filename2", None) or getattr(error, "filename", None) or "the project's folder"
        sys.exit(_say(name, f"the disk is full while writing {where}: free some space and run it again", 1))


def _interrupt(name: str, _: int, frame: types.FrameType | None) -> None:
    while frame:
        # An exception in the middle of an import aborts libraries written in C++; one in soundfile's callbacks, which
        # its C library calls, is lost.
        code = frame.f_code.co_filename
        if code.startswith("<frozen importlib") or code.endswith("soundfile.py"):
            os._exit(_interrupted(name))
        frame = frame.f_back
    raise KeyboardInterrupt


def _interrupted(name: str) -> int:
    return _say(name, "interrupted; run it again to go on", 130)


def _end_with_parents() -> None:
    """Send SIGTERM to this process when DVC is killed, or when the jobs are that DVC is one of (Linux)."""
    try:
        parents = [_dvc(), int(os.environ[JOBS_PID])] if JOBS_PID in os.environ else [_dvc()]
        ends = [os.pidfd_open(pid) for pid in parents]
    except ProcessLookupError:  # gone already
        raise KeyboardInterrupt from None
    except (OSError, AttributeError):
        return

    def wait() -> None:
        select.select(ends, [], [])
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()


def _dvc() -> int:
    """Return DVC's process ID: the first process above that has not been told the stage's name, as shells have."""
    told = f"\0DVC_STAGE={os.environ['DVC_STAGE']}\0".encode()
    pid = os.getppid()
    while told in b"\0" + Path(f"/proc/{pid}/environ").read_bytes():
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])  # its parent
    return pid


def _say(name: str, sentence: str, status: int) -> int:
    with contextlib.suppress(OSError):  # whoever listened may be gone: that must not take the end's place
        print(f"{name}: {sentence}", file=sys.stderr, flush=True)
    return status
