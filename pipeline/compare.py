"""Compare all variants with fp32: the metrics file for reviews, and the table of everything known."""

from collections.abc import Sequence
from pathlib import Path

from pipeline.core import files, params, pieces, stage
from pipeline.core.errors import UserError
from pipeline.results import comparison, tables

SCORES = Path("reports/scores")
TIMINGS = Path("reports/timings")
METRICS = Path("reports/metrics.json")
CANDIDATE = Path("reports/candidate.json")


def read(path: Path, maker: str) -> comparison.Json:
    """Read a JSON file that stage `maker` writes; raise UserError saying how to make it."""
    again = f"'python -m pipeline.{maker} {path.stem}'"
    try:
        found = files.parse_json(path.read_bytes())
        if not isinstance(found, dict):
            raise ValueError
        return found
    except FileNotFoundError:
        raise UserError(f"{path} is not here; run 'dvc repro', or {again}") from None
    except ValueError:
        raise UserError(f"{path} is no JSON object; run {again} again") from None


def main() -> None:
    """Read scores and timings of the variants in params.yaml; write metrics.json, candidate.json and results.csv."""
    settings = params.read()
    scoring, names = settings.scoring, settings.names
    sweep(names)
    scores = {name: read(SCORES / f"{name}.json", "score") for name in names}
    comparison.check_same(scores)
    timings = {name: read(TIMINGS / f"{name}.json", "transcribe") for name in names}
    table = [tables.rounded(row) for row in comparison.rows(scores, timings, scoring.resamples, scoring.seed)]
    files.write_json(METRICS, comparison.metrics(table))
    files.write_json(CANDIDATE, comparison.candidate(table))
    files.write_text(tables.RESULTS, tables.to_csv(table))


def sweep(names: Sequence[str]) -> None:
    """Remove the scores and timings that dropped variants left, and pieces of what is finished and recorded by now.

    DVC leaves the former, and hashes them with the folders: dvc.lock would then not fit the clone that never had them.
    """
    pieces.remove_finished(Path("reports"))
    for folder in (SCORES, TIMINGS):
        for file in folder.glob("*.json"):
            if file.stem not in names:
                files.remove(file)


if __name__ == "__main__":
    stage.run(main)
