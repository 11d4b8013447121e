"""The graph: its stages declare what decides their output, and whole DVC runs rerun what a change affects."""

import ast
import csv
import json
import re
import shlex
import shutil
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from pipeline.core import outside
from tests import toy
from tests.conftest import ROOT, Packages, encode, noise
from tests.study import VARIANTS, Study, ran

FILES = {name: YAML(typ="safe").load(ROOT / name) for name in ("dvc.yaml", "params.yaml", "catalog.yaml")}
STAGES: dict[str, Any] = FILES["dvc.yaml"]["stages"]
PARAMS: dict[str, Any] = FILES["params.yaml"]
CATALOG: dict[str, Any] = FILES["catalog.yaml"]

MAY_IMPORT = {
    "stages": {"backends", "whisper", "speech", "results", "scoring", "core"},
    "backends": {"whisper", "core"},
    "whisper": {"speech", "core"},
    "speech": {"core"},
    "results": {"scoring", "core"},
    "scoring": {"core"},
    "core": set[str](),
}
"""The rooms, and which others each may know: data flows one way."""


# What the code imports


def room(file: str) -> str:
    """Return the room of pipeline/ that a file is in; whisper_ptq.py stands beside the stages."""
    _, *rest = file.split("/")
    return rest[0] if len(rest) > 1 else "stages"


MAKING, USING = frozenset({"quantize", "save", "measure"}), frozenset({"load", "Engine"})
"""What of a backend runs in the stage quantize alone, and what runs in other stages alone."""


@cache
def imports(file: str, idle: frozenset[str] = frozenset()) -> frozenset[str]:
    """Return the files of the project that a file imports when it runs, those inside of functions included.

    Those inside of functions and classes that are `idle` are not.
    """
    found: set[str] = set()

    def add(name: str) -> bool:
        path = name.replace(".", "/")
        hits = [hit for hit in (f"{path}.py", f"{path}/__init__.py") if (ROOT / hit).is_file()]
        found.update(hits)
        return bool(hits)

    def walk(node: ast.AST) -> None:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name in idle:
            return
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            children = node.orelse
        else:
            children = list(ast.iter_child_nodes(node))  # type: ignore[arg-type]
        if isinstance(node, ast.Import):
            for alias in node.names:
                add(alias.name)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: a relative import, which this test does not follow"
            modules = [add(f"{node.module}.{alias.name}") for alias in node.names]
            if not all(modules):
                add(str(node.module))
        for child in children:
            walk(child)

    walk(ast.parse((ROOT / file).read_text(encoding="utf-8")))
    return frozenset(found - {"pipeline/__init__.py"})


MODULES = ["whisper_ptq.py", *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "pipeline").rglob("*.py"))]


def test_walk_follows_what_a_run_imports() -> None:
    """Imports inside of functions count, those for type checkers do not."""
    assert imports("pipeline/calibrate.py") == {
        "pipeline/core/params.py",
        "pipeline/core/stage.py",
        "pipeline/speech/corpus.py",
        "pipeline/whisper/__init__.py",
        "pipeline/whisper/quantization/calibration.py",
        "pipeline/whisper/inference/decoding.py",
        "pipeline/whisper/model/weights.py",
    }


def test_no_arrow_runs_back() -> None:
    """A room knows only those that data comes from; stages know all, and nothing knows a stage."""
    wrong = [
        f"{file} imports {other}"
        for file in MODULES
        for other in imports(file)
        if room(other) not in MAY_IMPORT[room(file)] | {room(file)}
    ]
    assert wrong == []


def test_no_module_imports_itself_by_way_of_others() -> None:
    def path_back(file: str, trail: tuple[str, ...]) -> tuple[str, ...] | None:
        if file in trail:
            return (*trail[trail.index(file) :], file)
        if file in done:
            return None
        found = next(filter(None, (path_back(other, (*trail, file)) for other in sorted(imports(file)))), None)
        done.add(file)
        return found

    done: set[str] = set()
    assert [cycle for file in MODULES if (cycle := path_back(file, ()))] == []


# What dvc.yaml says


