import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.backends import __main__ as support
from pipeline.core import params
from pipeline.core.errors import UserError
from tests.conftest import ROOT, Project

TABLE = """\
| backend | activations | int8 | int6 | int5 | int4 | int3 | int2 | int1 | float8 | fp4 | nf4 |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
| bnb | none |  |  |  |  |  |  |  |  | group | group |
| bnb | dynamic | channel |  |  |  |  |  |  |  |  |  |
| ct2 | dynamic | channel |  |  |  |  |  |  |  |  |  |
| ggml | dynamic | group |  | group | group |  |  |  |  |  |  |
| gptq | none | group | group | group | group | group |  |  |  |  |  |
| hqq | none | channel, group |  |  | channel, group | channel, group | channel, group | channel, group |  |  |  |
| quanto | none | channel |  |  | group |  | group |  | channel |  |  |
| quanto | static | channel |  |  |  |  |  |  |  |  |  |
| torch | dynamic | tensor, channel |  |  |  |  |  |  |  |  |  |
| torch | static | tensor, channel |  |  |  |  |  |  |  |  |  |
| torchao | none | tensor, channel, group | channel, group | channel, group | group | channel, group | channel, group | channel, group | tensor, channel, group |  |  |
| torchao | dynamic | tensor, channel |  |  |  |  |  |  |  |  |  |
"""  # noqa: E501  # as it stands in the README


def run(*arguments: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "pipeline.backends", *arguments],
        cwd=folder,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_table_of_the_readme(tmp_path: Path) -> None:
    done = run(folder=tmp_path)  # needs no params.yaml
    assert (done.returncode, done.stdout, done.stderr) == (0, TABLE, "")


def test_params_yaml_asks_for_what_is_possible() -> None:
    support.check(params.read(ROOT))


def test_check_names_the_variant(tmp_project: Project) -> None:
    assert run("--check", folder=tmp_project.root).returncode == 0
    tmp_project.set(**{"variants__hqq-int4__activations": "static"})
    done = run("--check", folder=tmp_project.root)
    assert done.returncode == 1
    assert (done.stdout, done.stderr) == (
        "",
        "settings: variant 'hqq-int4': hqq: activations static is not possible: it is weight-only (choose none)\n",
    )


def test_check_looks_at_the_candidate_too(tmp_project: Project) -> None:
    tmp_project.set(bits=3)
    with pytest.raises(UserError) as error:
        support.check(params.read())
    assert str(error.value) == (
        "variant 'candidate': quanto: bits 3 is not possible with format int (choose 8, 4 or 2)"
    )


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"budget": 17.2},
            "quanto: a budget goes with backend 'mixed', which spends it; set it to null",
        ),
        (
            {"budget_mb": 50, "backend": "gptq"},
            "gptq: a budget goes with backend 'mixed', which spends it; set it to null",
        ),
        (
            {"backend": "mixed"},
            "mixed: budget and budget_mb are missing; give the checkpoint's size as one of them",
        ),
        (
            {"backend": "mixed", "budget_mb": 50, "bits": 4},
            "mixed: bits 4 is not possible: the budget decides (choose 8)",
        ),
        ({"encoder": 3}, "key 'encoder': quanto: bits 3 is not possible with format int (choose 8, 4 or 2)"),
        ({"backend": "gptq", "decoder": 2}, "key 'decoder': gptq: bits 2 is not possible (choose 8, 6, 5, 4 or 3)"),
        (
            {"backend": "gptq", "layers": ["*.fc1=4", "*.fc2=7"]},
            "layers '*.fc2=7': gptq: bits 7 is not possible (choose 8, 6, 5, 4 or 3)",
        ),
        (
            {"backend": "none", "bits": 16, "format": "float", "layers": ["*.fc1=8"]},
            "layers '*.fc1=8': none: bits 8 is not possible (choose 32 or 16)",
        ),
    ],
    ids=lambda x: "" if isinstance(x, str) else " ".join(f"{key}={value}" for key, value in x.items()),
)
def test_check_looks_at_budgets_and_at_the_bits_of_parts(
    changes: dict[str, Any], sentence: str, tmp_project: Project
) -> None:
    tmp_project.set(**changes)
    with pytest.raises(UserError) as error:
        support.check(params.read())
    assert str(error.value) == f"variant 'candidate': {sentence}"


@pytest.mark.parametrize(
    "changes",
    [
        {"backend": "gptq", "bits": 5, "embedding": 6},
        {"backend": "mixed", "budget_mb": 50},
        {"backend": "mixed", "budget": 17},
        {"encoder": 8, "decoder": 4, "layers": ["*.v_proj=2"], "embedding": 4, "conv": 8, "rest": "float32"},
    ],
    ids=lambda x: " ".join(f"{key}={value}" for key, value in x.items()),
)
def test_check_lets_through_what_is_possible(changes: dict[str, Any], tmp_project: Project) -> None:
    tmp_project.set(**changes)
    support.check(params.read())
