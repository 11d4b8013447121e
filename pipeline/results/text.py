"""How results are written in words and numbers, wherever people read them."""

import math
from collections.abc import Iterable

from pipeline.results.tables import Row

FEW = 30  # utterances below which a bootstrap interval is a rough guess: the resamples hardly differ
UNDECIDED = "undecided"  # the verdict where the speech is too little to say any other
NO_WORSE = "no worse"  # the verdict where only a loss below one of the margins is possible


def verdict(row: Row) -> str:
    """Write the verdict of a row of results.csv, with the margin where it has one."""
    margin = "" if math.isnan(row.no_worse_than) else f" than {row.no_worse_than:g}"
    return f"{row.verdict}{margin}" if row.verdict == NO_WORSE else str(row.verdict)


def number(value: float, sign: str = "-") -> str:
    """Write a rate, or with sign "+" a difference, with two decimals while they tell anything; NaN is ""."""
    if math.isnan(value):
        return ""
    decimals = 2 if abs(value) < 100 else 1 if abs(value) < 1000 else 0
    return f"{value:{sign}.{decimals}f}"


def known(value: float, form: str = ".2f") -> str:
    """Write a number in a form; what is not known, NaN or infinite, is ""."""
    return format(value, form) if math.isfinite(value) else ""


def interval(low: float, high: float, sign: str = "-") -> str:
    """Write an interval of rates, with sign "+" of differences."""
    return f"[{number(low, sign)}, {number(high, sign)}]"


def change(delta: float, low: float, high: float) -> str:
    """Write a difference with its interval; NaN is ""."""
    return "" if math.isnan(delta) else f"{number(delta, '+')} {interval(low, high, '+')}"


def extent(row: Row) -> str:
    """Return how much speech a result stands on, in words; of a sample, of how many, and that speakers share evenly."""
    if not row.words:
        return f"{row.utterances:,} recordings without speech, {row.minutes:.1f} minutes"
    sampled = row.utterances < row.split_utterances
    of, alike = (f" of {row.split_utterances:,.0f}", " alike") if sampled else ("", "")
    speakers = f" of {row.speakers:.0f} speaker{'s' if row.speakers > 1 else ''}{alike}" if row.speakers > 0 else ""
    return f"{row.utterances:,}{of} utterances{speakers}, {row.words:,} words"


def caution(row: Row) -> str:
    """Return what to say behind the extent where it is small."""
    return f" (fewer than {FEW} utterances: a rough guess)" if row.utterances < FEW else ""


def either(names: Iterable[str]) -> str:
    """Join names, each once."""
    return " or ".join(dict.fromkeys(names))
