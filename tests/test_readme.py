"""The README says what the code does."""

import re
from pathlib import Path

from pipeline.backends import __main__ as support
from pipeline.core import params
from pipeline.results import page

README = Path("README.md").read_text(encoding="utf-8")


def test_the_support_table_is_what_the_backends_say() -> None:
    assert support.table() in README


def test_the_headline_is_what_the_study_says() -> None:
    for command in re.findall(r"<!-- python -m pipeline.study --headline \S+ -->", README):
        folder = Path(command.split()[-2])
        assert f"{command}\n{page.headline(folder)}\n" in README


def test_every_file_that_is_linked_is_there() -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in link]
    assert links
    assert [link for link in links if not Path(link).exists()] == []


def test_commands_name_keys_that_exist() -> None:
    settings = params.read(Path("params.yaml"))
    keys = {assignment.split("=")[0] for assignment in re.findall(r"-S (\S+=\S+)", README)}
    assert keys
    known = {*vars(settings), *vars(settings.candidate)}
    known |= {f"calibration.{key}" for key in vars(settings.calibration)}
    known |= {f"corpora.{name}.limit" for name in settings.corpora}
    assert keys - known == set()
