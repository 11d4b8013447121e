"""Print the results as a table to read: size, word error rate, and its difference to fp32 with a verdict."""

import argparse
import csv
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import errors
from pipeline.errors import UserError

RESULTS = Path("reports/results.csv")
FIGURES = Path("reports/figures")

FEW = 30
"""Utterances below which a bootstrap interval is a rough guess: the resamples hardly differ from one another."""

UNKNOWN = ""
"""What stands in results.csv where there is no value."""


@dataclass(frozen=True)
class Result:
    """What people look at first of one line of results.csv: sizes in MB, rates and differences in per cent points."""

    variant: str
    split: str
    backend: str
    utterances: int
    speakers: int | None
    """None where they are not known."""
    words: int
    looping: int
    size_mb: float
    size_reduction: float
    wer: float
    wer_low: float
    wer_high: float
    wer_delta: float
    wer_delta_low: float
    wer_delta_high: float
    interval_unit: str
    """What the intervals are by: utterance or speaker."""
    verdict: str
    smallest_detectable: float | None
    """None for fp32."""
    rtfx: float


KINDS: dict[str, Any] = typing.get_type_hints(Result)


def read(path: Path = RESULTS) -> list[Result]:
    """Read results.csv, one Result per variant and split in the file's order; raise UserError where it is not here."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    except FileNotFoundError:
        raise UserError(f"{path} is not here; run 'dvc repro compare' first") from None
    try:
        if not rows:
            raise ValueError("no rows")
        return [Result(**{column: _value(kind, row[column]) for column, kind in KINDS.items()}) for row in rows]
    except (KeyError, ValueError) as error:
        raise UserError(f"{path} is not what compare writes ({error}); run 'dvc repro compare' again") from None


def _value(kind: Any, text: str) -> Any:
    if type(None) in typing.get_args(kind):
        return _value(typing.get_args(kind)[0], text) if text != UNKNOWN else None
    return kind(text)


def by_split(results: Sequence[Result]) -> dict[str, list[Result]]:
    """Group results by split, in the order of the file."""
    splits = dict.fromkeys(result.split for result in results)
    return {split: [result for result in results if result.split == split] for split in splits}


HEADER = ("variant", "MB", "saved", "WER %", "95 %", "vs fp32", "95 %", "verdict", "shows", "loops", "RTFx")
LEFT = ("variant", "verdict")

NOTES = """\
95 %: bootstrap intervals, paired where against fp32, by speaker or utterance as said above.
Verdict: after Holm's correction over all variants, unlike the intervals; n.s.: no significant difference.
Shows: the true difference that this corpus would find significant in four cases of five.
"""


def to_text(results: Sequence[Result]) -> str:
    """Return one aligned table per split, under 120 characters wide for names of variants up to 25."""
    return "\n\n".join(_table(split, group) for split, group in by_split(results).items())


def _table(split: str, results: Sequence[Result]) -> str:
    cells = [HEADER, *(_cells(result) for result in results)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    title = f"{split}: {extent(results[0])}; intervals by {results[0].interval_unit}"
    if results[0].utterances < FEW:
        title += f" (fewer than {FEW} utterances: a rough guess)"
    return "\n".join([title, *(_line(row, widths) for row in cells)])


def extent(result: Result) -> str:
    """Return how much speech a result stands on, in words."""
    speakers = f" of {result.speakers} speaker{'s' if result.speakers > 1 else ''}" if result.speakers else ""
    return f"{result.utterances:,} utterances{speakers}, {result.words:,} words"


def _cells(result: Result) -> tuple[str, ...]:
    difference = f"[{_number(result.wer_delta_low, '+')}, {_number(result.wer_delta_high, '+')}]"
    baseline = result.verdict == "baseline"
    return (
        result.variant,
        f"{result.size_mb:.1f}",
        f"{result.size_reduction:.1f}%",
        _number(result.wer),
        f"[{_number(result.wer_low)}, {_number(result.wer_high)}]",
        "" if baseline else _number(result.wer_delta, "+"),
        "" if baseline else difference,
        # The whole words would make lines of over 120 characters.
        "n.s." if result.verdict == "no significant difference" else result.verdict,
        "" if result.smallest_detectable is None else _number(result.smallest_detectable),
        str(result.looping),
        f"{result.rtfx:.1f}",
    )


def _number(value: float, sign: str = "-") -> str:
    decimals = 2 if abs(value) < 100 else 1 if abs(value) < 1000 else 0  # no more than four digits tell anything
    return f"{value:{sign}.{decimals}f}"


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    aligned = [
        cell.ljust(width) if name in LEFT else cell.rjust(width)
        for name, cell, width in zip(HEADER, row, widths, strict=True)
    ]
    return "  ".join(aligned).rstrip()


def main() -> None:
    """Print the table of reports/results.csv, and where the figures are."""
    print(to_text(read()))
    print(f"\n{NOTES}", end="")
    print(f"Figures: {FIGURES}/wer_vs_size.png and {FIGURES}/wer.png; everything known: {RESULTS}")


if __name__ == "__main__":
    argparse.ArgumentParser(prog="python -m pipeline.table", description=__doc__).parse_args()
    with errors.stage("table"):
        main()
