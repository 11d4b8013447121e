import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.backends import __main__ as support
from pipeline.core import params
from pipeline.core.errors import UserError
from tests.conftest import ROOT, Project

TABLE = """\
| backend | activations | int8 | int4 | int3 | int2 | int1 | float8 | fp4 | nf4 |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
| bnb | none |  |  |  |  |  |  | group | group |
| bnb | dynamic | channel |  |  |  |  |  |  |  |
| hqq | none | channel, group | channel, group | channel, group | channel, group | channel, group |  |  |  |
| quanto | none | channel | group |  | group |  | channel |  |  |
| quanto | static | channel |  |  |  |  |  |  |  |
| torch | dynamic | tensor, channel |  |  |  |  |  |  |  |
| torch | static | tensor, channel |  |  |  |  |  |  |  |
"""


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
