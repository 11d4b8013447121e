"""A full disk: one sentence, nothing half-written, and the next run goes on."""

import hashlib
import shutil
import warnings
from pathlib import Path

import pytest

from tests.study import Study

FULL_DISK = """
mount -t tmpfs -o size=64m none disk && mkdir disk/study && cp -a study/. disk/study && cd disk/study || exit 77
export PYTHONDONTWRITEBYTECODE=1
with_room() {
    head -c 64M /dev/zero > ballast 2> /dev/null
    truncate --size=-$1K ballast
    shift
    "$@" 2>&1
    echo "exit $?"
    rm ballast
}
compare() {
    echo "watch: []" > outside/watch.yaml  # else one stage always is to run
    dvc status --quiet && echo as before
}
"""
"""Work on a disk of its own; with_room KILOBYTES COMMAND... runs a command when so much is free for its own files."""


def full_disk(study: Study, folder: Path, script: str) -> list[str]:
    """Return what a shell script says on a small disk with a copy of `study`."""
    if not shutil.which("unshare"):
        _skip("unshare is not here (it comes with Linux)")
    (folder / "disk").mkdir()
    (folder / "study").symlink_to(study.root)
    done = Study(folder).run("unshare", "--map-root-user", "--mount", "sh", "-c", FULL_DISK + script)
    if done.returncode == 77 or done.stdout.startswith("unshare:"):
        _skip(f"no disk can be mounted here: {done.stdout.strip()}")
    assert "Traceback" not in done.stdout
    return done.stdout.splitlines()


def _skip(reason: str) -> None:
    warnings.warn(f"skipped: {reason}", stacklevel=3)
    pytest.skip(reason)


def sentence(stage: str, where: str) -> str:
    return f"{stage}: the disk is full while writing {where}: free some space and run it again"


@pytest.mark.slow
def test_quantize(finished: Study, tmp_path: Path) -> None:
    script = """
    rm -r models/fp32
    with_room 0 python -m pipeline.quantize fp32
    with_room 300 python -m pipeline.quantize fp32
    ls -A models | tr "\\n" " "
    echo
    python -m pipeline.quantize fp32
    compare
    """
    assert full_disk(finished, tmp_path, script) == [
        sentence("quantize", "models/.fp32.partial/config.json"),
        "exit 1",
        sentence("quantize", "the project's folder"),
        "exit 1",
        "baseline candidate hqq-int4 torch-int8-dynamic torch-int8-static ",
        "models/fp32: 0 layers quantized by none, 1.2 MB",
        "as before",
    ]


@pytest.mark.slow
def test_download(finished: Study, tmp_path: Path) -> None:
    script = """
    rm -r data/raw
    with_room 0 python -m pipeline.download
    with_room 16 python -m pipeline.download
    find data/raw -type f
    python -m pipeline.download
    find data/raw -type f | sort
    compare
    """
    assert full_disk(finished, tmp_path, script) == [
        sentence("download", "data/raw/noise/test.tar"),
        "exit 1",
        sentence("download", "data/raw/noise/test.tar"),
        "exit 1",
        "data/raw/noise/dev.tar",
        "data/raw/noise/test.tar",
        "as before",
    ]


@pytest.mark.slow
def test_bytecode_that_python_could_not_write(finished: Study, tmp_path: Path) -> None:
    """What a clone or an edit leaves to do: Python 3.11 keeps half a file of it, which no later run could read."""
    script = """
    rm -r data/raw
    unset PYTHONDONTWRITEBYTECODE
    for room in 8 16; do
        find pipeline -name __pycache__ | xargs rm -rf
        with_room $room python -m pipeline.download
        with_room $room python -m pipeline.backends --check
    done
    python -m pipeline.backends --check
    python -m pipeline.download
    compare
    """
    full = [sentence("download", "data/raw/noise/test.tar"), "exit 1", "exit 0"]
    assert full_disk(finished, tmp_path, script) == [*full * 2, "as before"]


@pytest.mark.slow
def test_agree(finished: Study, tmp_path: Path) -> None:
    script = """
    rm reports/agreement/fp32.json data/heard/fp32.jsonl
    with_room 0 python -m pipeline.agree fp32
    with_room 8 python -m pipeline.agree fp32
    ls -A reports/agreement | tr "\\n" " "
    echo
    python -m pipeline.agree fp32 > /dev/null
    python -m pipeline.compare
    ls -A reports/agreement | tr "\\n" " "
    echo
    sha256sum < data/heard/fp32.jsonl
    """
    heard = (finished.root / "data/heard/fp32.jsonl").read_bytes()
    pieces = "reports/agreement/.fp32.json.pieces"
    assert full_disk(finished, tmp_path, script) == [
        sentence("agree", f"{pieces}/key.json"),
        "exit 1",
        sentence("agree", "data/heard/fp32.jsonl"),
        "exit 1",
        ".fp32.json.pieces candidate.json hqq-int4.json torch-int8-dynamic.json torch-int8-static.json ",
        "candidate.json fp32.json hqq-int4.json torch-int8-dynamic.json torch-int8-static.json ",
        f"{hashlib.sha256(heard).hexdigest()}  -",
    ]
