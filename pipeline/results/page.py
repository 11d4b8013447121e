"""The page of a study, README.md in its folder: what was done, what was found, and how certain that is.

Everything on it is computed from the other files of the folder, so it can be made again from them alone. Its words
stand in templates/.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from pipeline.core.errors import UserError, suggestion
from pipeline.core.params import BASELINE, CANDIDATE, CATALOG, Params
from pipeline.results import claims, decision, findings, tables
from pipeline.results import text as writing
from pipeline.scoring.statistics import ONE_SIDED

TEMPLATES = Path(__file__).parent / "templates"


def text(folder: Path, name: str) -> str:
    """Return the page of the study in `folder`, which is called `name`."""
    study = findings.read(folder)
    candidate = {"bits": study.settings.candidate.bits} | not_default(study.settings.candidate)
    software = {library: study.versions[library] for library in tables.LIBRARIES if library in study.versions}
    values: dict[str, Any] = {
        "name": name,
        "software": software,
        "candidate": candidate,
        "options": options(study.settings),
    }
    values |= {"answer": answer_of(study), "looked": (folder / tables.INDEX.name).exists()}
    return render_study("study.md.j2", study, **values)


def index(folders: Sequence[Path]) -> str:
    """Return the page over several studies: what each tells to ship, and every claim's verdicts by model."""
    studies = {folder.name: findings.read(folder) for folder in folders}
    checked = [claims.check(study.lines, study.settings.variants) for study in studies.values()]
    counted = [{(check.claim, check.by): claims.counted(check) for check in checks} for checks in checked]
    keys = dict.fromkeys(key for of_study in counted for key in of_study)
    verdicts = {key: [of_study.get(key, "") for of_study in counted] for key in keys}
    said = {name: answer_of(study) for name, study in studies.items()}
    return render("index.md.j2", studies=studies, said=said, verdicts=verdicts)


def answer(folder: Path) -> str:
    """Return what a study tells to ship, and the table of `decision.shortlist`."""
    study = findings.read(folder)
    return f"{answer_of(study)}\n\n{_headline(study, decision.shortlist(study.lines))}"


def headline(folder: Path, variants: Sequence[str] = ()) -> str:
    """Return a study's variants as a compact table for a README: those named, else all but the candidate.

    Raises UserError for a variant that the study does not have.
    """
    study = findings.read(folder)
    known = [row.variant for row in study.variants]
    for name in variants:
        if name not in known:
            raise UserError(f"{folder} has no variant {name!r}{suggestion(name, known)}")
    shown = variants or [name for name in known if name != CANDIDATE]
    return _headline(study, shown)


def options(settings: Params) -> dict[str, str]:
    """Return what `dvc exp run -S` must set, by key, to make a study of these settings.

    Of the settings that have a default only those that differ; variants and candidate are left to params.yaml.
    """
    chosen = {"model": settings.model, "corpus": settings.corpus}
    chosen |= {"device": settings.device} if settings.device != "auto" else {}
    chosen |= {"kernels": settings.kernels} if settings.kernels == "library" else {}  # as earlier studies were made
    limit = settings.corpora[settings.corpus].limit
    chosen |= {f"{CATALOG}:corpora.{settings.corpus}.limit": str(limit)} if limit else {}
    for section in ("calibration", "decoding", "latency", "scoring"):
        entries = not_default(getattr(settings, section))
        chosen |= {f"{section}.{key}": _plain(value) for key, value in entries.items()}
    return chosen


def answer_of(study: findings.Study) -> str:
    """Return what a study tells to ship, in Markdown."""
    return render_study("answer.md.j2", study).strip()


def _headline(study: findings.Study, shown: Sequence[str]) -> str:
    return render_study("headline.md.j2", study, shown=shown).rstrip()


def render_study(template: str, study: findings.Study, **values: Any) -> str:
    """Return what a template makes of a study."""
    return render(template, study=study, baseline=study.of(BASELINE), **values)


def render(template: str, **values: Any) -> str:
    """Return what a template makes of some values; a line of it that ends in a backslash goes on in the next one."""
    import jinja2  # late: it would slow down the start of stages that only read tables

    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_template),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=jinja2.select_autoescape(["html.j2"], default=False),  # the others are Markdown
    )
    filters = (
        writing.known,
        writing.number,
        writing.interval,
        writing.change,
        writing.extent,
        writing.caution,
        writing.verdict,
        pairs,
        turned,
    )
    environment.filters["inline"] = inline
    environment.filters |= {each.__name__: each for each in filters}
    environment.globals |= {"claims": claims, "decision": decision, "findings": findings, "tables": tables}
    environment.globals |= {
        "BASELINE": BASELINE,
        "inf": math.inf,
        "ONE_SIDED": ONE_SIDED,
        "NO_WORSE": writing.NO_WORSE,
        "UNDECIDED": writing.UNDECIDED,
        "vars": vars,
    }
    return environment.get_template(template).render(values)


def _template(name: str) -> str:
    return (TEMPLATES / name).read_text(encoding="utf-8").replace("\\\n", "")


def inline(text: str) -> Any:
    """Turn a line of Markdown, its emphasis and code, into HTML."""
    from markdown_it import MarkdownIt
    from markupsafe import Markup

    return Markup(MarkdownIt("zero").enable(["emphasis", "backticks"]).renderInline(text))  # noqa: S704  # it escapes HTML


def turned(values: tuple[Any, Any], form: str) -> str:
    """Write a value, and what it has turned into where that is written otherwise."""
    before, after = (form % value for value in values)
    return after if before == after else f"{before} → {after}"


def pairs(entries: Mapping[str, Any]) -> str:
    """Write settings in a sentence."""
    return ", ".join(f"{key} {_plain(value)}" for key, value in entries.items())


def _plain(value: Any) -> str:
    """Write a value as params.yaml does."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def not_default(entry: Any) -> dict[str, Any]:
    """Return the fields of a dataclass that have no default, or another value than that."""
    found: dict[str, Any] = TypeAdapter(type(entry)).dump_python(entry, exclude_defaults=True)
    return found
