"""Compare variants with fp32: paired differences, verdicts, and a row of everything known per variant and split."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from pipeline.core.errors import UserError
from pipeline.core.params import BASELINE, CANDIDATE
from pipeline.core.variant import Variant
from pipeline.results import agreement, changes, text
from pipeline.scoring import statistics
from pipeline.scoring.statistics import Speakers

Json = dict[str, Any]  # one variant's scores or timings, as score and transcribe describe them
Row = dict[str, Any]  # one variant on one split: a line of results.csv

RATES = ("", "_low", "_high", "_delta", "_delta_low", "_delta_high")
"""What follows the name of a split's measure in the columns of its rate and of the difference to fp32."""

MAX_IDS = 20  # looping utterances that results.csv names; all of them stand in the scores


def check_same(scores: Mapping[str, Json]) -> None:
    """Raise UserError unless every variant was scored on the same utterances with the same references."""
    references = {
        name: {(u["split"], u["id"]): u["reference"] for u in score["utterances"]} for name, score in scores.items()
    }
    baseline = references[BASELINE]
    for name, other in references.items():
        key = next((key for key in baseline | other if baseline.get(key) != other.get(key)), None)
        if key:
            one, two = (repr(each[key]) if key in each else "missing" for each in (baseline, other))
            raise UserError(
                f"{BASELINE!r} and {name!r} cannot be compared: the reference of {key[1]!r} in split {key[0]!r} is "
                f"{one} in one, {two} in the other; "
                "run 'python -m pipeline.transcribe' and 'python -m pipeline.score' again for both"
            )


def differences(
    measure: str, errors: Mapping[str, list[int]], words: list[int], speakers: Speakers, resamples: int, seed: int
) -> dict[str, Row]:
    """Return each variant's difference to fp32 on one split: intervals by paired bootstrap, p-values by sign flips.

    `errors` and `words` (of silence: milliseconds) hold a number per utterance. Differences are in the unit of
    `measure`, positive where the variant is worse. Columns that name no unit are by `statistics.headline_unit`,
    p-values by `statistics.deciding_unit`. `p_holm` and `p_no_worse_*` are corrected over all variants but fp32, and
    give the verdict. `smallest_detectable` is `statistics.Estimate.detectable`, but at least as many errors as the sign
    test needs. fp32 has no p-values; without known speakers their columns are None.
    """
    one = 1 if measure == statistics.WER else statistics.PER_MINUTE
    names = list(errors)
    wrong, total = one * np.array(list(errors.values())), np.array([words])
    base = names.index(BASELINE)
    found = statistics.by_unit(wrong, total, speakers, resamples, seed, base)
    headline = found[statistics.headline_unit(speakers)]
    tests = max(len(names) - 1, 1)
    unit = statistics.deciding_unit(speakers, tests)
    differing = {name: of - wrong[base] for name, of in zip(names, wrong, strict=True) if name != BASELINE}
    p_values = _p_values(one, differing, total, speakers, unit, seed)
    by_suffix = {"": headline} | {f"_{unit}": found.get(unit) for unit in statistics.UNITS}
    least = float(statistics.rate(one * np.array(statistics.fewest_to_show(tests)), total.sum()))
    result: dict[str, Row] = {}
    for i, (name, leading) in enumerate(zip(names, headline, strict=True)):
        row: Row = {f"{measure}_delta": leading.value}
        for suffix, estimates in by_suffix.items():
            low, high = estimates[i].interval() if estimates else (None, None)
            row |= {f"{measure}_delta_low{suffix}": low, f"{measure}_delta_high{suffix}": high}
        row |= {column: p_values.get(column, {}).get(name) for column in P_VALUES}
        row |= {"test_unit": unit, "verdict": "baseline", "no_worse_than": None}
        row |= {"smallest_detectable": None, "units_to_decide": None}
        if name != BASELINE:
            row |= _verdict(row, leading.value)
            row["smallest_detectable"] = max(leading.detectable(tests), least)
        if row["verdict"] == text.UNDECIDED:
            row["units_to_decide"] = _to_decide(found[unit][i], tests, least)
        result[name] = row
    return result


def _verdict(row: Row, delta: float) -> Row:
    fits = (margin for margin in statistics.MARGINS if row[no_worse(margin)] < statistics.ONE_SIDED)
    least = next(fits, None)
    verdict = text.UNDECIDED if least is None else text.NO_WORSE
    if row["p_holm"] < statistics.SIGNIFICANT:
        verdict = "worse" if delta > 0 else "better"
    return {"verdict": verdict, "no_worse_than": least}


def _to_decide(found: statistics.Estimate, tests: int, least: float) -> float:
    """Return how many units would decide, by estimate: more than there are, as these do not.

    Without an error nothing differed, or all alike: then so many that few errors are less than the margin.
    """
    times = found.to_decide(tests) if found.error else least / statistics.MARGINS[-1]
    return float(max(math.ceil(times * found.units), found.units + 1))


