import shutil
from pathlib import Path

import pytest

from pipeline import learn, sensitivity
from pipeline.core import files
from pipeline.core.variant import backend_names
from pipeline.whisper.quantization import calibration
from pipeline.whisper.quantization import sensitivity as measured
from tests.conftest import Project


@pytest.fixture
def project(tmp_project: Project, calibrated: Path) -> Project:
    """Work in a project with what a toy hears in two utterances, and how much its text depends on each layer."""
    shutil.copytree(calibrated, tmp_project.root, dirs_exist_ok=True)
    sensitivity.main()
    return tmp_project


def learned() -> dict[str, str]:
    """Return what stands in data/learned, by backend."""
    learn.main()
    return {path.name: path.read_text() for path in sorted(learn.LEARNED.iterdir())}


@pytest.mark.usefixtures("project")
def test_each_backend_has_the_digest_of_what_it_reads_or_nothing() -> None:
    heard, layers = (f"{files.sha256(path)}  {path}\n" for path in (calibration.HEARD, measured.PATH))
    found = learned()
    assert [*found] == backend_names()
    assert found == dict.fromkeys(found, "nothing\n") | {
        "torch": heard,
        "quanto": heard,
        "gptq": layers,
        "mixed": layers,
    }
    assert learned() == found


@pytest.mark.usefixtures("project")
def test_other_speech_changes_what_backends_learn_of_it_alone() -> None:
    before = learned()
    features, tokens = next(calibration.read())
    calibration.write(["c-1"], [(-features, tokens)])
    after = learned()
    assert {name for name in after if after[name] != before[name]} == {"torch", "quanto"}
    sensitivity.main()
    after = learned()
    assert {name for name in after if after[name] != before[name]} == {"torch", "quanto", "gptq", "mixed"}


def test_a_backend_that_is_gone_leaves_nothing_behind(project: Project) -> None:
    learn.main()
    (project.root / "data/learned/gone").write_text("nothing\n")
    assert "gone" not in learned()
