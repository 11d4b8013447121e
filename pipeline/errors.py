"""One error for the mistakes a user can mend, and the frame every stage runs in."""

import contextlib
import difflib
import errno
import functools
import os
import select
import signal
import sys
import threading
import types
from collections.abc import Iterable, Iterator
from pathlib import Path

JOBS_PID = "WHISPER_PTQ_JOBS_PID"
"""The process that runs several DVCs at once, if one does (`jobs`)."""


class UserError(Exception):
    """A mistake the user can mend: the message is one sentence naming the thing, the value and the way out."""


def suggestion(word: object, known: Iterable[str]) -> str:
    """Return " (did you mean 'x'?)" for the closest known word, else " (known: a, b)"."""
    known = sorted(known)
    close = difflib.get_close_matches(str(word), known, n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else f" (known: {', '.join(known)})"


def is_disk_full(error: BaseException) -> bool:
    """Tell whether `error` means a full disk; safetensors and pyarrow wrap the errno in text."""
    code = getattr(error, "errno", None)
    return code in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in str(error)


@contextlib.contextmanager
def stage(name: str) -> Iterator[None]:
    """Run a stage's `main`: a user's mistake, a full disk and an interruption become one line and a non-zero exit.

    Interruptions are Ctrl-C, `kill` and the end of the terminal.

    Everything else is a bug and keeps its traceback.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup wants it
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
        # An exception in the middle of an import makes libraries written in C++ abort; in soundfile's callbacks, which
        # its C library calls, it is lost.
        code = frame.f_code.co_filename
        if code.startswith("<frozen importlib") or code.endswith("soundfile.py"):
            os._exit(_interrupted(name))
        frame = frame.f_back
    raise KeyboardInterrupt


def _interrupted(name: str) -> int:
    return _say(name, "interrupted; run it again to go on", 130)


def _end_with_parents() -> None:
    """Send a SIGTERM here when DVC is killed, or the jobs that DVC is one of (Linux).

    Their next run would write the same files as this stage does.
    """
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
    """Return the process ID of DVC, which is the first one above that has not been told the stage's name.

    The shell that DVC runs a stage in may stand between the two: dash and fish wait, bash becomes the stage.
    """
    told = f"\0DVC_STAGE={os.environ['DVC_STAGE']}\0".encode()
    pid = os.getppid()
    while told in b"\0" + Path(f"/proc/{pid}/environ").read_bytes():
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])  # its parent
    return pid


def _say(name: str, sentence: str, status: int) -> int:
    print(f"{name}: {sentence}", file=sys.stderr, flush=True)
    return status
