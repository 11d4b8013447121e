"""Print the results as a table to read: size, word error rate, and its difference to fp32 with a verdict.

Where nothing is said, inserted words per minute of audio stand in the place of word error rate.
"""

import argparse
import csv
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pipeline import errors
from pipeline.errors import UserError

RESULTS = Path("reports/results.csv")
FIGURES = Path("reports/figures")

FEW = 30
"""Utterances below which a bootstrap interval is a rough guess: the resamples hardly differ from one another."""

UNKNOWN = ""
"""What stands in results.csv where there is no value."""


@dataclass(frozen=True)
class Measure:
    """How the rate that leads a split is written."""

    name: str
    head: str
    """At the top of its column."""
    title: str
    """In full, with its unit."""
    unit: str
    """Behind a value."""


MEASURES = {
    "wer": Measure("WER", "WER %", "word error rate, %", " %"),
    "insertions_per_minute": Measure("insertion rate", "I/min", "inserted words per minute", "/min"),
}
"""By what results.csv calls them."""


@dataclass(frozen=True)
class Result:
    """What people look at first of one line of results.csv: sizes in MB, and the split's rate in its own unit."""

    variant: str
    split: str
    backend: str
    utterances: int
    speakers: int | None
    """None where they are not known."""
    words: int
    minutes: float
    looping: int
    size_mb: float
    size_reduction: float
    wer_without_loops: float | None
    """In per cent; None where nothing is left, or nothing was said."""
    measure: str
    """A key of MEASURES: what `rate` and `delta` are, with their intervals."""
    rate: float
    rate_low: float
    rate_high: float
    delta: float
    delta_low: float
    delta_high: float
    interval_unit: str
    """What the intervals are by: utterance or speaker."""
    verdict: str
    smallest_detectable: float | None
    """None for fp32."""
    rtfx: float
    split_utterances: int | None = field(default=None, kw_only=True)
    """Utterances that were there to choose `utterances` from; None in results of before this was recorded."""


R = TypeVar("R", bound=Result)
T = TypeVar("T")
Row = dict[str, str]
"""A line of a CSV file, by column."""


def read(path: Path = RESULTS) -> list[Result]:
    """Read results.csv, one Result per variant and split in the file's order; raise UserError where it is not here."""
    return read_results(path, Result)


def read_results(path: Path, kind: type[R]) -> list[R]:
    """Do the same for a `kind` of Result that wants more columns."""
    return read_csv(path, kind, "dvc repro compare", _neutral)


