"""Keep the current results as a study: a folder, studies/<name>/, to be committed and cited.

Usage: python -m pipeline.study NAME | --page FOLDER | --index | --answer FOLDER
       | --headline FOLDER [--variants NAME ...]
"""

import argparse
import datetime
import importlib.metadata
import json
import platform
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from packaging.utils import canonicalize_name

from pipeline import compare, plot, score
from pipeline.core import commands, files, outside, params, stage
from pipeline.core.errors import UserError
from pipeline.core.params import BASELINE
from pipeline.results import overview, page, tables
from pipeline.results.findings import ENVIRONMENT
from pipeline.results.tables import ENGINES, ERRORS, FIGURES, FORETOLD, INDEX, PROTOCOL, RESULTS, SENSITIVITY
from pipeline.scoring import wer

STUDIES = Path("studies")
OVERVIEW = STUDIES / INDEX.name
OPTIONAL = (PROTOCOL, ENGINES, SENSITIVITY, FORETOLD)  # tables that a study has where they were measured
PROTOCOLS = ("transcribe_protocols", "score_protocols")
"""Stages that make PROTOCOL in two more passes of fp32: where they have not run, the study does without."""
CHANGED_BY_RUNS = ("params.yaml", "catalog.yaml", "dvc.lock", "outside", "reports", "studies")
"""Files that experiments and studies change themselves: whatever else differs from the commit is code."""


def main(name: str) -> None:
    """Write studies/<name>/ from the current results, whole or not at all; raise UserError where they do not fit."""
    if not re.fullmatch("[A-Za-z0-9-]+", name):
        raise UserError(
            f"the name {name!r} of a study may hold only letters, digits and hyphens; say 'make study NAME=base'"
        )
    settings = params.read()
    results = tables.read(RESULTS)
    optional = {path: tables.read(path) for path in OPTIONAL if path.exists()}
    if ENGINES in optional:
        check_engines(settings.model, optional[ENGINES])
    if FORETOLD in optional:
        check_foretold(settings, optional[FORETOLD])
    described = environment(results)
    check_versions(described["packages"] | {"python": described["python"]}, results)
    if check_up_to_date():
        optional.pop(PROTOCOL, None)
        print(f"without other protocols: '{tables.MAKERS[PROTOCOL.name]}' has not run on these results")
    utterances = [f"{line['split']} {line['id']}\n" for line in wer.read(score.TRANSCRIPTS / f"{BASELINE}.jsonl")]
    timings = [compare.read(compare.TIMINGS / f"{variant}.json", "transcribe") for variant in settings.names]
    calibrated = sorted({utterance for each in timings for utterance in each["checkpoint"]["calibration"]})
    heard = [f"{settings.calibration.split} {utterance}\n" for utterance in calibrated]
    with files.aside(STUDIES / name) as folder:
        folder.mkdir()
        for file in (params.FILE, params.CATALOG, compare.METRICS, RESULTS, ERRORS, INDEX, *optional):
            shutil.copyfile(file, folder / file.name)
        shutil.copytree(FIGURES, folder / FIGURES.name, copy_function=shutil.copyfile)
        files.write_text(folder / overview.HEARD, "".join(utterances + heard))
        files.write_json(folder / ENVIRONMENT, described)
        files.write_text(folder / "README.md", page.text(folder, name))
    print(f"{STUDIES / name}: {len(settings.names)} variants on {len(utterances)} utterances")
    write_index()


def write_index() -> None:
    """Write studies/README.md, all studies and what becomes of each claim, and studies/index.html, all in charts."""
    folders = sorted(path.parent for path in STUDIES.glob(f"*/{ENVIRONMENT}"))
    files.write_text(STUDIES / "README.md", page.index(folders))
    files.write_text(OVERVIEW, overview.text(folders))


def check_engines(model: str, engines: pd.DataFrame) -> None:
    """Raise UserError where the engines were measured with another model: no stage of DVC watches their table."""
    others = {*engines.model} - {model, ""}
    if others:
        raise UserError(
            f"{ENGINES} is about model {others.pop()!r}, but {params.FILE} chooses {model!r}; "
            f"run '{tables.MAKERS[ENGINES.name]}' again, or remove it"
        )


