from pathlib import Path

import pytest

from pipeline.core import outside
from tests.conftest import Project


def links() -> dict[str, str]:
    return {path.name: str(path.readlink()) for path in outside.LINKS.iterdir() if path.is_symlink()}


@pytest.mark.usefixtures("tmp_project")
def test_a_link_leads_to_the_folder_that_is_read_and_then_to_nothing(tmp_path: Path) -> None:
    outside.watch("model", tmp_path / "mine")
    outside.watch("corpus", None)
    assert links() == {"model": str(tmp_path / "mine"), "corpus": "nothing"}
    outside.watch("model", None)
    assert links() == {"model": "nothing", "corpus": "nothing"}
    assert (outside.LINKS / "model").is_file()
    assert sorted(path.name for path in outside.LINKS.iterdir()) == ["corpus", "model", "nothing"]


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