def _p_values(
    one: int,
    differing: dict[str, statistics.Numbers],
    total: statistics.Numbers,
    speakers: Speakers,
    unit: str,
    seed: int,
) -> dict[str, dict[str, float]]:
    """Return each column of p-values, by variant; none by speaker where they are not known.

    `differing` has each variant's errors more than fp32's, an utterance a column, of which one weighs `one`.
    """
    by_utterance = np.array([*differing.values()]).reshape(len(differing), total.shape[1])
    by_unit = {"utterance": (by_utterance, total)}
    of_speakers, whole = (statistics.by_speaker(values, speakers) for values in (by_utterance, total))
    if of_speakers is not None and whole is not None:
        by_unit["speaker"] = of_speakers, whole
    found: dict[str, statistics.Floats | list[float]] = {
        f"p_value_{each}": statistics.sign_flips(of, seed)[0] for each, (of, _) in by_unit.items()
    }
    found["p_value"] = found[f"p_value_{unit}"]
    found["p_holm"] = statistics.holm([*found["p_value"]])
    sums, of = by_unit[unit]
    for margin in statistics.MARGINS:
        rare = statistics.as_few_new(by_utterance / one, total.sum() / one, margin)
        flipped = statistics.sign_flips(sums - margin / 100 * of, seed)[1]
        found[no_worse(margin)] = statistics.holm(np.maximum(rare, flipped).tolist())
    return {column: dict(zip(differing, map(float, of), strict=True)) for column, of in found.items()}


def no_worse(margin: float) -> str:
    """Return the column with the p-value of a loss as large as a margin."""
    return f"p_no_worse_{margin}".replace(".", "_")


P_VALUES = ("p_value", *(f"p_value_{unit}" for unit in statistics.UNITS), "p_holm", *map(no_worse, statistics.MARGINS))
"""Columns, which are empty for fp32."""


def sizes(total: int, full: int) -> Row:
    """Return `total` bytes in MB (10^6 bytes), and the savings over fp32's `full` bytes and float16's, in per cent."""
    saved, saved_fp16 = (100 * (1 - times * total / full) for times in (1, 2))
    return {"size_mb": total / 1e6, "size_reduction": saved, "size_reduction_fp16": saved_fp16}


def rows(
    scores: Mapping[str, Json],
    agreements: Mapping[str, Json],
    timings: Mapping[str, Json],
    resamples: int,
    seed: int,
) -> list[Row]:
    """Return one row per variant and split with everything that is known, in the order of `scores` (pure).

    All that the timings (under `checkpoint`: of the checkpoint) or the scores or the agreement of a split hold becomes
    a column: a new measurement only needs a line in `tables.COLUMNS`.
    """
    compared = {split: _compared(scores, split, resamples, seed) for split in scores[BASELINE]["splits"]}
    agreeing = {split: agreement.columns(agreements, split, resamples, seed) for split in compared}
    bytes_of = {name: timings[name]["checkpoint"]["bytes"]["total"] for name in scores}
    by_size = sorted((name for name in scores if name not in (BASELINE, CANDIDATE)), key=bytes_of.__getitem__)
    beside = {split: agreement.neighbours(agreements, split, by_size, seed) for split in compared}
    full = timings[BASELINE]["checkpoint"]["bytes"]["total"]
    table = []
    for name, score in scores.items():
        facts = timings[name]["checkpoint"] | timings[name]
        settings = {key: " ".join(of) if isinstance(of, list) else of for key, of in facts["variant"].items()}
        by_split = ("split_utterances", "conversions")
        others = flat({key: facts[key] for key in facts if key not in ("variant", "checkpoint", *by_split)})
        scoring = {"normalizer": score["scoring"]["normalizer"], "normalizer_version": score["normalizer_version"]}
        for split, differing in compared.items():
            counts = score["splits"][split]
            row = {"variant": name, "split": split, **settings, **counts}
            row |= {"dequantized": agreements[name]["dequantized"]}
            row |= {"looping_ids": shortened(counts["looping_ids"]), **differing[name], **agreeing[split][name]}
            row |= beside[split].get(name, dict.fromkeys(("larger", "kl_less_larger", "p_kl")))
            row |= {"split_utterances": facts["split_utterances"][split], **facts["conversions"][split], **scoring}
            row |= sizes(facts["bytes"]["total"], full)
            table.append(row | {key: value for key, value in others.items() if key not in row})
    return [row | _beside_torch_ao(row, table) for row in table]


def _beside_torch_ao(row: Row, table: Sequence[Row]) -> Row:
    """Hold a variant of torchao against torch.ao's of equal settings, where there is one, on the same split."""
    same = [f.name for f in dataclasses.fields(Variant) if f.name not in ("backend", "rest")]
    peers = (
        other
        for other in table
        if (row["backend"], other["backend"]) == ("torchao", "torch")
        and all(row.get(key) == other.get(key) for key in ("split", *same))
    )
    peer = next(peers, None)
    if peer is None:
        return {"torch_ao": None, "kl_of_torch_ao": None, "latency_of_torch_ao": None}
    kl, time = (row[key] / peer[key] if peer[key] else None for key in ("kl", "latency_p50_ms"))
    return {"torch_ao": peer["variant"], "kl_of_torch_ao": kl, "latency_of_torch_ao": time}


