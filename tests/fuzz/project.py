"""The folder that an input is tried in: its settings, its files, and what may be in it afterwards."""

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.core.errors import UserError
from tests.conftest import encode, noise

FORM: dict[str, Any] = {
    **{"model": "toy", "corpus": "speech", "device": "cpu", "backend": "quanto"},
    "variants": {"fp32": {"backend": "none", "bits": 32, "format": "float"}},
    **{"decoding": {}, "latency": {}, "scoring": {"resamples": 1000}},
    "calibration": {"corpus": "other", "split": "train", "utterances": 1},
}
MODEL = {"source": "directory", "path": "checkpoint"}
SPEECH = {"source": "directory", "path": "speech", "splits": ["test"]}
SOUNDS = {kind: encode(noise(0.1), kind, subtype=of) for kind, of in (("FLAC", "PCM_16"), ("WAV", "PCM_16"))}
SOUNDS |= {kind: encode(noise(0.1), kind, subtype=of) for kind, of in (("MP3", "MPEG_LAYER_III"), ("OGG", "VORBIS"))}


def write(files: Mapping[str, bytes]) -> None:
    """Write files under the current folder."""
    for name, data in files.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(data)


def settings(speech: Mapping[str, Any] = SPEECH, model: Mapping[str, Any] = MODEL) -> None:
    """Write params.yaml and catalog.yaml."""
    other = {"source": "directory", "path": "other", "splits": ["train"]}
    catalog = {"models": {"toy": model}, "corpora": {"speech": speech, "other": other}}
    write({"params.yaml": json.dumps(FORM).encode(), "catalog.yaml": json.dumps(catalog).encode()})


@contextlib.contextmanager
def whole(*outputs: Path) -> Iterator[None]:
    """Put an old output in each place: after a refusal it is as it was, or gone, and nothing is left aside."""
    for output in outputs:
        (output / "old").mkdir(parents=True)
    try:
        yield
    except UserError:
        for output in outputs:
            assert [path.name for path in output.rglob("*")] in ([], ["old"]), f"{output} is half-written"
        raise
    finally:
        left = [path for path in Path().rglob(".*.partial") if "old" not in path.name]
        assert not left, f"{left} is left"
