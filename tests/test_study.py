import csv
import importlib.metadata
import io
import json
import platform
import re
from pathlib import Path

import pytest

from pipeline import study
from pipeline.core.errors import UserError
from pipeline.results import page, tables
from tests.conftest import ROOT, results_csv
from tests.made import ENGINES, LINES, OWN, Row, line, sensitivity
from tests.study import Study

GRAPH = """\
stages:
  compare:
    cmd: "true" # what it would write is there
    params: [variants]
    deps: [scores]
    outs:
      - reports/errors.csv: {cache: false, persist: true}
      - reports/results.csv: {cache: false, persist: true}
      - reports/metrics.json: {cache: false, persist: true}
      - reports/figures: {cache: false, persist: true}
      - reports/transcripts: {persist: true}
      - reports/index.html: {persist: true}
"""
NAMES = list(dict.fromkeys(line["variant"] for line in LINES))
VERSIONS = {"python": platform.python_version()} | {
    name: importlib.metadata.version(name) for name in tables.LIBRARIES if name != "python"
}


ERRORS = """\
split,id,speaker,words,fp32,quanto-int8,hqq-int3,candidate
test-clean,1-2-1,1,9,0,0,1,0
test-clean,3-2-1,3,9,1,1,2,1
test-other,5-2-1,5,9,1,1,3,1
test-other,7-2-1,7,9,2,2,2,2
"""
FORETOLD = """\
variant,model,corpus,split,utterances,tokens,kl
fp32,tiny-en,subset,train,2,40,0.0
quanto-int8,tiny-en,subset,train,2,40,0.001
hqq-int3,tiny-en,subset,train,2,40,0.1
candidate,tiny-en,subset,train,2,40,0.002
"""


def table(lines: list[Row], **versions: str) -> str:
    """Return results.csv of these lines and the candidate's, measured with the versions that are installed or these."""
    lines = [*lines, *(line | {"variant": "candidate"} for line in lines if line["variant"] == "hqq-int3")]
    columns = {f"versions_{name}": version for name, version in (VERSIONS | versions).items()}
    return tables.to_csv([row | columns for row in csv.DictReader(io.StringIO(results_csv(*lines)))])


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """Return a project in which DVC has run one stage, whose results are made up."""
    made = Study(tmp_path_factory.mktemp("ran") / "project")
    (made.root / "reports/figures").mkdir(parents=True)
    (made.root / "reports/transcripts").mkdir()
    (made.root / "reports/timings").mkdir()
    made_up = {
        "dvc.yaml": GRAPH,
        "params.yaml": (ROOT / "params.yaml").read_text(),
        "catalog.yaml": (ROOT / "catalog.yaml").read_text(),
        ".gitignore": "/.partial\n__pycache__\n",
        "scores": "",
        "code.py": "",
        "reports/results.csv": table(LINES),
        "reports/errors.csv": ERRORS,
        "reports/metrics.json": '{"fp32": {}}',
        "reports/figures/wer.svg": "a figure",
        "reports/figures/wer_vs_size.svg": "another",
        "reports/index.html": "a page",
        "reports/transcripts/fp32.jsonl": "".join(
            json.dumps({"split": split, "id": f"1-2-{n}", "text": "A", "pred_text": "A", "duration": 1.0}) + "\n"
            for split, n in (("test-other", 1), ("test-clean", 2), ("test-clean", 1))
        ),
    }
    for name in (*NAMES, "candidate"):
        heard = ["3-4-2", "3-4-1"] if name == "quanto-int8" else []
        made_up[f"reports/timings/{name}.json"] = json.dumps({"checkpoint": {"calibration": heard}})
    for name, text in made_up.items():
        (made.root / name).write_text(text)
    made.edit(
        lambda raw: raw.update(
            variants={name: raw["variants"][name] for name in NAMES},
            corpus="subset",
            calibration=raw["calibration"] | {"corpus": "subset", "split": "dev-clean"},
        )
    )
    made.begin()
    made.did("dvc", "init", "--quiet")
    made.did("dvc", "repro", "--quiet")
    made.commit("Run")
    return made


@pytest.fixture
def project(ran: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    """Work in a copy of that project."""
    copy = ran.copy(tmp_path / "project")
    monkeypatch.chdir(copy.root)
    monkeypatch.setenv("DVC_NO_ANALYTICS", "1")
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "site-cache"))
    return copy


