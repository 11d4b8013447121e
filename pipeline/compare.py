"""Compare all variants with fp32: the metrics file for reviews, and the table of everything known."""

from collections.abc import Sequence
from pathlib import Path

from pipeline.core import files, params, pieces, stage
from pipeline.core.errors import UserError
from pipeline.results import agreement, comparison, tables

SCORES = Path("reports/scores")
AGREEMENT = Path("reports/agreement")
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
    """Read what is known of the variants in params.yaml; write the metrics, the table and the errors behind it."""
    settings = params.read()
    scoring, names = settings.scoring, settings.names
    sweep(names)
    scores = {name: read(SCORES / f"{name}.json", "score") for name in names}
    comparison.check_same(scores)
    agreements = {name: read(AGREEMENT / f"{name}.json", "agree") for name in names}
    agreement.check_same(agreements, scores)
    timings = {name: read(TIMINGS / f"{name}.json", "transcribe") for name in names}
    rows = comparison.rows(scores, agreements, timings, scoring.resamples, scoring.seed)
    table = [tables.rounded(row) for row in rows]
    files.write_json(METRICS, comparison.metrics(table))
    files.write_json(CANDIDATE, comparison.candidate(table))
    files.write_text(tables.RESULTS, tables.to_csv(table))
    files.write_text(tables.ERRORS, comparison.errors(scores))


def sweep(names: Sequence[str]) -> None:
    """Remove what dropped variants left in the folders read, and pieces of what is finished and recorded by now.

    DVC leaves the former, and hashes them with the folders: dvc.lock would then not fit the clone that never had them.
    """
    for root in ("data", "reports"):
        pieces.remove_finished(Path(root))
    for folder in (SCORES, AGREEMENT, TIMINGS):
        for file in folder.glob("*.json"):
            if file.stem not in names:
                files.remove(file)


if __name__ == "__main__":
    stage.run(main)
