"""The graph: its stages declare what they import, and whole DVC runs rerun what a change affects and nothing else."""

import ast
import csv
import json
import re
import shutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from tests.conftest import ROOT, Packages
from tests.study import VARIANTS, Study, ran

YAML_FILES = {name: YAML(typ="safe").load(ROOT / name) for name in ("dvc.yaml", "params.yaml")}
STAGES: dict[str, Any] = YAML_FILES["dvc.yaml"]["stages"]
PARAMS: dict[str, Any] = YAML_FILES["params.yaml"]


# What dvc.yaml says


def resolved() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield every stage's name, backend ("" where it has none, "*" for any) and entry, foreach stages by variant."""
    for name, entry in STAGES.items():
        if "foreach" in entry:
            assert entry["foreach"] == "${variants}"
            for key, variant in PARAMS["variants"].items():
                text = json.dumps(entry["do"]).replace("${key}", key).replace("${item.backend}", variant["backend"])
                yield f"{name}@{key}", variant["backend"], json.loads(text)
        else:
            yield name, "*" if name.endswith("_candidate") else "", entry


def module(stage: str) -> str:
    """Return the path of the module that a stage runs."""
    return f"pipeline/{stage.split('@')[0].removesuffix('_candidate')}.py"


@cache
def imports(file: str) -> frozenset[str]:
    """Return the files of the project that a file imports when it runs, those inside of functions included."""
    found: set[str] = set()

    def add(name: str) -> bool:
        path = name.replace(".", "/")
        hits = [hit for hit in (f"{path}.py", f"{path}/__init__.py") if (ROOT / hit).is_file()]
        found.update(hits)
        return bool(hits)

    def walk(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            children = node.orelse
        else:
            children = list(ast.iter_child_nodes(node))  # type: ignore[arg-type]
        if isinstance(node, ast.Import):
            for alias in node.names:
                add(alias.name)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: a relative import, which this test does not follow"
            add(str(node.module))
            for alias in node.names:
                add(f"{node.module}.{alias.name}")
        for child in children:
            walk(child)

    walk(ast.parse((ROOT / file).read_text(encoding="utf-8")))
    return frozenset(found - {"pipeline/__init__.py"})  # which is empty


def code(stage: str, backend: str) -> set[str]:
    """Return the files whose code a stage runs; `backends.get` imports the backend of the variant."""
    dynamic = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "pipeline" / "backends").glob("[!_]*.py")
        if backend in (path.stem, "*")
    }
    reached: set[str] = set()
    waiting = {module(stage)}
    while waiting:
        file = waiting.pop()
        reached.add(file)
        waiting |= imports(file) | (dynamic if file == "pipeline/backends/__init__.py" else set())
        waiting -= reached
    return reached


def test_imports_are_declared() -> None:
    """A module that a stage imports and does not declare could change without a rerun."""
    assert imports("pipeline/__init__.py") == set()  # all need it, none declares it: no result depends on it
    wrong = {}
    for stage, backend, entry in resolved():
        needed = code(stage, backend)
        declared = {dep for dep in entry["deps"] if dep.startswith("pipeline/")}
        covered = {file for file in needed for dep in declared if file == dep or file.startswith(f"{dep}/")}
        idle = {dep for dep in declared if not any(file == dep or file.startswith(f"{dep}/") for file in needed)}
        if needed - covered or idle:
            wrong[stage] = {"not declared": sorted(needed - covered), "not imported": sorted(idle)}
    assert wrong == {}


def test_walk_follows_what_a_run_imports() -> None:
    """Imports inside of functions count, those for type checkers do not."""
    assert imports("pipeline/transcribe.py") == {
        "pipeline/backends/__init__.py",
        "pipeline/checkpoint.py",
        "pipeline/corpus.py",
        "pipeline/decoding.py",
        "pipeline/errors.py",
        "pipeline/files.py",
        "pipeline/machine.py",
        "pipeline/params.py",
        "pipeline/pieces.py",
    }
    assert imports("pipeline/backends/none.py") == {
        "pipeline/backends/__init__.py",
        "pipeline/params.py",
        "pipeline/whisper.py",
    }


