"""Compare all variants with fp32: the metrics file for reviews, and the table of everything known."""

import argparse
import csv
import io
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import errors, files, params, statistics
from pipeline.errors import UserError
from pipeline.params import BASELINE

SCORES = Path("reports/scores")
TIMINGS = Path("reports/timings")
METRICS = Path("reports/metrics.json")
RESULTS = Path("reports/results.csv")

Json = dict[str, Any]
"""One variant's scores or timings, as score and transcribe describe them."""

Row = dict[str, Any]
"""One variant on one split: a line of results.csv."""

RATES = ("wer", "wer_low", "wer_high", "wer_delta", "wer_delta_low", "wer_delta_high")
SIZES = ("size_mb", "size_reduction")
COUNTS = ("utterances", "words", "hits", "substitutions", "deletions", "insertions", "looping")


def check_same(scores: Mapping[str, Json]) -> None:
    """Raise UserError unless every variant was scored on the same utterances with the same references."""
    baseline = _references(scores[BASELINE])
    for name, score in scores.items():
        other = _references(score)
        differing = next((key for key in baseline | other if baseline.get(key) != other.get(key)), None)
        if differing is not None:
            raise UserError(
                f"{BASELINE!r} and {name!r} cannot be compared: the reference of {differing[1]!r} in split "
                f"{differing[0]!r} is {_shown(baseline, differing)} in one, {_shown(other, differing)} in the other; "
                "run 'python -m pipeline.transcribe' and 'python -m pipeline.score' again for both"
            )


def _references(score: Json) -> dict[tuple[str, str], str]:
    return {(utterance["split"], utterance["id"]): utterance["reference"] for utterance in score["utterances"]}


def _shown(references: dict[tuple[str, str], str], key: tuple[str, str]) -> str:
    return repr(references[key]) if key in references else "missing"


def differences(
    wrong_words: Mapping[str, Sequence[int]], words: Sequence[int], resamples: int, seed: int
) -> dict[str, Row]:
    """Return each variant's difference to fp32 on one split, by paired bootstrap over the utterances.

    `wrong_words` holds one number of word errors per utterance for every variant, `words` those of the references.
    Differences are in points of WER, positive where the variant is worse. `p_holm` is corrected over all variants but
    fp32, and the verdict is drawn from it; fp32 itself has no p-values.
    """
    names = list(wrong_words)
    wrong, total = np.array([wrong_words[name] for name in names]), np.array(words)
    rates = statistics.rate(wrong.sum(axis=1), total.sum())
    sampled = statistics.bootstrap(wrong, total, resamples, seed)
    base = names.index(BASELINE)
    p_values = {name: statistics.p_value(sampled[i] - sampled[base]) for i, name in enumerate(names) if i != base}
    corrected = dict(zip(p_values, statistics.holm(list(p_values.values())), strict=True))
    result = {}
    for i, name in enumerate(names):
        low, high = statistics.interval(sampled[i] - sampled[base])
        delta = float(rates[i] - rates[base])
        result[name] = {
            "wer_delta": delta,
            "wer_delta_low": low,
            "wer_delta_high": high,
            "p_value": p_values.get(name),
            "p_holm": corrected.get(name),
            "verdict": "baseline" if i == base else _verdict(delta, corrected[name]),
        }
    return result


def _verdict(delta: float, p_holm: float) -> str:
    if p_holm >= statistics.SIGNIFICANT:
        return "no significant difference"
    return "worse" if delta > 0 else "better"


def sizes(total: int, full: int) -> Row:
    """Return the size of `total` bytes in MB (10^6 bytes), and what it saves in per cent: of `full`, which is fp32's
    bytes, and of half as many, which is float16's."""
    return {
        "size_mb": total / 1e6,
        "size_reduction": 100 * (1 - total / full),
        "size_reduction_fp16": 100 * (1 - 2 * total / full),
    }


def rows(scores: Mapping[str, Json], timings: Mapping[str, Json], resamples: int, seed: int) -> list[Row]:
    """Return one row per variant and split with everything that is known, in the order of `scores` (pure).

    The timings say, under `checkpoint`, which checkpoint they measured. Whatever else they hold becomes a column, so
    that what transcribe learns to measure needs no change here.
    """
    splits = list(scores[BASELINE]["splits"])
    compared = {split: _differences(scores, split, resamples, seed) for split in splits}
    full = timings[BASELINE]["checkpoint"]["bytes"]["total"]
    table = []
    for name, score in scores.items():
        checkpoint = timings[name]["checkpoint"]
        for split in splits:
            row = {"variant": name, "split": split, **_settings(checkpoint["variant"])}
            row |= {key: score["splits"][split][key] for key in (*COUNTS, *RATES[:3])}
            row |= compared[split][name]
            row |= sizes(checkpoint["bytes"]["total"], full)
            others = flat(checkpoint, skip=["variant"]) | flat(timings[name], skip=["checkpoint"])
            row |= {key: value for key, value in others.items() if key not in row}
            table.append(row)
    return table