def kept(folder: Path) -> dict[str, bytes]:
    """Return the files of a folder, by their paths in it."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refusal(name: str = "base") -> str:
    """Return the sentence with which a study is refused."""
    with pytest.raises(UserError) as error:
        study.main(name)
    assert list(Path("studies").glob(".*")) == []
    return str(error.value)


def test_a_study_is_the_results_and_where_they_come_from(project: Study, capsys: pytest.CaptureFixture[str]) -> None:
    study.main("base")
    assert capsys.readouterr().out == "studies/base: 4 variants on 3 utterances\n"
    found = kept(Path("studies/base"))
    environment = json.loads(found.pop("environment.json"))
    readme = found.pop("README.md").decode()
    assert found == {
        "params.yaml": Path("params.yaml").read_bytes(),
        "catalog.yaml": Path("catalog.yaml").read_bytes(),
        "results.csv": Path("reports/results.csv").read_bytes(),
        "errors.csv": ERRORS.encode(),
        "metrics.json": b'{"fp32": {}}',
        "figures/wer.svg": b"a figure",
        "figures/wer_vs_size.svg": b"another",
        "index.html": b"a page",
        "utterances.txt": b"test-clean 1-2-1\ntest-clean 1-2-2\ntest-other 1-2-1\ndev-clean 3-4-1\ndev-clean 3-4-2\n",
    }
    assert readme.startswith("# Study base: Whisper tiny-en on subset\n")
    assert readme == page.text(Path("studies/base"), "base")
    packages = environment.pop("packages")
    assert {name: packages[name] for name in VERSIONS if name != "python"} | {"python": VERSIONS["python"]} == VERSIONS
    assert len(packages) > 50
    assert list(packages) == sorted(packages)
    assert re.fullmatch(r"\d{4}-\d{2}-\d{2}", environment.pop("date"))
    assert environment == {
        "commit": project.did("git", "rev-parse", "HEAD").strip(),
        "uncommitted": [],
        "measured_on": [{"machine": "A processor", "device": "cpu", "threads": 2}],
        "python": VERSIONS["python"],
    }


def test_code_that_no_commit_holds_is_named(project: Study) -> None:
    """Parameters and results are in the study's folder themselves."""
    project.append("code.py", "pass\n")
    project.append("params.yaml", "# a remark\n")
    (project.root / "reports/new.csv").write_text("")
    (project.root / "other.py").write_text("")
    study.main("base")
    assert json.loads(Path("studies/base/environment.json").read_text())["uncommitted"] == ["code.py", "other.py"]


def test_the_same_results_make_the_same_study(project: Study) -> None:
    study.main("base")
    first = kept(Path("studies/base"))
    project.commit("Keep it")
    study.main("base")
    second = kept(Path("studies/base"))
    assert {name for name in first | second if first.get(name) != second.get(name)} == {"environment.json"}


def test_a_study_is_replaced_as_a_whole(project: Study) -> None:
    Path("reports/engines.csv").write_text(ENGINES)
    Path("reports/protocol.csv").write_text(tables.to_csv([OWN]))
    Path("reports/sensitivity.csv").write_text(sensitivity())
    Path("reports/foretold.csv").write_text(FORETOLD)
    study.main("base")
    first = kept(Path("studies/base"))
    assert {"engines.csv", "foretold.csv", "protocol.csv", "sensitivity.csv"} <= set(first)
    assert "| ctranslate2 int8 |" in first["README.md"].decode()
    project.append("scores", "changed")
    assert refusal() == "stage 'compare' is not up to date; run 'dvc repro' first"
    assert kept(Path("studies/base")) == first
    project.did("dvc", "repro")
    Path("reports/engines.csv").unlink()
    study.main("base")
    assert set(first) - set(kept(Path("studies/base"))) == {"engines.csv"}


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("changed", [("hqq-int3", "hqq-int2"), ("tiny-en", "base")])
def test_what_was_foretold_of_others_is_refused(changed: tuple[str, str]) -> None:
    Path("reports/foretold.csv").write_text(FORETOLD.replace(*changed))
    assert refusal() == (
        "reports/foretold.csv is about another model or other variants than params.yaml; "
        "run 'python -m benchmarks.foretell SPLIT' again, or remove it"
    )


@pytest.mark.parametrize("name", ["", "a/b", "..", "v1.0", "a b", "ü"])
def test_odd_names_are_refused(name: str) -> None:
    with pytest.raises(UserError) as error:
        study.main(name)
    assert str(error.value) == (
        f"the name {name!r} of a study may hold only letters, digits and hyphens; say 'make study NAME=base'"
    )


@pytest.mark.usefixtures("project")
def test_results_that_are_not_here_are_refused() -> None:
    Path("reports/results.csv").unlink()
    assert refusal() == "reports/results.csv is not here; run 'dvc repro compare' first"


@pytest.mark.usefixtures("project")
def test_results_of_other_variants_are_refused() -> None:
    stale = "stage 'compare' is not up to date; run 'dvc repro' first"
    Path("reports/results.csv").write_text(table([line for line in LINES if line["variant"] != "quanto-int8"]))
    assert refusal() == stale
    Path("reports/results.csv").write_text(table([*LINES, line("dropped", 0, 0, 0)]))
    assert refusal() == stale


def test_results_of_before_a_variant_was_added_are_refused(project: Study) -> None:
    project.edit(lambda raw: raw["variants"].update(added={"backend": "hqq", "bits": 4}))
    assert refusal() == "stage 'compare' is not up to date; run 'dvc repro' first"


