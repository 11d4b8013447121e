"""Load checkpoints as `transcribe` does and write down their logits, in a process that never saw them made.

Usage: python -m tests.backends.reload TARGET.safetensors FOLDER...
"""

import sys
from pathlib import Path

from safetensors.torch import save_file

from pipeline import backends
from pipeline.core import manifest
from tests import toy

if __name__ == "__main__":
    target, *folders = map(Path, sys.argv[1:])
    logits = {}
    for folder in folders:
        backend = manifest.verify(folder)["variant"]["backend"]
        logits[folder.name] = toy.logits(backends.get(backend).load(folder, "cpu"))
    save_file(logits, target)
