"""Git and DVC, run in the project's folder: what they say, for the caller to judge."""

import subprocess
import sys

Done = subprocess.CompletedProcess[str]


def git(*words: str) -> Done:
    """Run git; raise OSError where there is none."""
    return subprocess.run(["git", *words], capture_output=True, text=True, check=False)  # noqa: S607  # git is wherever the PATH says


def dvc(*words: str) -> Done:
    """Run the DVC that is installed beside this Python."""
    return subprocess.run([sys.executable, "-m", "dvc", *words], capture_output=True, text=True, check=False)