def _compared(scores: Mapping[str, Json], split: str, resamples: int, seed: int) -> dict[str, Row]:
    spoken = {name: [u for u in score["utterances"] if u["split"] == split] for name, score in scores.items()}
    baseline = spoken[BASELINE]
    measure = scores[BASELINE]["splits"][split]["measure"]
    if measure == statistics.WER:
        whole = [u["hits"] + u["substitutions"] + u["deletions"] for u in baseline]
    else:
        whole = [round(1000 * u["duration"]) for u in baseline]
    wrong = {name: _errors(each) for name, each in spoken.items()}
    result = differences(measure, wrong, whole, [u["speaker"] for u in baseline], resamples, seed)
    alignments = {name: [u["alignment"] for u in each] for name, each in spoken.items()}
    for name, row in result.items():
        paired = name != BASELINE and measure == statistics.WER  # pairs are segments of a reference's words
        z, p = statistics.mapsswe(alignments[name], alignments[BASELINE]) if paired else (None, None)
        row |= {"mapsswe_z": z, "mapsswe_p": p}
        row |= _churn(spoken[name], baseline, wrong[name], wrong[BASELINE])
    return result


def _churn(spoken: Sequence[Json], baseline: Sequence[Json], wrong: list[int], wrong_of_fp32: list[int]) -> Row:
    """Return how many utterances have another text than fp32's, and which way their errors went."""
    others = [one["id"] for one, own in zip(spoken, baseline, strict=True) if one["hypothesis"] != own["hypothesis"]]
    more = [one - own for one, own in zip(wrong, wrong_of_fp32, strict=True)]
    regressed, improved = sum(change > 0 for change in more), sum(change < 0 for change in more)
    return {
        "other_texts": len(others),
        "other_ids": shortened(others),
        "regressed": regressed,
        "improved": improved,
        "p_churn": statistics.sign_test(regressed, improved),
        "empty": sum(bool(one["reference"]) and not one["hypothesis"] for one in spoken),
    }


def shortened(ids: Sequence[str]) -> str:
    """Return MAX_IDS ids and the number of the others: a variant that always loops would fill the table with names."""
    more = f" and {len(ids) - MAX_IDS} more" if len(ids) > MAX_IDS else ""
    return " ".join(ids[:MAX_IDS]) + more


def errors(scores: Mapping[str, Json]) -> str:
    """Return errors.csv: a line for each utterance, with its words and every variant's errors (pure).

    All verdicts on words follow from it, so that anyone can find them again.
    """
    by_variant = {name: _errors(of["utterances"]) for name, of in scores.items()}
    spoken = scores[BASELINE]["utterances"]
    about = [
        {"split": u["split"], "id": u["id"], "speaker": u["speaker"], "words": len(u["reference"].split())}
        for u in spoken
    ]
    table = pd.concat([pd.DataFrame(about), pd.DataFrame(by_variant)], axis=1)  # a variant may be called `id`
    return str(table.to_csv(index=False))


def _errors(spoken: Sequence[Json]) -> list[int]:
    return [changes.errors(utterance) for utterance in spoken]


def flat(entries: Json) -> Row:
    """Return an object's values by key: of an object inside, each as <key>_<its key>; of a list, its length."""
    row: Row = {}
    for key, value in entries.items():
        inner = flat(value) if isinstance(value, dict) else {"": len(value) if isinstance(value, list) else value}
        row |= {f"{key}_{name}" if name else key: entry for name, entry in inner.items()}
    return row


def metrics(table: Sequence[Row]) -> dict[str, Json]:
    """Return what reviews compare, per variant its sizes, and per split its measure and its agreement with fp32.

    No lists, for DVC drops them.
    """
    result: dict[str, Json] = {}
    for row in table:
        variant = result.setdefault(row["variant"], {key: row[key] for key in ("size_mb", "size_reduction")})
        rates = [*(row["measure"] + rate for rate in RATES), "kl", "flips"]
        variant[row["split"]] = {rate: row[rate] for rate in rates}
    return result


def candidate(table: Sequence[Row]) -> Json:
    """Return what a list of experiments shows of each: the candidate's size, its rates, their change to fp32's, KL."""
    result: Json = {}
    for row in table:
        if row["variant"] == CANDIDATE:
            measure = row["measure"]
            vs_fp32 = text.change(*(row[f"{measure}_delta{bound}"] for bound in ("", "_low", "_high")))
            of_split = {measure: row[measure], "vs_fp32": vs_fp32, "kl": row["kl"]}
            result |= {"size_mb": row["size_mb"], row["split"]: of_split}
    return result