def resolved() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield every stage's name, backend ("" where it has none) and entry, foreach stages by variant."""
    for name, entry in STAGES.items():
        if entry.get("foreach") == "${watch}":
            for item in outside.NAMES:
                yield f"{name}@{item}", "", json.loads(json.dumps(entry["do"]).replace("${item}", item))
        elif "foreach" in entry:
            assert entry["foreach"] == "${variants}"
            for key, variant in PARAMS["variants"].items():
                text = json.dumps(entry["do"]).replace("${key}", key).replace("${item.backend}", variant["backend"])
                yield f"{name}@{key}", variant["backend"] * ("backends/" in text), json.loads(text)
        else:
            text = json.dumps(entry)
            yield (
                name,
                PARAMS["backend"] * ("${backend}" in text),
                json.loads(text.replace("${backend}", PARAMS["backend"])),
            )


def module(stage: str) -> str:
    """Return the path of the module that a stage runs."""
    return f"pipeline/{stage.split('@')[0].removesuffix('_candidate')}.py"


def deciding(stage: str, backend: str) -> set[str]:
    """Return the files that decide what a stage's output says: its module and all that is imported from there.

    Nothing in core/ does, and no `__init__.py` that only names a room or, in backends/, finds the module to import.
    """
    reached: set[str] = set()
    waiting = {module(stage)} | ({f"pipeline/backends/{backend}.py"} if backend else set())
    while waiting:
        file = waiting.pop()
        reached.add(file)
        idle = (
            (USING if stage.startswith("quantize") else MAKING)
            if file.startswith("pipeline/backends/")
            else frozenset()
        )
        waiting |= {other for other in imports(file, idle) if room(other) != "core"} - reached
    return {file for file in reached if not file.endswith("/__init__.py") or "/sources/" in file}


def test_code_that_decides_is_declared() -> None:
    """A module that a stage imports and does not declare could change its output without a rerun.

    What is declared is imported for one variant at least: dvc.yaml has one list for all.
    """
    wrong: dict[str, list[str]] = {}
    needed_by: defaultdict[str, set[str]] = defaultdict(set)
    declared_by: defaultdict[str, set[str]] = defaultdict(set)
    for stage, backend, entry in resolved():
        needed = deciding(stage, backend)
        declared = {dep for dep in entry["deps"] if dep.startswith("pipeline/")}
        if missing := {
            file for file in needed if not any(file == dep or file.startswith(f"{dep}/") for dep in declared)
        }:
            wrong[stage] = sorted(missing)
        needed_by[module(stage)] |= needed
        declared_by[module(stage)] |= declared
    assert wrong == {}
    needed_by[module("learn")].add("pipeline/backends/*")  # it asks each backend, by name, what it learns
    idle = {
        (file, dep)
        for file, declared in declared_by.items()
        for dep in declared
        if not any(need == dep or need.startswith(f"{dep}/") for need in needed_by[file])
    }
    assert idle == set()


@pytest.mark.parametrize("stage", STAGES)
def test_stage_is_called_and_described_as_its_module_is(stage: str) -> None:
    """Stage name = module name = the first sentence of its docstring = what `dvc stage list` shows."""
    entry = STAGES[stage].get("do", STAGES[stage])
    each = {"${variants}": "${key}", "${watch}": "${item}", None: ""}[STAGES[stage].get("foreach")]
    variant = "candidate" if stage.endswith("_candidate") else each
    assert entry["cmd"] == f"python -m {module(stage).removesuffix('.py').replace('/', '.')} {variant}".strip()
    docstring = ast.get_docstring(ast.parse((ROOT / module(stage)).read_text(encoding="utf-8"))) or ""
    sentence = re.match(r".*?\.(?=\s|$)", docstring, re.DOTALL)
    assert sentence is not None
    assert entry["desc"] == sentence[0]


