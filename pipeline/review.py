"""Say what a change did to accuracy and size beside another commit, in Markdown, and whether it may land.

Usage: python -m pipeline.review BASE. Exit status 1: a recommended variant got worse or vanished, or dvc.lock is behind
code and parameters.
"""

import argparse
import re
import sys
import tempfile
from pathlib import Path

from pipeline.core import commands, params, stage
from pipeline.core.artifacts import recommended
from pipeline.core.errors import UserError, naming
from pipeline.results import page, review, tables
from pipeline.results.review import Results

HEAD = 2  # lines of a Markdown table that has no rows


def main(name: str) -> int:
    """Print the review against a commit; return the exit status."""
    told, passes = report(name)
    print(told, end="")
    return int(not passes)


def report(name: str) -> tuple[str, bool]:
    """Return the review against a commit, and whether the change may land."""
    settings = params.read()
    base = ancestor(name)
    graphs = [show(base, "dvc.yaml"), Path("dvc.yaml").read_text(encoding="utf-8")]
    guarded = {params.BASELINE: "the baseline"} | recommended(graphs[0]) | recommended(graphs[1])
    before, after = committed(base), Results(tables.read(tables.RESULTS), tables.read_errors(tables.ERRORS))
    limits = stricter(settings.review, show(base, "params.yaml"))
    found = list(review.changes(before, after, settings.scoring.resamples, settings.scoring.seed))
    gone = review.vanished(before, after)
    refused = review.refusals(found, gone, guarded, limits)
    known = {*before.lines.variant, *after.lines.variant}
    refused += [f"{label} marks {one!r}, which is no variant" for one, label in guarded.items() if one not in known]
    loud = [one for one in found if not one.quiet]
    late = behind()
    told = {
        "name": name,
        "refused": refused,
        "doubts": review.doubts(found, guarded, limits),
        "guarded": guarded,
        "limits": limits,
        "behind": late,
        "gone": gone,
        "come": review.vanished(after, before),
        "loud": loud,
        "quiet": len(found) - len(loud),
        "tables_of": {"Metrics": difference("metrics", base), "Parameters": difference("params", base)},
    }
    return page.render("review.md.j2", **told), not (refused or late)


def ancestor(name: str) -> str:
    """Return the commit that a branch has left another one at: what has landed there since is not its doing."""
    done = commands.git("merge-base", name, "HEAD")
    return done.stdout.strip() if done.returncode == 0 else name  # which `show` refuses, with git's reason


def committed(base: str) -> Results:
    """Return what a commit holds of a run; raise UserError where that is nothing."""
    with tempfile.TemporaryDirectory() as folder:
        for path in (tables.RESULTS, tables.ERRORS):
            (Path(folder) / path.name).write_text(show(base, path.as_posix()), encoding="utf-8")
        with naming(base, "commit"):
            lines = tables.read(Path(folder) / tables.RESULTS.name)
            return Results(lines, tables.read_errors(Path(folder) / tables.ERRORS.name))


def show(base: str, path: str) -> str:
    """Return a file of a commit; raise UserError where it is not there."""
    done = commands.git("show", f"{base}:./{path}")
    if done.returncode:
        reason = " ".join(done.stderr.split())
        raise UserError(f"{path} of {base!r} cannot be read ({reason}); name a commit that has it, such as main")
    return done.stdout


def stricter(ours: params.Review, text: str) -> params.Review:
    """Return the stricter of our limits and those of another params.yaml: a change cannot relax its own gate."""
    from ruamel.yaml import YAML

    theirs: dict[str, float] = YAML(typ="safe").load(text).get("review") or {}
    return params.Review(**{key: min(value, theirs.get(key, value)) for key, value in vars(ours).items()})


def behind() -> str:
    """Return which stages would run although no data is missing; "" where dvc.lock is in step."""
    done = commands.dvc("repro", "--dry", "--allow-missing")
    late = re.findall("^Running stage '(.+)':", done.stdout, re.MULTILINE)
    late += re.findall("failed to reproduce '(.+?)'", done.stderr)  # a stage that would run, and lacks its data
    if late:
        return f"stage {late[0]!r} would run"
    return " ".join(done.stderr.split()) if done.returncode else ""


def difference(what: str, base: str) -> str:
    """Return what DVC says of changed metrics or parameters, as a Markdown table; "" where there are none."""
    done = commands.dvc(what, "diff", base, "--md")
    if done.returncode:
        return " ".join(done.stderr.split())
    table = done.stdout.strip()
    return table if len(table.splitlines()) > HEAD else ""


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m pipeline.review", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("base", metavar="BASE", help="a commit, such as main")
    with stage.guarded("review"):
        sys.exit(main(parser.parse_args().base))
