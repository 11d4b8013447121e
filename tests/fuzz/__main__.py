"""Try inputs of all kinds in turn, and tell of each kind how many were taken and refused, and the slowest.

Usage: python -m tests.fuzz 10000 [--seed 0]
       python -m tests.fuzz --only KIND:SEED
"""

import argparse
import collections
import sys
import time

from tqdm import tqdm

from tests import fuzz
from tests.fuzz.kinds import KINDS


def main() -> int:
    """Try the inputs and tell about them; return 1 if any failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("inputs", type=int, nargs="?", default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", metavar="KIND:SEED", help="try one input again")
    options = parser.parse_args()
    count = -(-options.inputs // len(KINDS))
    inputs = [(kind, seed) for seed in range(options.seed, options.seed + count) for kind in KINDS]
    if options.only:
        kind, _, seed = options.only.partition(":")
        inputs = [(kind, int(seed))]
    ends: dict[str, collections.Counter[str]] = {kind: collections.Counter() for kind in KINDS}
    slowest = dict.fromkeys(KINDS, (0.0, 0))
    worker = fuzz.Worker()
    for kind, seed in tqdm(inputs, unit=" inputs", disable=None):
        started = time.perf_counter()
        end = worker.attempt(kind, seed)
        slowest[kind] = max(slowest[kind], (time.perf_counter() - started, seed))
        ends[kind][end if end in fuzz.ENDS else "failed"] += 1
        if end not in fuzz.ENDS:
            tqdm.write(f"--only {kind}:{seed}\n{end[-3000:]}\n")
    worker.stop()
    print(f"{'kind':12}{'inputs':>8}{'taken':>8}{'refused':>9}{'failed':>8}{'slowest':>10}")
    for kind, counted in ends.items():
        numbers = f"{counted.total():8}{counted['taken']:8}{counted['refused']:9}{counted['failed']:8}"
        print(f"{kind:12}{numbers}{slowest[kind][0]:8.2f} s  {kind}:{slowest[kind][1]}")
    return int(any(counted["failed"] for counted in ends.values()))


if __name__ == "__main__":
    sys.exit(main())
