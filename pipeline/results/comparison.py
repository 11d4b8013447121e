"""Compare variants with fp32: paired differences, verdicts, and a row of everything known per variant and split."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.core.errors import UserError
from pipeline.core.params import BASELINE, CANDIDATE
from pipeline.results import statistics, text

Json = dict[str, Any]
"""One variant's scores or timings, as score and transcribe describe them."""

Row = dict[str, Any]
"""One variant on one split: a line of results.csv."""

RATES = ("", "_low", "_high", "_delta", "_delta_low", "_delta_high")
"""What follows the name of a split's measure in the columns of its rate and of the difference to fp32."""

MAX_IDS = 20
"""Looping utterances that results.csv names; all of them stand in the scores."""


def check_same(scores: Mapping[str, Json]) -> None:
    """Raise UserError unless every variant was scored on the same utterances with the same references."""
    references = {
        name: {(utterance["split"], utterance["id"]): utterance["reference"] for utterance in score["utterances"]}
        for name, score in scores.items()
    }
    baseline = references[BASELINE]
    for name, other in references.items():
        differing = next((key for key in baseline | other if baseline.get(key) != other.get(key)), None)
        if differing is not None:
            one, two = (repr(each[differing]) if differing in each else "missing" for each in (baseline, other))
            raise UserError(
                f"{BASELINE!r} and {name!r} cannot be compared: the reference of {differing[1]!r} in split "
                f"{differing[0]!r} is {one} in one, {two} in the other; "
                "run 'python -m pipeline.transcribe' and 'python -m pipeline.score' again for both"
            )


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
    wrong, total = one * np.array(list(errors.values())), np.array([words])
    found = statistics.by_unit(wrong, total, speakers, resamples, seed, base=names.index(BASELINE))
    headline = found[statistics.headline_unit(speakers)]
    by_suffix = {"": headline} | {f"_{unit}": found.get(unit) for unit in statistics.UNITS}
    p_values = {name: each.p_value() for name, each in zip(names, headline, strict=True) if name != BASELINE}
    corrected = dict(zip(p_values, statistics.holm(list(p_values.values())), strict=True))
    result: dict[str, Row] = {}
    for i, name in enumerate(names):
        row: Row = {f"{measure}_delta": headline[i].value}
        for suffix, estimates in by_suffix.items():
            low, high = estimates[i].interval() if estimates else (None, None)
            row |= {f"{measure}_delta_low{suffix}": low, f"{measure}_delta_high{suffix}": high}
        for suffix, estimates in by_suffix.items():
            row[f"p_value{suffix}"] = estimates[i].p_value() if estimates and name in corrected else None
        row |= {"p_holm": None, "verdict": "baseline", "smallest_detectable": None}
        if name in corrected:
            tests = len(corrected)
            least = float(statistics.rate(one * np.array(statistics.fewest_to_show(tests)), total.sum()))
            verdict = "worse" if headline[i].value > 0 else "better"
            row |= {
                "p_holm": corrected[name],
                "verdict": verdict if corrected[name] < statistics.SIGNIFICANT else text.ALIKE,
                "smallest_detectable": max(headline[i].detectable(tests), least),
            }
        result[name] = row
    return result


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
    so does what score tells of a split: what either learns to measure only wants a line in `tables.COLUMNS`.
    """
    splits = list(scores[BASELINE]["splits"])
    compared = {split: _compared(scores, split, resamples, seed) for split in splits}
    full = timings[BASELINE]["checkpoint"]["bytes"]["total"]
    table = []
    for name, score in scores.items():
        checkpoint = timings[name]["checkpoint"]
        settings = {
            key: " ".join(value) if key in ("include", "exclude") else value
            for key, value in checkpoint["variant"].items()
        }
        known = {"variant", "checkpoint", "split_utterances"}
        others = flat({key: value for key, value in (checkpoint | timings[name]).items() if key not in known})
        for split in splits:
            row = {"variant": name, "split": split, **settings}
            row |= score["splits"][split] | {"looping_ids": shortened(score["splits"][split]["looping_ids"])}
            row |= compared[split][name]
            row |= sizes(checkpoint["bytes"]["total"], full)
            row["split_utterances"] = timings[name]["split_utterances"][split]
            table.append(row | {key: value for key, value in others.items() if key not in row})
    return table


def _compared(scores: Mapping[str, Json], split: str, resamples: int, seed: int) -> dict[str, Row]:
    spoken = {name: [u for u in score["utterances"] if u["split"] == split] for name, score in scores.items()}
    baseline = spoken[BASELINE]
    measure = scores[BASELINE]["splits"][split]["measure"]
    if measure == statistics.WER:
        one, kinds = 1, ["substitutions", "deletions", "insertions"]
        whole = [u["hits"] + u["substitutions"] + u["deletions"] for u in baseline]
    else:
        one, kinds = statistics.PER_MINUTE, ["insertions"]
        whole = [round(1000 * u["duration"]) for u in baseline]
    wrong = {name: [sum(u[kind] for kind in kinds) for u in each] for name, each in spoken.items()}
    result = differences(measure, wrong, one, whole, [u["speaker"] for u in baseline], resamples, seed)
    alignments = {name: [u["alignment"] for u in each] for name, each in spoken.items()}
    for name, row in result.items():
        paired = name != BASELINE and measure == statistics.WER  # pairs are segments of a reference's words
        z, p = statistics.mapsswe(alignments[name], alignments[BASELINE]) if paired else (None, None)
        row |= {"mapsswe_z": z, "mapsswe_p": p}
    return result


def shortened(ids: Sequence[str]) -> str:
    """Return MAX_IDS ids and the number of the others: a variant that always loops would fill the table with names."""
    more = f" and {len(ids) - MAX_IDS} more" if len(ids) > MAX_IDS else ""
    return " ".join(ids[:MAX_IDS]) + more


def flat(entries: Json) -> Row:
    """Return an object's values by key: of an object inside, each as <key>_<its key>; of a list, its length."""
    row: Row = {}
    for key, value in entries.items():
        inner = flat(value) if isinstance(value, dict) else {"": len(value) if isinstance(value, list) else value}
        row |= {f"{key}_{name}" if name else key: entry for name, entry in inner.items()}
    return row


def metrics(table: Sequence[Row]) -> dict[str, Json]:
    """Return what reviews compare: per variant its sizes, and per split its measure; no lists, for DVC drops them."""
    result: dict[str, Json] = {}
    for row in table:
        variant = result.setdefault(row["variant"], {key: row[key] for key in ("size_mb", "size_reduction")})
        variant[row["split"]] = {row["measure"] + rate: row[row["measure"] + rate] for rate in RATES}
    return result


def candidate(table: Sequence[Row]) -> Json:
    """Return what a list of experiments shows of each: the candidate's size, its rates and their change to fp32's."""
    result: Json = {}
    for row in table:
        if row["variant"] == CANDIDATE:
            measure = row["measure"]
            vs_fp32 = text.change(*(row[f"{measure}_delta{bound}"] for bound in ("", "_low", "_high")))
            result |= {"size_mb": row["size_mb"], row["split"]: {measure: row[measure], "vs_fp32": vs_fp32}}
    return result