@pytest.mark.usefixtures("project")
def test_results_of_other_versions_are_refused() -> None:
    Path("reports/results.csv").write_text(table(LINES, hqq="0.1"))
    assert refusal() == (
        f"reports/results.csv: 'fp32' was measured with hqq 0.1, but {VERSIONS['hqq']} is installed here; install that "
        "version, or run 'dvc repro --force' first"
    )


@pytest.mark.usefixtures("project")
def test_results_of_before_a_library_came_are_refused() -> None:
    """They lack the column of its version."""
    rows = [*csv.DictReader(io.StringIO(Path("reports/results.csv").read_text()))]
    old = [{name: text for name, text in row.items() if name != "versions_torchao"} for row in rows]
    Path("reports/results.csv").write_text(tables.to_csv(old))
    assert refusal() == "stage 'compare' is not up to date; run 'dvc repro' first"


@pytest.mark.usefixtures("project")
def test_engines_of_another_model_are_refused() -> None:
    lines = zip(ENGINES.splitlines(), ("model", "tiny-en", "base"), strict=True)
    Path("reports/engines.csv").write_text("".join(f"{line},{model}\n" for line, model in lines))
    assert refusal() == (
        "reports/engines.csv is about model 'base', but params.yaml chooses 'tiny-en'; "
        "run 'python -m benchmarks.engines --out reports/engines.csv' again, or remove it"
    )


@pytest.mark.usefixtures("project")
def test_what_dvc_finds_changed_is_refused() -> None:
    Path("reports/figures/wer.svg").unlink()
    assert refusal() == "stage 'compare' is not up to date; run 'dvc repro' first"
    Path("dvc.yaml").write_text("stages: 7\n")
    assert refusal() == "'dvc status' fails: './dvc.yaml' validation failed. expected a dictionary, in stages"


def test_without_a_commit_nothing_can_be_cited(project: Study) -> None:
    project.did("rm", "-r", ".git")
    assert refusal().startswith("a study names the commit of its code, but 'git rev-parse' fails: fatal: not a git ")


def test_commands(project: Study) -> None:
    """The page is made again from the folder alone, and the headline printed; mistakes are one sentence."""
    (project.root / "pipeline").symlink_to(ROOT / "pipeline")
    command = ["python", "-m", "pipeline.study"]
    study.main("base")
    readme = Path("studies/base/README.md")
    text = readme.read_text()
    readme.unlink()
    assert project.did(*command, "--page", "studies/base/") == ""
    assert readme.read_text() == text
    assert Path("studies/base/figures/wer.svg").read_text().startswith("<svg")  # it was no picture
    assert project.did(*command, "--headline", "studies/base") == page.headline(Path("studies/base")) + "\n"
    overviews = [Path("studies/README.md"), Path("studies/index.html")]
    before = [file.read_text() for file in overviews]
    for file in overviews:
        file.unlink()
    said = project.did(*command, "--index")
    assert re.fullmatch(r"studies/index\.html: 0\.\d MB, opens from disk\n", said)
    assert [file.read_text() for file in overviews] == before
    failed = project.run(*command, "--page", "studies/other")
    assert (failed.returncode, failed.stdout) == (
        1,
        "study: studies/other is no study: environment.json is not there; 'make study NAME=other' makes one\n",
    )
    assert not Path("studies/other").exists()


@pytest.mark.slow
def test_a_whole_run_is_kept(finished: Study, tmp_path: Path) -> None:
    whole = finished.copy(tmp_path / "study")
    assert whole.did("python", "-m", "pipeline.study", "toy") == "studies/toy: 5 variants on 3 utterances\n"
    names = [path.name for path in sorted((whole.root / "studies/toy").iterdir())]
    assert names == [
        "README.md",
        "catalog.yaml",
        "environment.json",
        "errors.csv",
        "figures",
        "index.html",
        "metrics.json",
        "params.yaml",
        "protocol.csv",
        "results.csv",
        "sensitivity.csv",
        "utterances.txt",
    ]
    drawn = ("ladder", "sensitivity", "wer", "wer_vs_size", "wer_vs_speed")
    assert [path.name for path in sorted((whole.root / "studies/toy/figures").iterdir())] == [
        f"{name}.svg" for name in drawn
    ]
    assert whole.changed() == []
    added = Path(whole.catalog["models"]["toy"]["path"]) / "new.json"
    added.touch()
    failed = whole.run("python", "-m", "pipeline.study", "toy")
    added.unlink()
    assert failed.stdout == "study: stage 'watch@model' is not up to date; run 'dvc repro' first\n"
    whole.edit(lambda raw: raw["variants"]["hqq-int4"].update(group_size=32))
    failed = whole.run("python", "-m", "pipeline.study", "toy")
    assert re.fullmatch(r"study: \d stages, such as '.+', are not up to date; run 'dvc repro' first\n", failed.stdout)
