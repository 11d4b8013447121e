"""Compare all variants with fp32: the metrics file for reviews, and the table of everything known."""

import argparse
import csv
import io
import json
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

RATES = ("", "_low", "_high", "_delta", "_delta_low", "_delta_high")
"""What follows the name of a split's measure in the columns of its rate and of the difference to fp32."""

SIZES = ("size_mb", "size_reduction")

MAX_IDS = 20
"""Looping utterances that results.csv names; all of them stand in the scores."""


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
    measure: str,
    errors: Mapping[str, Sequence[int]],
    one: int,
    words: Sequence[int],
    speakers: Sequence[str | None],
    resamples: int,
    seed: int,
) -> dict[str, Row]:
    """Return each variant's difference to fp32 on one split, by paired bootstrap over utterances and over speakers.

    `measure` names the rate: `errors`, of which each counts `one`, in per cent of `words`; both hold a number per
    utterance. Differences are in its unit, positive where the variant is worse. What has no unit in its name is by the
    headline's (`statistics.headline_unit`): from its p-value come `p_holm`, corrected over all variants but fp32, and
    the verdict. `smallest_detectable` is the difference that this corpus would have shown in four cases of five
    (`statistics.Estimate.detectable`), at least so many errors as the sign test needs. fp32 has no p-values; without
    known speakers those columns are None.
    """
    names = list(errors)
    wrong, total = one * np.array([errors[name] for name in names]), np.array([words])
    found = statistics.by_unit(wrong, total, speakers, resamples, seed, base=names.index(BASELINE))
    headline = dict(zip(names, found[statistics.headline_unit(speakers)], strict=True))
    p_values = {name: estimate.p_value() for name, estimate in headline.items() if name != BASELINE}
    corrected = dict(zip(p_values, statistics.holm(list(p_values.values())), strict=True))
    fewest = one * statistics.fewest_to_show(len(p_values)) if p_values else one
    (least,) = statistics.rate(np.array([fewest]), total.sum(axis=1))
    result: dict[str, Row] = {}
    for i, name in enumerate(names):
        by = {"": headline[name]} | {f"_{unit}": found[unit][i] if unit in found else None for unit in statistics.UNITS}
        tested = name != BASELINE
        row: Row = {f"{measure}_delta": headline[name].value}
        for suffix, estimate in by.items():
            low, high = estimate.interval() if estimate else (None, None)
            row |= {f"{measure}_delta_low{suffix}": low, f"{measure}_delta_high{suffix}": high}
        for suffix, estimate in by.items():
            row[f"p_value{suffix}"] = estimate.p_value() if estimate and tested else None
        result[name] = row | {
            "p_holm": corrected.get(name),
            "verdict": _verdict(headline[name].value, corrected[name]) if tested else "baseline",
            "smallest_detectable": max(headline[name].detectable(len(p_values)), float(least)) if tested else None,
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

    The timings say, under `checkpoint`, which checkpoint they measured. Whatever else they hold becomes a column, and
    so does what score tells of a split, so that what either learns to measure needs no change here.
    """
    splits = list(scores[BASELINE]["splits"])
    compared = {split: _compared(scores, split, resamples, seed) for split in splits}
    full = timings[BASELINE]["checkpoint"]["bytes"]["total"]
    table = []
    for name, score in scores.items():
        checkpoint = timings[name]["checkpoint"]
        for split in splits:
            row = {"variant": name, "split": split, **_settings(checkpoint["variant"])}
            row |= score["splits"][split] | {"looping_ids": shortened(score["splits"][split]["looping_ids"])}
            row |= compared[split][name]
            row |= sizes(checkpoint["bytes"]["total"], full)
            row["split_utterances"] = timings[name]["split_utterances"][split]
            others = flat(checkpoint, skip=["variant"]) | flat(timings[name], skip=["checkpoint", "split_utterances"])
            row |= {key: value for key, value in others.items() if key not in row}
            table.append(row)
    return table


def _compared(scores: Mapping[str, Json], split: str, resamples: int, seed: int) -> dict[str, Row]:
    spoken = {name: [u for u in score["utterances"] if u["split"] == split] for name, score in scores.items()}

    def per_utterance(name: str, *kinds: str) -> list[int]:
        return [sum(utterance[kind] for kind in kinds) for utterance in spoken[name]]

    measure = scores[BASELINE]["splits"][split]["measure"]
    if measure == statistics.WER:
        wrong = {name: per_utterance(name, "substitutions", "deletions", "insertions") for name in scores}
        one, words = 1, per_utterance(BASELINE, "hits", "substitutions", "deletions")
    else:
        wrong = {name: per_utterance(name, "insertions") for name in scores}
        one, words = statistics.PER_MINUTE, [round(1000 * utterance["duration"]) for utterance in spoken[BASELINE]]
    speakers = [utterance["speaker"] for utterance in spoken[BASELINE]]
    result = differences(measure, wrong, one, words, speakers, resamples, seed)
    alignments = {name: [utterance["alignment"] for utterance in spoken[name]] for name in scores}
    for name, row in result.items():
        paired = name != BASELINE and measure == statistics.WER  # pairs are segments of a reference's words
        z, p = statistics.mapsswe(alignments[name], alignments[BASELINE]) if paired else (None, None)
        row |= {"mapsswe_z": z, "mapsswe_p": p}
    return result


def shortened(ids: Sequence[str]) -> str:
    """Return MAX_IDS ids and the number of the others: a variant that always loops would fill the table with names."""
    more = f" and {len(ids) - MAX_IDS} more" if len(ids) > MAX_IDS else ""
    return " ".join(ids[:MAX_IDS]) + more


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
    """Round every float, so that a review shows no noise: one word of LibriSpeech's test-clean is 0.002 % of it.

    p-values have six decimals: 0.0 is less than half a millionth.
    """
    digits = {key: 6 if key.startswith("p_") or key.endswith("_p") else 3 for key in row}
    return {
        key: round(value, digits[key]) + 0.0 if isinstance(value, float) else value  # + 0.0 turns -0.0 to 0.0
        for key, value in row.items()
    }


def metrics(table: Sequence[Row]) -> dict[str, Json]:
    """Return what reviews compare: per variant its sizes, and per split its measure; no lists, for DVC drops them."""
    result: dict[str, Json] = {}
    for row in table:
        variant = result.setdefault(row["variant"], {key: row[key] for key in SIZES})
        variant[row["split"]] = {row["measure"] + rate: row[row["measure"] + rate] for rate in RATES}
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


def sweep(names: Sequence[str]) -> None:
    """Remove the scores and timings that dropped variants left, and pieces of what is finished and recorded by now.

    DVC leaves the former, and hashes them with the folders: dvc.lock would then not fit the clone that never had them.
    """
    files.remove_finished_pieces(Path("reports"))
    for folder in (SCORES, TIMINGS):
        for file in folder.glob("*.json"):
            if file.stem not in names:
                files.remove(file)


if __name__ == "__main__":
    argparse.ArgumentParser(prog="python -m pipeline.compare", description=__doc__).parse_args()
    with errors.stage("compare"):
        main()