def test_every_parameter_belongs_to_a_stage() -> None:
    """A key that no stage declares would do nothing under `dvc exp run -S`."""
    declared: set[str] = set()
    for _, _, entry in resolved():
        for param in entry.get("params", []):
            keys = param["catalog.yaml"] if isinstance(param, dict) else [param]
            declared |= {key.split(".")[0] for key in keys}
    assert sorted((PARAMS.keys() | CATALOG.keys()) - declared) == ["review"]  # which is of commits, not of a run


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
        rates = ["wer", "wer_low", "wer_high", "wer_delta", "wer_delta_low", "wer_delta_high"]
        assert list(variant["test"]) == [*rates, "kl", "flips"]
    assert (metrics["fp32"]["test"]["kl"], metrics["fp32"]["test"]["flips"]) == (0.0, 0.0)
    assert metrics["hqq-int4"]["test"]["kl"] > metrics["candidate"]["test"]["kl"] > 0
    assert sorted(table(study)) == sorted((name, "test") for name in metrics)
    assert study.left() == []
    assert study.ran("repro") == []
    assert study.changed() == []
    assert study.did("git", "status", "--porcelain") == ""
    study.unwatch()
    assert study.did("dvc", "repro").endswith("Data and pipelines are up to date.\n")
    assert study.did("dvc", "status") == "Data and pipelines are up to date.\n"
    assert study.did("git", "status", "--porcelain") == ""


@pytest.mark.slow
def test_experiments_run_the_candidate_alone_and_are_read_in_one_screen(study: Study) -> None:
    """As README recommends: the candidate's size, rate and difference first, then what was changed."""
    assert study.ran("exp", "run", "-S", "bits=4") == [
        "agree_candidate",
        "compare",
        "plot",
        "quantize_candidate",
        "report",
        "score_candidate",
        "transcribe_candidate",
    ]
    diff = json.loads(study.did("dvc", "metrics", "diff", "--json"))["reports/metrics.json"]
    assert sorted(diff) == [
        "candidate.size_mb",
        "candidate.size_reduction",
        "candidate.test.flips",
        "candidate.test.kl",
        "candidate.test.wer",
        "candidate.test.wer_delta",
        "candidate.test.wer_delta_high",
        "candidate.test.wer_delta_low",
        "candidate.test.wer_high",
        "candidate.test.wer_low",
    ]
    assert diff["candidate.size_mb"]["new"] < diff["candidate.size_mb"]["old"]
    assert study.changed() == []

    study.did("dvc", "exp", "run", "-S", "backend=torch", "-S", "bits=8", "-S", "activations=dynamic")
    (command,) = re.findall(r"^(dvc exp show .+?)(?:\s+#.*)?$", (ROOT / "README.md").read_text(), re.MULTILINE)
    words = shlex.split(command)
    shown = study.did(*words, "--no-pager").splitlines()
    assert max(map(len, shown)) <= 160
    heads = study.did(*words, "--csv").splitlines()[0].split(",")
    assert len(heads) <= 14
    heads = [head for head in heads if head not in ("Experiment", "rev", "typ", "Created", "parent")]
    assert heads[:4] == ["size_mb", "test.wer", "test.vs_fp32", "test.kl"]
    assert sorted(heads[4:]) == ["activations", "backend", "bits"]


@pytest.mark.slow
def test_editing_a_variant_runs_that_variant_alone(study: Study) -> None:
    study.edit(lambda raw: raw["variants"]["hqq-int4"].update(group_size=32))
    assert study.ran("repro") == [
        "agree@hqq-int4",
        "compare",
        "plot",
        "quantize@hqq-int4",
        "report",
        "score@hqq-int4",
        "transcribe@hqq-int4",
    ]


AFTER = ["compare", "plot", "report"]
"""What follows a transcription that comes out the same: its timings never do. Scores are kept."""

DECIDES = {
    "core/params.py": [],
    "core/http.py": [],
    "backends/__init__.py": ["learn"],
    "results/charts.py": ["plot", "report"],
    "results/findings.py": ["report"],
    "results/comparison.py": ["compare", "report"],
    "results/agreement.py": ["compare", "report"],
    "agree.py": ["agree"],
    "reference.py": ["reference"],
    "scoring/wer.py": ["compare", "report", "score", "score_protocols"],
    "whisper/formats/configs.py": ["fetch"],
    "whisper/quantization/checkpoint.py": ["quantize"],
    "whisper/quantization/rounding.py": ["quantize", "sensitivity"],
    "learn.py": ["learn"],
    "whisper/agreement.py": ["agree", "reference"],
    "whisper/inference/decoding.py": [
        *("agree", "calibrate", "reference", "sensitivity", "transcribe", "transcribe_protocols"),
    ],
}
"""Stages are told without their variants: all of them change."""


