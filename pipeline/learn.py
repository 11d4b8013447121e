"""Note what each backend learns from the calibration speech: other speech then reruns their variants alone."""

from pathlib import Path

from pipeline import backends
from pipeline.core import files, stage
from pipeline.core.variant import backend_names

LEARNED = Path("data/learned")


def main() -> None:
    """Write data/learned/: for each backend the digest of the file that it reads, or that it reads none."""
    with files.aside(LEARNED) as partial:
        partial.mkdir()
        for name in backend_names():
            lesson = backends.get(name).LEARNS
            file = Path(f"data/{lesson}.safetensors")
            (partial / name).write_text(f"{files.sha256(file)}  {file}\n" if lesson else "nothing\n")


if __name__ == "__main__":
    stage.run(main)