def read_csv(path: Path, kind: type[T], maker: str, adapt: Callable[[Row], Row] = dict) -> list[T]:
    """Read a CSV file's rows, each adapted, as instances of a dataclass whose fields are called as the columns.

    A column may be missing where its field has a default. Raises UserError where the file is not here, empty or another
    one; `maker` is the command that writes it.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    except FileNotFoundError:
        raise UserError(f"{path} is not here; run '{maker}' first") from None
    hints = typing.get_type_hints(kind)
    try:
        if not rows:
            raise ValueError("no rows")
        needed = [key for key in hints if key in rows[0] or not hasattr(kind, key)]
        return [kind(**{key: _value(hints[key], row[key]) for key in needed}) for row in map(adapt, rows)]
    except (KeyError, ValueError) as error:
        raise UserError(f"{path} is not what '{maker}' writes ({error}); run it again") from None


def _neutral(row: Row) -> Row:
    measure = row["measure"]
    if measure not in MEASURES:
        raise ValueError(f"measure {measure!r}")
    neutral = dict(row)
    for bound in ("", "_low", "_high"):
        neutral |= {f"rate{bound}": row[f"{measure}{bound}"], f"delta{bound}": row[f"{measure}_delta{bound}"]}
    return neutral


def _value(kind: Any, text: str) -> Any:
    if type(None) in typing.get_args(kind):
        return _value(typing.get_args(kind)[0], text) if text != UNKNOWN else None
    return kind(text)


def by_split(results: Sequence[Result]) -> dict[str, list[Result]]:
    """Group results by split, in the order of the file."""
    splits = dict.fromkeys(result.split for result in results)
    return {split: [result for result in results if result.split == split] for split in splits}


LEFT = ("variant", "verdict")

NOTES = """\
95 %: bootstrap intervals, paired where against fp32, by speaker or utterance as said above.
Verdict: after Holm's correction over all variants, unlike the intervals; n.s.: no significant difference.
Shows: the true difference that this corpus would find significant in four cases of five.
"""
INSERTED = "I/min: inserted words per minute of audio, in which nothing is said.\n"
NO_LOOPS = "No loops: WER % without the utterances that loop; -: all of them do.\n"


def notes(results: Sequence[Result]) -> str:
    """Return what the columns mean, of those that the tables of these results have."""
    splits = by_split(results).values()
    return NOTES + INSERTED * any(not split[0].words for split in splits) + NO_LOOPS * any(map(_loops, splits))


def _loops(split: Sequence[Result]) -> bool:
    """Tell whether the table of a split has the column `no loops`."""
    return any(result.looping and result.wer_without_loops is not None for result in split)


def to_text(results: Sequence[Result]) -> str:
    """Return one aligned table per split, under 120 characters wide for names of variants up to 25."""
    return "\n\n".join(_table(split, group) for split, group in by_split(results).items())


def _table(split: str, results: Sequence[Result]) -> str:
    loops = _loops(results)
    rows = [_cells(result, loops) for result in results]
    heads = [head for head, _ in rows[0]]
    cells = [heads, *([cell for _, cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    gap = " " if loops else "  "  # with one column more, lines would have over 120 characters
    title = f"{split}: {extent(results[0])}; intervals by {results[0].interval_unit}"
    if results[0].utterances < FEW:
        title += f" (fewer than {FEW} utterances: a rough guess)"
    return "\n".join([title, *(gap.join(_aligned(heads, row, widths)).rstrip() for row in cells)])


def extent(result: Result) -> str:
    """Return how much speech a result stands on, in words; of a sample, of how many, and that speakers share evenly."""
    if not result.words:
        return f"{result.utterances:,} recordings without speech, {result.minutes:.1f} minutes"
    sampled = result.split_utterances is not None and result.utterances < result.split_utterances
    of, alike = (f" of {result.split_utterances:,}", " alike") if sampled else ("", "")
    speakers = f" of {result.speakers} speaker{'s' if result.speakers > 1 else ''}{alike}" if result.speakers else ""
    return f"{result.utterances:,}{of} utterances{speakers}, {result.words:,} words"


def _cells(result: Result, loops: bool) -> list[tuple[str, str]]:
    """Return a line of the table: the head of each column and what stands there."""
    baseline = result.verdict == "baseline"
    difference = f"[{number(result.delta_low, '+')}, {number(result.delta_high, '+')}]"
    without = "-" if result.wer_without_loops is None else number(result.wer_without_loops)
    return [
        ("variant", result.variant),
        ("MB", f"{result.size_mb:.1f}"),
        ("saved", f"{result.size_reduction:.1f}%"),
        (MEASURES[result.measure].head, number(result.rate)),
        ("95 %", f"[{number(result.rate_low)}, {number(result.rate_high)}]"),
        ("vs fp32", "" if baseline else number(result.delta, "+")),
        ("95 %", "" if baseline else difference),
        # The whole words would make lines of over 120 characters.
        ("verdict", "n.s." if result.verdict == "no significant difference" else result.verdict),
        ("shows", "" if result.smallest_detectable is None else number(result.smallest_detectable)),
        ("loops", str(result.looping)),
        *([("no loops", without if result.looping else "")] if loops else []),
        ("RTFx", f"{result.rtfx:.1f}"),
    ]


def number(value: float, sign: str = "-") -> str:
    """Write a rate, with sign "+" a difference, with two decimals as long as they tell anything."""
    decimals = 2 if abs(value) < 100 else 1 if abs(value) < 1000 else 0
    return f"{value:{sign}.{decimals}f}"


def markdown(*rows: Sequence[str]) -> str:
    """Return rows, the first of them the heads, as a Markdown table."""
    heads, *others = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([heads, f"|{' --- |' * len(rows[0])}", *others])


def _aligned(heads: Sequence[str], row: Sequence[str], widths: Sequence[int]) -> list[str]:
    return [
        cell.ljust(width) if head in LEFT else cell.rjust(width)
        for head, cell, width in zip(heads, row, widths, strict=True)
    ]


def main() -> None:
    """Print the table of reports/results.csv, and where the figures are."""
    results = read()
    print(to_text(results))
    print(f"\n{notes(results)}", end="")
    print(f"Figures: {FIGURES}/wer_vs_size.png and {FIGURES}/wer.png; everything known: {RESULTS}")


if __name__ == "__main__":
    argparse.ArgumentParser(prog="python -m pipeline.table", description=__doc__).parse_args()
    with errors.stage("table"):
        main()
