import os
from pathlib import Path

import pytest

from pipeline.core import outside, params
from tests.conftest import Project


@pytest.mark.usefixtures("tmp_project")
def test_what_is_noted_is_watched() -> None:
    outside.note("corpus", "abc")
    outside.note("model", "def")
    outside.note("calibration", None)
    assert Path("outside/watch.yaml").read_text() == "watch: [model, corpus]\n"
    assert Path("outside/model.json").read_text() == '"def"\n'
    outside.note("model", None)
    assert Path("outside/watch.yaml").read_text() == "watch: [corpus]\n"
    assert Path("outside/model.json").read_text() == "null\n"


def test_the_state_is_of_names_sizes_and_times(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    for name in ("a", "b", "deep/c"):
        (tmp_path / name).write_text(name)
    first = {name: outside.state(name, [tmp_path]) for name in ("model", "corpus")}
    assert {name: outside.state(name, [tmp_path]) for name in ("model", "corpus")} == first
    assert outside.state("model", []) is None
    os.utime(tmp_path / "deep/c", (1, 1))
    assert outside.state("model", [tmp_path]) == first["model"]  # whose folders within are not read
    assert outside.state("corpus", [tmp_path]) != first["corpus"]
    for change in (lambda: os.utime(tmp_path / "a", (1, 1)), lambda: (tmp_path / "b").rename(tmp_path / "d")):
        before = outside.state("model", [tmp_path])
        change()
        assert outside.state("model", [tmp_path]) != before
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    Path(os.fsdecode(bytes(tmp_path) + b"/\xff")).touch()
    assert outside.state("model", [tmp_path])


@pytest.mark.parametrize(("calibration", "expected"), [("subset", ["/x/dev"]), ("sample", [])])
def test_what_is_read_from_folders(calibration: str, expected: list[str], tmp_project: Project) -> None:
    tmp_project.set(model="mine", models__mine={"source": "directory", "path": "/m"}, corpus="subset")
    tmp_project.set(corpora__subset={"source": "directory", "path": "/x", "splits": ["a", "b"]})
    split = "dev" if calibration == "subset" else "cards"
    tmp_project.set(calibration__corpus=calibration, calibration__split=split)
    settings = params.read()
    assert [[str(folder) for folder in outside.read(settings, name)] for name in outside.NAMES] == [
        ["/m"],
        ["/x/a", "/x/b"],
        expected,
    ]
    tmp_project.set(model="tiny-en", corpus="sample")
    if calibration == "sample":
        assert [outside.read(params.read(), name) for name in outside.NAMES] == [[], [], []]


@pytest.mark.parametrize("copy", [".", ".dvc/tmp/exps/standalone/tmp1a2b", ".dvc/tmp/exps/tmp3c4d"])
def test_relative_paths_are_seen_from_the_project(
    copy: str, tmp_project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relative path in a copy of the project: what `dvc exp run --temp` and `--queue` work in."""
    (tmp_project.root / copy).mkdir(parents=True, exist_ok=True)
    monkeypatch.chdir(tmp_project.root / copy)
    monkeypatch.setenv("HOME", "/home/me")
    assert outside.locate("../mine") == tmp_project.root.parent / "mine"
    assert outside.locate("speech/own") == tmp_project.root / "speech/own"
    assert outside.locate("/data/mine") == Path("/data/mine")
    assert outside.locate("~/mine") == Path("/home/me/mine")
    assert outside.locate("~nobody-here/mine") == tmp_project.root / "~nobody-here/mine"
