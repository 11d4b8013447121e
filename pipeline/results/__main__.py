"""Print the results as a table to read: size, word error rate, and its difference to fp32 with a verdict.

Where nothing is said, inserted words per minute of audio stand in the place of word error rate.
"""

import io
from collections.abc import Sequence

import pandas as pd
from rich.console import Console
from rich.table import Table

from pipeline.core import commands, stage
from pipeline.results.tables import FIGURES, INDEX, MEASURES, RESULTS, Row, by_split, read
from pipeline.results.text import caution, extent, interval, number, verdict

NOTES = """\
95 %: bootstrap interval of the difference to fp32, paired, by speaker or utterance as said above.
Verdict: by sign flips, after Holm's correction over all variants, unlike the intervals. Loss<0.3: if it is worse, then
by less than 0.3. Undecided: this speech is too little to show it worse, better, or losing less than 1.0.
Shows: the true difference that this corpus would find significant in four cases of five.
KL: how far its next tokens' distributions are from fp32's, nats a token; flips: tokens whose likeliest is another.
"""
INSERTED = "I/min: inserted words per minute of audio, in which nothing is said.\n"
NO_LOOPS = "No loops: WER % without the utterances that loop; -: all of them do.\n"


def notes(results: pd.DataFrame) -> str:
    """Return what the columns mean, of those that the tables of these results have."""
    splits = by_split(results).values()
    return NOTES + INSERTED * any(not split[0].words for split in splits) + NO_LOOPS * any(map(_loops, splits))


def _loops(rows: Sequence[Row]) -> bool:
    """Tell whether the table of a split has the column `no loops`."""
    return any(row.looping and not pd.isna(row.wer_without_loops) for row in rows)


def table(rows: Sequence[Row]) -> Table:
    """Return the table of a split, under 120 characters wide for names of variants up to 25."""
    loops = _loops(rows)
    gap = 1 if loops else 2  # with one column more, lines would have over 120 characters
    grid = Table(box=None, pad_edge=False, padding=(0, gap, 0, 0), header_style="bold")
    heads = ["variant", "MB", "saved", MEASURES[rows[0].measure].head, "vs fp32", "95 %", "verdict", "shows"]
    for head in [*heads, "KL", "flips", "loops", *["no loops"] * loops, "RTFx"]:
        grid.add_column(head, justify="left" if head in ("variant", "verdict") else "right", no_wrap=True)
    for row in rows:
        baseline = row.verdict == "baseline"
        change = [number(row.delta, "+"), interval(row.delta_low, row.delta_high, "+")]
        cells = [row.variant, f"{row.size_mb:.1f}", f"{round(row.size_reduction, 1) + 0.0:.1f}%", number(row.rate)]
        cells += ["", ""] if baseline else change
        cells += [verdict(row).replace("no worse than ", "loss<")]  # or the lines would be too long
        cells += [number(row.smallest_detectable), *(["", ""] if baseline else _distance(row)), f"{row.looping}"]
        cells += [(number(row.wer_without_loops) or "-") if row.looping else ""] * loops
        grid.add_row(*cells, f"{row.rtfx:.1f}")
    return grid


def _distance(row: Row) -> list[str]:
    """Write KL divergence and flips; an earlier study's results have none."""
    if pd.isna(row.kl):
        return ["", ""]
    return [f"{row.kl:.4f}" if row.kl < 1 else number(row.kl), f"{row.flips:.1f}%"]


def processors(results: pd.DataFrame) -> list[str]:
    """Name the processors or GPUs that results were made on, with their instructions where those are known."""
    made = results[["machine", "instructions"]].drop_duplicates().itertuples(index=False)
    return [f"{machine} ({instructions})" if instructions else machine for machine, instructions in made]


def committed() -> pd.DataFrame | None:
    """Return the results of the last commit; None where there is no git, no commit or no such file in it."""
    try:
        done = commands.git("show", f"HEAD:./{RESULTS}")
        if done.returncode:
            return None
        found = pd.read_csv(io.StringIO(done.stdout), dtype=str, keep_default_na=False)
        return found.assign(instructions=found.get("instructions", "")) if "machine" in found else None
    except (OSError, ValueError):
        return None


def elsewhere(results: pd.DataFrame, before: pd.DataFrame) -> str:
    """Return a sentence where earlier results were made on other processors; "" where they were not."""
    if not (before.instructions.all() and results.instructions.all()):  # earlier ones do not tell: the names alone
        results, before = results.assign(instructions=""), before.assign(instructions="")
    if set(processors(results)) == set(processors(before)):
        return ""
    return (
        f"The committed results were made on {'; '.join(processors(before))}:\n"
        "quantized kernels may round differently there, so 'dvc metrics diff' may show changes that nobody made."
    )


def show(results: pd.DataFrame) -> None:
    """Print a table per split, and what the columns mean."""
    # Wide enough that no line is wrapped: a terminal that is narrower does so itself.
    console = Console(width=1000, markup=False, highlight=False, emoji=False)
    for split, rows in by_split(results).items():
        title = f"{split}: {extent(rows[0])}; intervals by {rows[0].interval_unit}{caution(rows[0])}"
        console.print(title, table(rows), "", sep="\n")
    console.print(notes(results), end="")


def main() -> None:
    """Print the table of reports/results.csv, where they were made, and where the page is."""
    results = read(RESULTS)
    show(results)
    print(f"Made on: {'; '.join(processors(results))}.")
    before = committed()
    if before is not None and (sentence := elsewhere(results, before)):
        print(sentence)
    print(f"Figures: {FIGURES}/; everything known: {RESULTS}; the page to look at: {INDEX}")


if __name__ == "__main__":
    stage.run(main)
