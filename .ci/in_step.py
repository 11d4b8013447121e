"""Check that what is committed is in step with the code: dvc.lock before a run, reports/metrics.json after it.

Usage: python .ci/in_step.py lock|metrics
"""

import csv
import json
import math
import sys
from pathlib import Path
from typing import Any

from pipeline import review


def lock() -> str | None:
    """Return what is wrong when a stage would rerun although no code, parameter or dependency has changed."""
    late = review.behind()
    return f"dvc.lock is behind the code: run 'make run' and commit it ({late})" if late else None


def metrics() -> str | None:
    """Return what is wrong with the committed metrics.json, compared with the one just made.

    Every variant and split must be equal, and so must fp32's rates. Kernels may round differently on another processor,
    so where the committed ones were made on another kind, the others' rates are not compared, and sizes may be off by a
    thousandth: what `mixed` has learned differs in its last digits, and so do the codes it packs.
    """
    made = json.loads(Path("reports/metrics.json").read_text())
    committed = json.loads(review.show("HEAD", "reports/metrics.json"))
    same = _machine(Path("reports/results.csv").read_text()) == _machine(review.show("HEAD", "reports/results.csv"))
    if not same:
        print(
            "metrics: the committed ones were made on another processor, so quantized variants' rates are not compared"
        )
    if list(made) != list(committed):
        return f"variants differ: committed {list(committed)}, made {list(made)}"
    for name in made:
        strict = same or name == "fp32"
        for key, old, new in _pairs(committed[name], made[name]):
            size = key.startswith("size")
            if old != new and (strict or None in (old, new) or (size and not math.isclose(old, new, rel_tol=1e-3))):
                return f"{name}: {key} is {old} in the commit and {new} in this run; run 'make run' and commit it"
    return None


def _machine(table: str) -> set[tuple[str, str]]:
    return {(row["machine"], row.get("instructions", "")) for row in csv.DictReader(table.splitlines())}


def _pairs(old: dict[str, Any], new: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    pairs = []
    for key in {**old, **new}:
        if isinstance(old.get(key), dict) and isinstance(new.get(key), dict):
            pairs += [(f"{key}.{inner}", a, b) for inner, a, b in _pairs(old[key], new[key])]
        else:
            pairs.append((key, old.get(key), new.get(key)))
    return pairs


if __name__ == "__main__":
    problem = {"lock": lock, "metrics": metrics}[sys.argv[1]]()
    print(problem or f"{sys.argv[1]}: in step")
    sys.exit(1 if problem else 0)