@pytest.mark.parametrize("stage", STAGES)
def test_stage_is_called_and_described_as_its_module_is(stage: str) -> None:
    """Stage name = module name = the first sentence of its docstring = what `dvc stage list` shows."""
    entry = STAGES[stage].get("do", STAGES[stage])
    variant = "candidate" if stage.endswith("_candidate") else "${key}" if "foreach" in STAGES[stage] else ""
    assert entry["cmd"] == f"python -m {module(stage).removesuffix('.py').replace('/', '.')} {variant}".strip()
    docstring = ast.get_docstring(ast.parse((ROOT / module(stage)).read_text(encoding="utf-8"))) or ""
    sentence = re.match(r".*?\.(?=\s|$)", docstring, re.DOTALL)
    assert sentence is not None
    assert entry["desc"] == sentence[0]


def test_every_parameter_belongs_to_a_stage() -> None:
    """A key that no stage declares would do nothing under `dvc exp run -S`."""
    declared = {param.split(".")[0] for _, _, entry in resolved() for param in entry.get("params", [])}
    assert sorted(PARAMS.keys() - declared) == []


# What DVC does


@pytest.fixture
def study(finished: Study, tmp_path: Path) -> Study:
    """Return a study that has run, to be changed."""
    return finished.copy(tmp_path / "study")


def table(study: Study) -> list[tuple[str, str]]:
    """Return variant and split of each row of results.csv."""
    return [(row["variant"], row["split"]) for row in csv.DictReader(study.read("reports/results.csv").splitlines())]


@pytest.mark.slow
def test_run_makes_every_result_and_a_second_one_nothing(study: Study) -> None:
    metrics = json.loads(study.read("reports/metrics.json"))
    assert sorted(metrics) == sorted([*VARIANTS, "candidate"])
    for variant in metrics.values():
        assert list(variant) == ["size_mb", "size_reduction", "test"]
        assert list(variant["test"]) == ["wer", "wer_low", "wer_high", "wer_delta", "wer_delta_low", "wer_delta_high"]
    assert sorted(table(study)) == sorted((name, "test") for name in metrics)
    assert study.left() == []
    again = study.did("dvc", "repro")
    assert ran(again) == []
    assert again.endswith("Data and pipelines are up to date.\n")
    assert study.did("dvc", "status") == "Data and pipelines are up to date.\n"
    assert study.did("git", "status", "--porcelain") == ""


@pytest.mark.slow
def test_experiment_on_the_candidate_runs_the_candidate_alone(study: Study) -> None:
    assert study.ran("exp", "run", "-S", "bits=4") == [
        "compare",
        "plot",
        "quantize_candidate",
        "score_candidate",
        "transcribe_candidate",
    ]
    diff = json.loads(study.did("dvc", "metrics", "diff", "--json"))["reports/metrics.json"]
    assert sorted(diff) == [
        "candidate.size_mb",
        "candidate.size_reduction",
        "candidate.test.wer",
        "candidate.test.wer_delta",
        "candidate.test.wer_delta_high",
        "candidate.test.wer_delta_low",
        "candidate.test.wer_high",
        "candidate.test.wer_low",
    ]
    assert diff["candidate.size_mb"]["new"] < diff["candidate.size_mb"]["old"]
    assert study.changed() == []


@pytest.mark.slow
def test_editing_a_variant_runs_that_variant_alone(study: Study) -> None:
    study.edit(lambda raw: raw["variants"]["hqq-int4"].update(group_size=32))
    assert study.ran("repro") == [
        "compare",
        "plot",
        "quantize@hqq-int4",
        "score@hqq-int4",
        "transcribe@hqq-int4",
    ]


@pytest.mark.slow
def test_editing_code_runs_what_imports_it(study: Study) -> None:
    """Scores are kept where the transcripts come out the same; the timings never do."""
    study.append("pipeline/plot.py", "# A remark\n")
    assert study.ran("repro") == ["plot"]
    study.append("pipeline/backends/hqq.py", "# A remark\n")
    assert study.ran("repro") == [
        "compare",
        "plot",
        "quantize@hqq-int4",
        "quantize_candidate",
        "transcribe@hqq-int4",
        "transcribe_candidate",
    ]


