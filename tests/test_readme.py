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


def test_the_headline_is_what_the_study_says() -> None:
    commands = re.findall(r"(<!-- python -m pipeline.study --headline (\S+)(?: --variants ([^>]+))? -->)", README)
    assert commands
    for command, folder, variants in commands:
        assert f"{command}\n{page.headline(ROOT / folder, variants.split())}\n" in README


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
