"""Whisper PTQ from Python: choose a variant, look into it, use it. `whisper-ptq` is the same as a command.

    import whisper_ptq

    found = whisper_ptq.recommend(max_mb=60, max_loss=0.5, study="base")
    for heard in whisper_ptq.transcribe(["talk.mp3"], found.variant):
        print(heard.text)

Everything is read from the folder that Python runs in: a clone in which `dvc repro` has run. What a user can mend is a
`UserError`, whose message is one sentence that says how.
"""

from collections.abc import Iterable, Iterator
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pipeline.core.errors import UserError, suggestion

if TYPE_CHECKING:
    from pandas import DataFrame

    from pipeline.results.changes import Change
    from pipeline.results.tables import Row
    from pipeline.whisper.longform import Transcript

__all__ = ["UserError", "compare", "export", "recommend", "results", "review", "transcribe"]


def results(study: str | None = None) -> "DataFrame":
    """Return what is known of each variant on each split (columns: pipeline/results/tables.py).

    Of the last run, or of a study that was kept.
    """
    from pipeline.results import tables
    from pipeline.study import STUDIES

    if study is None:
        return tables.read(tables.RESULTS)
    folder = STUDIES / study
    if not folder.is_dir():
        known = [path.parent.name for path in STUDIES.glob("*/results.csv")]
        raise UserError(f"there is no study {study!r}{suggestion(study, known)}")
    return tables.read(folder / tables.RESULTS.name)


def recommend(
    max_mb: float = inf,
    max_loss: float = inf,
    fastest: bool = False,
    device: Literal["cpu", "cuda"] | None = None,
    study: str | None = None,
) -> "Row":
    """Return a line of `results` of the variant to ship; raise UserError, which names the nearest, where nothing fits.

    The fastest; else the smallest that is shown to lose less than `max_loss` points; else, within `max_mb`, the nearest
    to fp32. `device`: only what runs on it.
    """
    from pipeline import backends
    from pipeline.results import decision

    lines = results(study)
    able = {name for name in {*lines.backend} if device is None or device in backends.get(name).DEVICES}
    lines = lines[lines.backend.isin(able)]
    if fastest and device and (ran := next(iter(lines.device))) != device:
        raise UserError(f"times were measured on {ran}, and say nothing of {device}: leave out --fastest or --device")
    goal: decision.Goal = "fastest" if fastest else "smallest" if max_loss < inf else "nearest"
    found = decision.recommend(lines, goal, max_mb, max_loss)
    if found is None:
        bounds = [f"{max_mb:g} MB"] * (max_mb < inf) + [f"a loss below {max_loss:g}"] * (max_loss < inf)
        others = [
            decision.recommend(lines, "smallest", max_loss=max_loss),
            decision.recommend(lines, "nearest", max_mb=max_mb),
        ]
        near = dict.fromkeys(decision.reason(lines, row) for row in others if row is not None)
        raise UserError(f"nothing fits {' and '.join(bounds)}; other choices: {', or '.join(near) or 'none'}")
    return found


def compare(before: str, after: str) -> "list[Change]":
    """Return the utterances that two variants of the last run write otherwise, the second's greatest losses first."""
    from pipeline.compare import SCORES
    from pipeline.compare import read as scored
    from pipeline.core import params
    from pipeline.results import changes

    settings = params.read()
    for name in (before, after):
        settings.variant(name)
    return changes.changed(*(scored(SCORES / f"{name}.json", "score") for name in (before, after)))


def transcribe(
    recordings: Iterable[str | Path], variant: str | None = None, language: str = "auto"
) -> "Iterator[Transcript]":
    """Yield what a variant of the last run hears in recordings of any format and length: segments with their times.

    Without a name it is the variant that dvc.yaml marks as recommended. A model that knows English only hears English
    under `auto`.
    """
    from pipeline import recordings as own

    for heard in own.transcribe(map(Path, recordings), variant or own.shipped(), language):
        if isinstance(heard, UserError):
            raise heard
        yield heard


def export(variant: str, folder: str | Path, to: Literal["hf", "ct2", "ggml", "gguf"]) -> None:
    """Write a variant as a new folder that its runtime opens without this project, with a model card."""
    from pipeline import export as exporting

    exporting.main(variant, to, Path(folder))


def review(base: str = "main") -> tuple[str, bool]:
    """Return in Markdown what a change did beside another commit, and whether it may land."""
    from pipeline import review as reviewing

    return reviewing.report(base)
