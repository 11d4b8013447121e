"""How far variants' next tokens are from fp32's, split by split: what `agree` has found, with intervals (pure)."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from pipeline.core.errors import UserError
from pipeline.core.params import BASELINE
from pipeline.scoring import statistics

Json = dict[str, Any]  # a variant's agreement or scores, as `agree` and `score` describe them

_PER_TOKEN = (("kl", 0.01), ("flips", 1.0))
"""Rates with intervals, and the weights of their sums: statistics give per cent, but KL is told in nats."""


def check_same(agreements: Mapping[str, Json], scores: Mapping[str, Json]) -> None:
    """Raise UserError unless every variant was held against the same tokens of fp32, of the utterances scored."""
    tokens = {name: {(u["split"], u["id"]): u["tokens"] for u in of["utterances"]} for name, of in agreements.items()}
    if tokens[BASELINE].keys() != {(u["split"], u["id"]) for u in scores[BASELINE]["utterances"]}:
        raise UserError(
            "reports/agreement is of other utterances than reports/scores; run 'dvc repro' to make both anew"
        )
    for name, found in tokens.items():
        if found != tokens[BASELINE]:
            raise UserError(
                f"{name!r} was held against other tokens of {BASELINE} than {BASELINE} itself; run "
                f"'python -m pipeline.agree {name}' and 'python -m pipeline.agree {BASELINE}' again"
            )


def columns(agreements: Mapping[str, Json], split: str, resamples: int, seed: int) -> dict[str, Json]:
    """Return what results.csv says of each variant on a split; intervals are by `statistics.headline_unit`.

    A mean per token is a ratio of sums over utterances, as a word error rate is; they share the draws.
    """
    spoken = {name: [u for u in of["utterances"] if u["split"] == split] for name, of in agreements.items()}
    first = spoken[BASELINE]
    sums = [[weight * u[key] for u in each] for each in spoken.values() for key, weight in _PER_TOKEN]
    tokens, speakers = np.array([[u["tokens"] for u in first]]), [u["speaker"] for u in first]
    found = iter(
        statistics.by_unit(np.array(sums), tokens, speakers, resamples, seed)[statistics.headline_unit(speakers)]
    )
    result = {}
    for name, of in agreements.items():
        row = dict(of["splits"][split])
        for key, _ in _PER_TOKEN:
            row[f"{key}_low"], row[f"{key}_high"] = next(found).rate_interval()
        result[name] = row
    return result


def neighbours(
    agreements: Mapping[str, Json], split: str, by_size: Sequence[str], seed: int
) -> dict[str, dict[str, Any]]:
    """Hold the KL divergence of each variant against that of the one after it in `by_size`, on a split.

    Returns the columns `larger`, `kl_less_larger` and `p_kl` of all but the last, by sign flips of
    `statistics.deciding_unit` and corrected over all pairs.
    """
    spoken = [[u for u in agreements[name]["utterances"] if u["split"] == split] for name in by_size]
    pairs = list(pairwise(by_size))
    if not pairs:
        return {}
    sums = np.array([[u["kl"] for u in of] for of in spoken])
    speakers = [u["speaker"] for u in spoken[0]]
    grouped = statistics.by_speaker(sums, speakers)
    if grouped is not None and statistics.deciding_unit(speakers, len(pairs)) == "speaker":
        sums = grouped
    changes = sums[:-1] - sums[1:]
    p_values = statistics.holm(statistics.sign_flips(changes, seed)[0].tolist())
    means = changes.sum(axis=1) / sum(u["tokens"] for u in spoken[0])
    return {
        small: {"larger": large, "kl_less_larger": float(mean), "p_kl": p}
        for (small, large), mean, p in zip(pairs, means, p_values, strict=True)
    }
