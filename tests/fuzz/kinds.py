"""The kinds of input by name; the settings are two of them."""

import importlib
from collections.abc import Callable
from pathlib import Path
from random import Random

from pipeline import download, fetch
from pipeline.core import params
from pipeline.scoring import normalizers
from pipeline.whisper import BASELINE
from tests.conftest import ROOT
from tests.fuzz import models, reports, speech
from tests.fuzz.project import MODEL, SOUNDS, SPEECH, settings, whole, write
from tests.fuzz.spoil import VALUES, garble, spoil, text


def forms(draw: Random) -> None:
    """params.yaml and catalog.yaml."""
    from pydantic import TypeAdapter
    from ruamel.yaml import YAML

    written = {name: (ROOT / name).read_bytes() for name in ("params.yaml", "catalog.yaml")}
    name = draw.choice(list(written))
    spoiled = text(draw, spoil(draw, YAML(typ="safe").load(written[name])))
    write(written | {name: spoiled if draw.random() < 0.6 else garble(draw, written[name])})
    read = params.read()
    form = TypeAdapter(params.Params)
    assert form.validate_python(form.dump_python(read)) == read
    assert all(read.variant(name).bits >= 1 for name in read.names)


def paths(draw: Random) -> None:
    """Where a model and a corpus lie."""
    path = draw.choice(
        [str(value) for value in VALUES if value]
        + ["~", "~nobody/x", ".", "params.yaml", *["./speech/../speech", "checkpoint"] * 10]
    )
    split = draw.choice(("test", "test", "test", "x" * 300, "-"))
    settings(SPEECH | {"path": path, "splits": [split]}, MODEL | {"path": path})
    write({f"checkpoint/{name}": data for name, data in models.checkpoint().items()})
    write(
        {f"speech/{name}": data for name, data in speech.TREE.items()} | {"other/train/3/4/3-4-0.flac": SOUNDS["FLAC"]}
    )
    with whole(BASELINE, Path("data/raw/speech")):
        draw.choice((fetch.main, download.main))()


KINDS: dict[str, Callable[[Random], None]] = {
    kind.__name__: kind
    for kind in (
        *(forms, paths),
        *(speech.transcript, speech.sphinx, speech.tars, speech.wheel, speech.parquet, speech.sound),
        *(models.config, models.tensors, models.binary),
        *(reports.transcripts, reports.scores, reports.table, reports.listed),
    )
}


def warm_up() -> None:
    """Import what the stages import late: inputs would wait for it, and be blamed for its warnings."""
    late = ("datasets", "pyarrow.parquet", "tokenizers", "soxr", "pydantic", "pipeline.whisper.inference.decoding")
    for module in late:
        importlib.import_module(module)
    normalizers.get("english")
    models.checkpoint()