def downloaded(study: Study) -> dict[str, bytes]:
    """Return the files of data/raw."""
    return {path.name: path.read_bytes() for path in (study.root / "data" / "raw").rglob("*") if path.is_file()}


@pytest.mark.slow
def test_limit_prepares_again_what_is_there(study: Study) -> None:
    before = downloaded(study)
    study.edit(lambda raw: raw["corpora"]["noise"].update(limit=2))
    assert study.ran("repro", "prepare") == ["download", "prepare"]
    assert downloaded(study) == before
    variants = sorted(f"transcribe@{name}" for name in VARIANTS)
    assert study.changed() == [*variants, "transcribe_candidate", "transcribe_protocols"]


@pytest.mark.slow
def test_limit_downloads_nothing_again(study: Study, packages: Packages) -> None:
    """The index is out of reach here: what is there and verified is all that can be used."""
    sample = PARAMS["corpora"]["sample"]
    folder = study.root / "data" / "raw" / "sample"
    folder.mkdir()
    for file in packages("sample", sample["files"]):
        shutil.copy2(file, folder)

    def choose(raw: Any) -> None:
        raw["corpus"] = raw["calibration"]["corpus"] = "sample"
        raw["calibration"]["split"] = "cards"

    study.edit(choose)
    assert study.ran("repro", "prepare") == ["download", "prepare"]
    study.edit(lambda raw: raw["corpora"]["sample"].update(limit=2))
    again = study.did("dvc", "repro", "prepare")
    assert ran(again) == ["download", "prepare"]
    assert f"kept data/raw/sample/{next(iter(sample['files']))}" in again
    assert "data/corpus/librivox: 2 utterances" in again


@pytest.mark.slow
def test_variants_come_and_go(study: Study, tmp_path: Path) -> None:
    study.edit(lambda raw: raw["variants"].pop("torch-int8-static"))
    assert study.ran("repro") == ["compare", "plot"]
    names = ["candidate", "fp32", "hqq-int4", "torch-int8-dynamic"]
    assert sorted(json.loads(study.read("reports/metrics.json"))) == names
    assert sorted(table(study)) == [(name, "test") for name in names]

    # Somebody who clones it, and never had the dropped variant, finds dvc.lock in step.
    study.commit("Drop a variant")
    study.did("git", "clone", "--quiet", ".", str(tmp_path / "clone"))
    clone = Study(tmp_path / "clone")
    clone.did("dvc", "config", "--local", "cache.dir", str(study.root / ".dvc" / "cache"))
    assert clone.ran("repro", "--dry", "--allow-missing") == []
    clone.did("dvc", "checkout")
    assert clone.changed() == []

    def add(raw: Any) -> None:
        raw["variants"]["tensor"] = raw["variants"]["torch-int8-dynamic"] | {"granularity": "tensor"}
        raw["variants"]["torch-int8-static"] = PARAMS["variants"]["torch-int8-static"]  # all of it is in the cache

    study.edit(add)
    assert study.ran("repro") == ["compare", "plot", "quantize@tensor", "score@tensor", "transcribe@tensor"]
    names = ["candidate", "fp32", "hqq-int4", "tensor", "torch-int8-dynamic", "torch-int8-static"]
    assert sorted(json.loads(study.read("reports/metrics.json"))) == names
    assert sorted(table(study)) == [(name, "test") for name in names]


@pytest.mark.slow
def test_adding_a_source_runs_nothing_after_it(study: Study) -> None:
    def add(raw: Any) -> None:
        raw["models"]["other"] = raw["models"]["toy"] | {"path": "nowhere"}
        raw["corpora"]["other"] = raw["corpora"]["noise"] | {"path": "nowhere"}

    study.edit(add)
    assert study.ran("repro") == ["download", "fetch"]
    assert study.changed() == []