def _differences(scores: Mapping[str, Json], split: str, resamples: int, seed: int) -> dict[str, Row]:
    def per_utterance(name: str, *kinds: str) -> list[int]:
        return [sum(u[kind] for kind in kinds) for u in scores[name]["utterances"] if u["split"] == split]

    wrong = {name: per_utterance(name, "substitutions", "deletions", "insertions") for name in scores}
    words = per_utterance(BASELINE, "hits", "substitutions", "deletions")
    return differences(wrong, words, resamples, seed)


def _settings(variant: Json) -> Row:
    return {key: " ".join(value) if isinstance(value, list) else value for key, value in variant.items()}


def flat(entries: Json, skip: Sequence[str] = ()) -> Row:
    """Return an object's values by key: of an object inside, each as <key>_<its key>; of a list, its length."""
    row: Row = {}
    for key, value in entries.items():
        if key in skip:
            continue
        if isinstance(value, dict):
            row |= {f"{key}_{inner}": entry for inner, entry in flat(value).items()}
        else:
            row[key] = len(value) if isinstance(value, list) else value
    return row


def rounded(row: Row) -> Row:
    """Round every float, so that a review shows no noise: one word of LibriSpeech's test-clean is 0.002 % of it."""
    digits = {"p_value": 5, "p_holm": 5}  # they go in steps of 2 / (resamples + 1)
    return {
        key: round(value, digits.get(key, 3)) + 0.0 if isinstance(value, float) else value  # + 0.0 turns -0.0 to 0.0
        for key, value in row.items()
    }


def metrics(table: Sequence[Row]) -> dict[str, Json]:
    """Return what reviews compare: per variant its sizes, and per split its rates; no lists, for DVC drops them."""
    result: dict[str, Json] = {}
    for row in table:
        variant = result.setdefault(row["variant"], {key: row[key] for key in SIZES})
        variant[row["split"]] = {key: row[key] for key in RATES}
    return result


def to_csv(table: Sequence[Row]) -> str:
    """Return rows as CSV with every column that any row has; None is empty."""
    columns = dict.fromkeys(column for row in table for column in row)
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    return text.getvalue()


def read(path: Path, stage: str) -> Json:
    """Read a JSON file that `stage` writes; raise UserError saying how to make it."""
    try:
        value: Json = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is not here; run 'dvc repro', or 'python -m pipeline.{stage} {path.stem}'") from None
    except ValueError:
        raise UserError(f"{path} is not valid JSON; run 'python -m pipeline.{stage} {path.stem}' again") from None
    return value


def main() -> None:
    """Read scores and timings of the variants in params.yaml; write metrics.json and results.csv."""
    settings = params.read()
    scoring, names = settings.scoring, settings.names
    sweep(names)
    scores = {name: read(SCORES / f"{name}.json", "score") for name in names}
    check_same(scores)
    timings = {name: read(TIMINGS / f"{name}.json", "transcribe") for name in names}
    table = [rounded(row) for row in rows(scores, timings, scoring.resamples, scoring.seed)]
    files.write_json(METRICS, metrics(table))
    files.write_text(RESULTS, to_csv(table))
    announce(scoring.resamples, len(names) - 1)


def sweep(names: Sequence[str]) -> None:
    """Remove the scores and timings that dropped variants left.

    DVC leaves them, and hashes them with the folders: dvc.lock would then not fit the clone that never had them.
    """
    for folder in (SCORES, TIMINGS):
        for file in folder.glob("*.json"):
            if file.stem not in names:
                files.remove(file)


def announce(resamples: int, tests: int) -> None:
    """Say so where so few resamples were drawn that not even the clearest of `tests` differences is significant."""
    needed = round(2 * tests / statistics.SIGNIFICANT)
    if resamples < needed:
        print(
            f"compare: with scoring: resamples: {resamples} none of {tests} differences can be significant after "
            f"Holm's correction; set it to {needed} or more",
            file=sys.stderr,
        )


if __name__ == "__main__":
    argparse.ArgumentParser(prog="python -m pipeline.compare", description=__doc__).parse_args()
    with errors.stage("compare"):
        main()