def named(*stages: str) -> list[str]:
    """Return DVC's names of stages, sorted: one for each variant and the candidate, where there are such."""
    each = [*(f"@{name}" for name in VARIANTS), "_candidate"]
    return sorted(f"{stage}{of}" for stage in stages for of in (each if f"{stage}_candidate" in STAGES else [""]))


@pytest.mark.slow
def test_editing_code_changes_the_stages_that_it_decides(study: Study) -> None:
    study.unwatch()
    for file in DECIDES:
        study.append(f"pipeline/{file}", "# A remark\n")
    status = json.loads(study.did("dvc", "status", "--json"))
    changed = {stage: [*entry["changed deps"]] for stage, (entry,) in status.items()}
    found = {
        file: sorted(
            stage for stage, deps in changed.items() if any(Path("pipeline", file).is_relative_to(dep) for dep in deps)
        )
        for file in DECIDES
    }
    assert found == {file: named(*stages) for file, stages in DECIDES.items()}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("files", "rerun"),
    [
        (
            [
                *("core/params.py", "results/findings.py", "whisper/formats/configs.py"),
                *("whisper/quantization/rounding.py", "reference.py", "results/comparison.py"),
            ],
            ["fetch", "quantize", "sensitivity", "reference", "compare", "report"],
        ),
        (
            ["calibrate.py", "learn.py", "agree.py", "transcribe_protocols.py"],
            ["calibrate", "learn", "agree", "transcribe_protocols"],
        ),
    ],
)
def test_stages_after_one_that_gives_the_same_are_kept(files: list[str], rerun: list[str], study: Study) -> None:
    """Each of these feeds one that does not run, as it would if anything else came out."""
    for file in files:
        study.append(f"pipeline/{file}", "# A remark\n")
    assert study.ran("repro") == named(*rerun)


@pytest.mark.slow
def test_editing_a_library_runs_its_variants_alone(study: Study) -> None:
    study.append("pipeline/backends/hqq.py", "# A remark\n")  # the candidate's, too
    again = [f"{stage}{of}" for stage in ("quantize", "transcribe", "agree") for of in ("@hqq-int4", "_candidate")]
    assert study.ran("repro") == sorted(["learn", *again, *AFTER])


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
    agree = sorted(f"agree@{name}" for name in VARIANTS)
    last = ["transcribe_candidate", "transcribe_protocols"]
    assert study.changed() == [*agree, "agree_candidate", "reference", "report", *variants, *last]


@pytest.mark.slow
def test_limit_downloads_nothing_again(study: Study, packages: Packages) -> None:
    """The index is out of reach here: what is there and verified is all that can be used."""
    sample = CATALOG["corpora"]["sample"]
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
    assert study.ran("repro") == AFTER
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
    made = [f"{stage}@tensor" for stage in ("agree", "quantize", "score", "transcribe")]
    assert study.ran("repro") == sorted([*AFTER, *made])
    names = ["candidate", "fp32", "hqq-int4", "tensor", "torch-int8-dynamic", "torch-int8-static"]
    assert sorted(json.loads(study.read("reports/metrics.json"))) == names
    assert sorted(table(study)) == [(name, "test") for name in names]


@pytest.mark.slow
def test_adding_to_the_catalog_runs_nothing(study: Study) -> None:
    def add(raw: Any) -> None:
        raw["models"]["other"] = raw["models"]["toy"] | {"path": "nowhere"}
        raw["corpora"]["other"] = raw["corpora"]["noise"] | {"path": "nowhere"}

    study.edit(add)
    assert study.ran("repro") == []
    assert study.changed() == []