def check_foretold(settings: params.Params, foretold: pd.DataFrame) -> None:
    """Raise UserError where another model or other variants were foretold: no stage of DVC watches that table."""
    if {*foretold.model} != {settings.model} or {*foretold.variant} != {*settings.names}:
        raise UserError(
            f"{FORETOLD} is about another model or other variants than {params.FILE}; "
            f"run '{tables.MAKERS[FORETOLD.name]}' again, or remove it"
        )


def check_versions(here: Mapping[str, str], results: pd.DataFrame) -> None:
    """Raise UserError where the results were made with other versions than the installed ones, given by name."""
    for package in tables.LIBRARIES:
        # Results of before a library came have no version of it, and are not up to date.
        for variant, made in zip(results.variant, results.get(f"versions_{package}", []), strict=False):
            if made != here[package]:
                raise UserError(
                    f"{RESULTS}: {variant!r} was measured with {package} {made}, but {here[package]} is "
                    "installed here; install that version, or run 'dvc repro --force' first"
                )


def check_up_to_date() -> bool:
    """Raise UserError unless DVC finds that every stage has run with the code, settings and data that are here.

    PROTOCOLS may be behind: returns whether they are.
    """
    status = commands.dvc("status", "--json")
    if status.returncode:
        raise UserError(f"'dvc status' fails: {' '.join(status.stderr.split())}")
    behind = list(json.loads(status.stdout))
    # Stages that look for changes of folders always run, and DVC tells no more of them.
    stale = [stage for stage in behind if not stage.startswith("watch@") and stage not in PROTOCOLS]
    stale += [f"watch@{name}" for name in outside.changed(params.read())]
    if stale:
        which = f"{len(stale)} stages, such as {stale[0]!r}, are" if len(stale) > 1 else f"stage {stale[0]!r} is"
        raise UserError(f"{which} not up to date; run 'dvc repro' first")
    return any(stage in PROTOCOLS for stage in behind)


def environment(results: pd.DataFrame) -> dict[str, Any]:
    """Return when and from which code the study was kept, where it was measured, and every installed package."""
    others = [f":!{path}" for path in CHANGED_BY_RUNS]
    packages = {canonicalize_name(package.name): package.version for package in importlib.metadata.distributions()}
    measured = results[["machine", "device", "threads"]].drop_duplicates().sort_values(["machine", "device", "threads"])
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": git("rev-parse", "HEAD").strip(),
        "uncommitted": [line[3:] for line in git("status", "--porcelain", "--", ".", *others).splitlines()],
        "measured_on": measured.to_dict("records"),
        "python": platform.python_version(),
        "packages": dict(sorted(packages.items())),
    }


def git(*arguments: str) -> str:
    """Return what git says; raise UserError where it refuses."""
    done = commands.git(*arguments)
    if done.returncode:
        reason = " ".join(done.stderr.split())
        raise UserError(f"a study names the commit of its code, but 'git {arguments[0]}' fails: {reason}")
    return done.stdout


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m pipeline.study", description=(__doc__ or "").splitlines()[0])
    chosen = parser.add_mutually_exclusive_group(required=True)
    chosen.add_argument("name", nargs="?", help="keep the current results as studies/NAME/, in place of one so named")
    again = "only make FOLDER's page and figures again from its files"
    chosen.add_argument("--page", metavar="FOLDER", type=Path, help=again)
    chosen.add_argument("--index", action="store_true", help="only write the pages over all studies again")
    chosen.add_argument("--answer", metavar="FOLDER", type=Path, help="print what it tells to ship, and why")
    chosen.add_argument("--headline", metavar="FOLDER", type=Path, help="print its variants as a table for a README")
    parser.add_argument("--variants", metavar="NAME", nargs="+", default=(), help="with --headline: these alone")
    arguments = parser.parse_args()
    with stage.guarded("study"):
        if arguments.page:
            files.write_text(arguments.page / "README.md", page.text(arguments.page, arguments.page.resolve().name))
            plot.draw(arguments.page)
        elif arguments.index:
            write_index()
            print(f"{OVERVIEW}: {OVERVIEW.stat().st_size / 1e6:.1f} MB, opens from disk")
        elif arguments.answer:
            print(page.answer(arguments.answer))
        elif arguments.headline:
            print(page.headline(arguments.headline, arguments.variants))
        else:
            main(arguments.name)
