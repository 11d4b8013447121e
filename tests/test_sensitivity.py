import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from pipeline import sensitivity
from pipeline.core.errors import UserError
from pipeline.results import charts, tables
from pipeline.whisper.model import weights
from pipeline.whisper.quantization import calibration, rounding
from pipeline.whisper.quantization import sensitivity as measured
from tests.conftest import Project


@pytest.fixture
def project(tmp_project: Project, calibrated: Path) -> Project:
    """Work in a project with a toy baseline and what it hears in two utterances to calibrate on."""
    shutil.copytree(calibrated, tmp_project.root, dirs_exist_ok=True)
    return tmp_project


def lines() -> list[dict[str, str]]:
    with tables.SENSITIVITY.open() as file:
        return list(csv.DictReader(file))


def test_every_layer_has_its_place_its_size_and_what_4_bits_would_do(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    sensitivity.main()
    assert capsys.readouterr().out == "data/sensitivity.safetensors: 33 layers, by 2 utterances\n"
    model = weights.load(project.root / "models/baseline")
    layers = measured.read(model)
    found = lines()
    assert [line["layer"] for line in found] == [
        name for name, module in model.named_modules() if isinstance(module, nn.Linear)
    ]
    for line in found:
        weight = model.get_parameter(f"{line['layer']}.weight")
        expected = layers[line["layer"]].divergence(rounding.nearest(weight, 4).weight() - weight)
        assert int(line["weights"]) == weight.numel()
        assert float(line["kl_4bit"]) == pytest.approx(expected, rel=1e-5)
        assert expected > 0
        assert len(line["kl_4bit"].partition("e")[0].replace(".", "").lstrip("0")) <= 6
    places = [tuple(line[column] for column in ("part", "number", "kind")) for line in found]
    assert places == [
        *(("encoder", number, kind) for number in "01" for kind in charts.KINDS if not kind.startswith("cross")),
        *(("decoder", number, kind) for number in "01" for kind in _as_in_the_decoder()),
        ("decoder", "", "head"),
    ]


def _as_in_the_decoder() -> list[str]:
    """The feed-forward network comes before the cross-attention in a checkpoint, though not in the heat map."""
    own, cross, feed = charts.KINDS[:4], charts.KINDS[4:8], charts.KINDS[8:]
    return [*own, *feed, *cross]


@pytest.mark.usefixtures("project")
def test_the_same_speech_gives_the_same_bytes() -> None:
    written = []
    for _ in range(2):
        sensitivity.main()
        written.append((measured.PATH.read_bytes(), tables.SENSITIVITY.read_bytes()))
        tables.SENSITIVITY.unlink()
    assert written[0] == written[1]


@pytest.mark.usefixtures("project")
def test_other_speech_gives_other_numbers() -> None:
    sensitivity.main()
    before = lines()
    features, tokens = next(calibration.read())
    calibration.write(["c-1"], [(-features, tokens)])
    sensitivity.main()
    assert {line["layer"]: line["kl_4bit"] for line in lines()} != {line["layer"]: line["kl_4bit"] for line in before}


@pytest.mark.usefixtures("project")
def test_the_table_can_be_read() -> None:
    sensitivity.main()
    table = tables.read(tables.SENSITIVITY)
    assert len(table) == 33
    assert table.number.isna().sum() == 1
    assert {str(table[column].dtype) for column in ("number", "weights", "kl_4bit")} == {"float64", "int64"}


def test_without_calibration_speech(project: Project) -> None:
    (project.root / "data/calibration.safetensors").unlink()
    with pytest.raises(UserError) as error:
        sensitivity.main()
    assert str(error.value) == "data/calibration.safetensors is not here; run 'python -m pipeline.calibrate' first"


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("model.encoder.layers.0.self_attn.q_proj", ["encoder", 0, "self q"]),
        ("model.encoder.layers.11.fc2", ["encoder", 11, "fc2"]),
        ("model.decoder.layers.3.self_attn.out_proj", ["decoder", 3, "self out"]),
        ("model.decoder.layers.3.encoder_attn.k_proj", ["decoder", 3, "cross k"]),
        ("proj_out", ["decoder", None, "head"]),
    ],
)
def test_places(name: str, place: list[Any]) -> None:
    assert json.dumps([*sensitivity.place(name).values()]) == json.dumps(place)