@pytest.mark.slow
def test_what_has_changed_in_folders_of_ones_own_is_read_again(study: Study) -> None:
    """A model retrained in its folder, and speech added: `dvc repro` found nothing changed, and scored the old ones."""
    kinds = {"models": "toy", "corpora": "noise"}
    given = {kind: Path(study.catalog[kind][name]["path"]) for kind, name in kinds.items()}
    own = {kind: shutil.copytree(path, study.root.parent / f"own {kind}") for kind, path in given.items()}

    def choose(folders: dict[str, Path]) -> None:
        study.edit(lambda raw: [raw[kind][name].update(path=str(folders[kind])) for kind, name in kinds.items()])

    study.edit(lambda raw: [raw["variants"].pop(name) for name in VARIANTS if name.startswith("torch")])  # less to run
    choose(own)
    assert study.ran("repro") == ["compare", "download", "fetch", "plot", "prepare", "report"]  # they say the same
    assert study.ran("repro") == []
    metrics = study.read("reports/metrics.json")
    toy.retrain(own["models"])
    chapter = own["corpora"] / "test/1/2"
    shutil.copyfile(chapter / "1-2-0000.flac", chapter / "1-2-0003.flac")
    with (chapter / "1-2.trans.txt").open("a") as file:
        file.write("1-2-0003 EGG\n")
    again = {"fetch", "download", "prepare", "calibrate", "quantize@fp32", "transcribe@fp32", "score@fp32", "compare"}
    assert again | {"reference", "agree@fp32", "agree@hqq-int4"} <= {*study.ran("repro")}
    assert study.read("reports/metrics.json") != metrics
    assert "4" in study.read("reports/results.csv").splitlines()[1].split(",")

    # On another machine, or after the folder was lost, what was made of it stays.
    shutil.rmtree(own["models"])
    said = study.did("dvc", "repro")
    assert f"model: {own['models']} is not here, so it is taken as it was" in said
    assert ran(said) == []
    choose(given)
    study.did("dvc", "repro")
    assert study.read("reports/metrics.json") == metrics


@pytest.mark.slow
def test_without_a_folder_of_ones_own_nothing_is_watched(study: Study) -> None:
    """Stages that always run would hide that nothing has changed."""
    assert study.read("outside/watch.yaml") == "watch: [model, corpus, calibration]\n"

    def choose(raw: Any) -> None:
        raw["corpora"]["made"] = {"source": "generated", "splits": ["silence"], "limit": 1}
        raw["corpus"] = "made"

    study.edit(choose)
    study.did("dvc", "repro", "prepare")
    assert study.read("outside/watch.yaml") == "watch: [model, calibration]\n"
    assert study.read("outside/corpus.json") == "null\n"


@pytest.mark.slow
def test_other_calibration_speech_runs_what_learns_from_it(study: Study) -> None:
    """Backends that have static variants learn; hqq does not, nor does fp32."""
    copied = study.root.parent / "other speech"
    shutil.copytree(study.speech, copied)
    (copied / "dev/2/2/2-2-0000.flac").write_bytes(encode(noise(0.5, 99)))

    def choose(raw: Any) -> None:
        raw["corpora"]["other"] = raw["corpora"]["noise"] | {"path": str(copied)}
        raw["calibration"]["corpus"] = "other"

    study.edit(choose)
    ran = study.ran("repro")
    static = [f"{stage}@torch-int8-static" for stage in ("quantize", "transcribe", "agree")]
    assert {"calibrate", "sensitivity", "learn", *static} <= {*ran}
    assert [stage for stage in ran if stage.endswith(("fp32", "hqq-int4", "candidate"))] == []
    assert "transcribe@torch-int8-dynamic" not in ran


@pytest.mark.slow
def test_relative_folders_are_found_by_experiments_in_copies(study: Study) -> None:
    """Relative paths under `dvc exp run --temp`, which works in a copy of the project elsewhere."""
    beside = {"models": ("toy", "../toy"), "corpora": ("noise", "../speech")}
    for kind, (name, path) in beside.items():
        source = Path(study.catalog[kind][name]["path"])
        if not (study.root / path).exists():
            shutil.copytree(source, study.root / path)
    study.edit(lambda raw: [raw[kind][name].update(path=path) for kind, (name, path) in beside.items()])
    study.commit("Use relative paths")
    study.did("dvc", "exp", "run", "--temp", "-S", "bits=4", "--name", "four")
    assert "four" in study.did("dvc", "exp", "list")
