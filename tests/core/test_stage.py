import contextlib
import errno
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.core import stage
from pipeline.core.errors import UserError
from tests.conftest import ROOT, encode, noise


@pytest.mark.parametrize(
    ("error", "status", "sentence"),
    [
        (UserError("variant 'x': unknown"), 1, "score: variant 'x': unknown\n"),
        (KeyboardInterrupt(), 130, "score: interrupted; run it again to go on\n"),
        (
            OSError(errno.ENOSPC, "No space left on device", "models/base"),
            1,
            "score: the disk is full while writing models/base: free some space and run it again\n",
        ),
        (
            RuntimeError("No space left on device"),
            1,
            "score: the disk is full while writing the project's folder: free some space and run it again\n",
        ),
    ],
)
def test_a_stage_ends_with_one_line(
    error: BaseException, status: int, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended, stage.guarded("score"):
        raise error
    assert (ended.value.code, *capsys.readouterr()) == (status, "", sentence)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_are_interruptions(number: signal.Signals, capsys: pytest.CaptureFixture[str]) -> None:
    signal.signal(number, signal.SIG_DFL)  # where tests run in the background it is ignored
    with pytest.raises(SystemExit) as ended, stage.guarded("score"):
        os.kill(os.getpid(), number)
    assert (ended.value.code, capsys.readouterr().err) == (130, "score: interrupted; run it again to go on\n")


DECODE = """
import sys
from pathlib import Path
from pipeline.core import stage
from pipeline.speech.sources import audio
data = Path(sys.argv[1]).read_bytes()
with stage.guarded("prepare"):
    print("ready", flush=True)
    while True:
        audio.check("an utterance", data)
"""


@pytest.mark.parametrize("after", [0.1, 0.13, 0.17, 0.2, 0.25])
def test_an_interruption_is_not_lost_while_audio_is_decoded(after: float, tmp_path: Path) -> None:
    """The library that decodes calls back into Python, where an exception would be printed and forgotten."""
    (tmp_path / "long.flac").write_bytes(encode(noise(20)))
    command = [sys.executable, "-c", DECODE, str(tmp_path / "long.flac")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(after)
        process.send_signal(signal.SIGTERM)
        try:
            _, said = process.communicate(timeout=5)
        finally:
            process.kill()
    assert (process.returncode, said) == (130, "prepare: interrupted; run it again to go on\n")


IMPORT = """
import time
try:
    print("ready", flush=True)
    time.sleep(60)
except Exception:
    print("went on", flush=True)
"""


def test_an_interruption_is_not_lost_where_nobody_listens_any_more(tmp_path: Path) -> None:
    """As when jobs are killed: many a library goes on after whatever goes wrong while it imports another."""
    (tmp_path / "library.py").write_text(IMPORT)
    code = "from pipeline.core import stage\nwith stage.guarded('score'):\n    import library"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path)])}
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "ready\n"
        process.stderr.close()
        process.send_signal(signal.SIGTERM)
        try:
            assert process.wait(timeout=5) == 130
        finally:
            process.kill()
        assert process.stdout.read() == ""


STAGE = """
import time
from pipeline.core import stage
with stage.guarded("score"):
    print("ready", flush=True)
    time.sleep(60)
"""

DVC = """
import os, subprocess, sys
subprocess.run([sys.argv[1], "-c", sys.argv[2]], env=os.environ | {"DVC_STAGE": "score@fp32"})
"""


@pytest.mark.parametrize("shell", ["bash", "sh"])
@pytest.mark.parametrize("rest", ["", "; true"])
def test_a_stage_ends_with_the_dvc_that_started_it(shell: str, rest: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether the shell has become the stage, or waits for it as dash does, and bash where more follows."""
    monkeypatch.setenv("DVC_STAGE", "tests")  # where somebody's DVC runs ours
    stage = shlex.join([sys.executable, "-c", STAGE]) + rest
    command = [sys.executable, "-c", DVC, shell, stage]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, start_new_session=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.kill()
        try:
            _, said = process.communicate(timeout=5)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    assert said == "score: interrupted; run it again to go on\n"


def test_a_stage_of_jobs_that_are_gone_does_not_begin(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        pass
    monkeypatch.setenv("DVC_STAGE", "score@fp32")
    monkeypatch.setenv(stage.JOBS_PID, str(gone.pid))
    with pytest.raises(SystemExit) as ended, stage.guarded("score"):
        pytest.fail("it has begun")
    assert (ended.value.code, capsys.readouterr().err) == (130, "score: interrupted; run it again to go on\n")


def test_nohup_is_minded() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stage.guarded("score"):
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_bug_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError), stage.guarded("score"):
        print(1 / 0)


def test_a_stage_without_errors_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with stage.guarded("score"):
        pass
    assert capsys.readouterr() == ("", "")


def command(*words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-m", *words], capture_output=True, text=True, cwd=ROOT, check=False)


def test_the_docstrings_are_the_help() -> None:
    told = command("pipeline.quantize", "--help")
    assert (told.returncode, told.stderr) == (0, "")
    assert told.stdout.startswith("usage: python -m pipeline.quantize [-h] variant\n")
    assert "Quantize the baseline as one variant says, and save the checkpoint." in told.stdout
    assert "a key of `variants` in params.yaml, or `candidate`" in told.stdout


def test_an_argument_that_is_missing_or_of_another_kind_is_refused() -> None:
    missing = command("pipeline.score")
    assert (missing.returncode, missing.stdout) == (2, "")
    assert missing.stderr.endswith("error: the following arguments are required: variant\n")
    wrong = command("pipeline.core.jobs", "many")
    assert wrong.returncode == 2
    assert wrong.stderr.endswith("error: argument jobs: invalid int value: 'many'\n")
