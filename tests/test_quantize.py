import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from pipeline import backends, calibrate, quantize
from pipeline.core import manifest
from pipeline.core.errors import UserError
from tests import toy
from tests.conftest import ROOT, Project


@pytest.fixture
def project(tmp_project: Project, calibrated: Path) -> Project:
    """Work in a project with everything that quantizing and transcribing need."""
    shutil.copytree(calibrated, tmp_project.root, dirs_exist_ok=True)
    return tmp_project


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def refusal(variant: str) -> str:
    with pytest.raises(UserError) as error:
        quantize.main(variant)
    return str(error.value)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("fp32", "models/fp32: 0 layers quantized by none, 1.2 MB\n"),
        ("torch-int8-static", "models/torch-int8-static: 32 layers quantized by torch, 0.8 MB\n"),
        ("quanto-int8", "models/quanto-int8: 33 layers quantized by quanto, 0.8 MB\n"),
        ("hqq-int4", "models/hqq-int4: 32 layers quantized by hqq, 0.8 MB\n"),
        ("bnb-nf4-dq", "models/bnb-nf4-dq: 32 layers quantized by bnb, 0.7 MB\n"),
        ("candidate", "models/candidate: 32 layers quantized by quanto, 0.5 MB\n"),
    ],
)
def test_a_checkpoint_is_written_the_same_every_time(
    name: str, said: str, project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    quantize.main(name)
    assert capsys.readouterr().out == said
    folder = project.root / "models" / name
    first = contents(folder)
    manifest.verify(folder)
    quantize.main(name)
    assert contents(folder) == first
    assert sorted(file.name for file in folder.parent.iterdir()) == sorted(["baseline", name])


@pytest.mark.parametrize("name", ["torch-int8-static", "quanto-int8-static"])
def test_static_variants_record_what_calibrated_them(name: str, project: Project) -> None:
    quantize.main(name)
    assert manifest.verify(project.root / "models" / name)["calibration"] == ["c-1", "c-2"]


def test_other_variants_need_no_calibration_audio(project: Project) -> None:
    (project.root / "data/calibration.safetensors").unlink()
    quantize.main("torch-int8-dynamic")
    assert manifest.verify(project.root / "models/torch-int8-dynamic")["calibration"] == []
    assert refusal("torch-int8-static") == (
        "data/calibration.safetensors is not here; run 'python -m pipeline.calibrate' first"
    )


def test_the_calibration_audio_decides(project: Project) -> None:
    for seconds in ({"c-1": 0.5, "c-2": 0.75}, {"c-3": 3.0}):
        toy.speech(project.root / "data/calibration/00000.parquet", "train", seconds)
        calibrate.main()
        quantize.main("torch-int8-static")
        (project.root / "models/torch-int8-static").rename(project.root / "models" / str(len(seconds)))
    first, second = (manifest.verify(project.root / "models" / name) for name in ("2", "1"))
    assert (first["calibration"], second["calibration"]) == (["c-1", "c-2"], ["c-3"])
    assert first["files"]["model.safetensors"] != second["files"]["model.safetensors"]


def test_the_manifest_has_the_defaults_filled_in(project: Project) -> None:
    project.set(**{"variants__hqq-int4": {"backend": "hqq", "bits": 4}})
    quantize.main("hqq-int4")
    assert manifest.verify(project.root / "models/hqq-int4")["variant"] == {
        "backend": "hqq",
        "bits": 4,
        "format": "int",
        "activations": "none",
        "granularity": "group",
        "group_size": 64,
        "symmetric": False,
        "double_quant": False,
        "include": ["*"],
        "exclude": ["proj_out"],
        "encoder": None,
        "decoder": None,
        "layers": [],
        "embedding": None,
        "conv": None,
        "rest": "float16",
        "budget": None,
        "budget_mb": None,
    }


def test_an_unknown_variant(project: Project) -> None:  # noqa: ARG001 (the folder to work in)
    assert refusal("quanto-int88") == "unknown variant 'quanto-int88' (did you mean 'quanto-int8'?)"


def test_what_the_library_lacks_is_said_before_anything_is_loaded(tmp_project: Project) -> None:
    tmp_project.set(**{"variants__hqq-int4__activations": "static"})
    assert refusal("hqq-int4") == (
        "variant 'hqq-int4': hqq: activations static is not possible: it is weight-only (choose none)"
    )


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"exclude": ["proj_put"]},
            "variant 'hqq-int4': exclude: no Linear layer matches 'proj_put' (did you mean 'proj_out'?)",
        ),
        (
            {"group_size": 128},
            "variant 'hqq-int4': hqq: group_size 128 does not divide the 64 inputs of "
            "model.encoder.layers.0.self_attn.q_proj (choose 8, 16, 32 or 64, or put such layers in exclude)",
        ),
        (
            {"exclude": []},
            "variant 'hqq-int4': hqq: 4 bits do not pack the 261 groups of proj_out "
            "(choose 8 or 3 bits, or put it in exclude)",
        ),
    ],
)
def test_what_does_not_fit_the_model(changes: dict[str, object], sentence: str, project: Project) -> None:
    project.set(**{f"variants__hqq-int4__{key}": value for key, value in changes.items()})
    assert refusal("hqq-int4") == sentence
    assert [file.name for file in (project.root / "models").iterdir()] == ["baseline"]


def test_a_scale_that_is_not_finite_is_not_saved(project: Project) -> None:
    """Weights beyond float16 overflow in the library: the checkpoint is saved, loads, and says "!!!!"."""
    file = project.root / "models/baseline/model.safetensors"
    tensors = load_file(file)
    tensors["model.decoder.layers.0.fc2.weight"][5] *= 1e7
    save_file(tensors, file, {"format": "pt"})
    assert refusal("bnb-int8") == (
        "variant 'bnb-int8': model.decoder.layers.0.fc2.SCB has values that are not finite; "
        "put its layer in exclude, or choose a model without such weights"
    )
    assert [file.name for file in (project.root / "models").iterdir()] == ["baseline"]


def test_the_manifest_has_the_size_of_the_groups_that_were_made(project: Project) -> None:
    """The table says 128, and the library has chosen 64 for the model's width."""
    quantize.main("quanto-int4")
    assert manifest.verify(project.root / "models/quanto-int4")["variant"]["group_size"] == 64


def test_a_library_that_leaves_layers_out(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    hqq = backends.get("hqq")
    whole = hqq.quantize
    monkeypatch.setattr(hqq, "quantize", lambda model, layers, *rest: whole(model, layers[2:], *rest))
    assert refusal("hqq-int4") == (
        "variant 'hqq-int4': hqq left 2 of 32 layers as they were, the first is "
        "model.encoder.layers.0.self_attn.q_proj; put them in exclude"
    )
    assert [file.name for file in (project.root / "models").iterdir()] == ["baseline"]


def test_no_baseline(tmp_project: Project) -> None:  # noqa: ARG001 (the folder to work in)
    assert refusal("fp32") == "models/baseline holds no checkpoint: config.json is missing"


def test_the_command_says_one_line(project: Project) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.quantize", "fp23"],
        cwd=project.root,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "quantize: unknown variant 'fp23' (did you mean 'fp32'?)\n"
