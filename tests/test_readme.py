"""README, CONTRIBUTING and docs say what the code does."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.core import params
from pipeline.results import page
from tests.conftest import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
README = PAGES[0].read_text(encoding="utf-8")


def test_the_support_table_is_what_the_backends_say() -> None:
    told = subprocess.run(
        [sys.executable, "-m", "pipeline.backends"], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert f"<!-- python -m pipeline.backends -->\n{told.stdout}" in README


def test_the_graph_is_dvcs() -> None:
    command = ["dvc", "dag", "--collapse-foreach-matrix", "--md"]
    drawn = subprocess.run(
        [sys.executable, "-m", *command], capture_output=True, text=True, cwd=ROOT, check=True
    ).stdout.replace("\t", "  ")
    assert f"<!-- {' '.join(command)} -->\n{drawn}" in README


def test_the_answer_is_what_the_study_says() -> None:
    """README opens with it: its sentence, its table of six rows at most, and its figure."""
    opening, _, rest = README.partition("## Two commands")
    ((command, folder),) = re.findall(r"(<!-- python -m pipeline.study --answer (\S+) -->)", opening)
    said = page.answer(ROOT / folder)
    assert f"{command}\n{said}\n" in opening
    assert len(said.splitlines()) <= 1 + 1 + 2 + 6
    assert f"]({folder}/figures/answer.svg)" in opening
    assert "--answer" not in rest


@pytest.mark.parametrize("file", PAGES, ids=lambda file: file.name)
def test_every_file_that_is_linked_is_there(file: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", file.read_text(encoding="utf-8"))
    assert [link for link in links if "://" not in link and not (file.parent / link).exists()] == []


@pytest.mark.parametrize("file", PAGES, ids=lambda file: file.name)
def test_commands_name_keys_and_modules_that_exist(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    settings = params.read(ROOT)
    known = {*vars(settings)}
    for section in ("calibration", "decoding", "scoring"):
        known |= {f"{section}.{key}" for key in vars(getattr(settings, section))}
    known |= {f"catalog.yaml:corpora.{name}.{key}" for name in settings.corpora for key in vars(settings.corpora[name])}
    keys = {assignment.split("=")[0] for assignment in re.findall(r"-S ([\w.:-]+=\S+)", text)}
    assert keys - known == set()
    modules = {
        name.rstrip(".").replace(".", "/")
        for name in re.findall(r"python -m ((?:pipeline|benchmarks|tests)[\w.]*)", text)
    }
    assert [
        name for name in modules if not ((ROOT / f"{name}.py").exists() or (ROOT / name / "__main__.py").exists())
    ] == []


def test_a_newcomer_reads_the_beginning_in_two_minutes() -> None:
    assert README.splitlines().index("## How it works") <= 120
