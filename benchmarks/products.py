"""Time the matrix products that Whisper is made of: PyTorch's own, oneDNN's, and of int8 codes.

PyTorch gives float32 to MKL; `network.linear` gives it to oneDNN, `integers.Linear` multiplies int8 codes and rounds
activations to such. The rows are positions: of a window of sound, of a batch of tokens, of one token. Median of many
rounds, in turns. Prints milliseconds and 10^9 operations a second; needs no checkpoint.

Usage: python -m benchmarks.products [--width 512] [--rounds 30]   (512: Whisper base)
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.whisper.model import integers, network
from pipeline.whisper.model.packing import Packed

VOCABULARY = 51865
POSITIONS = (1500, 16, 1)


def packed(rows: int, columns: int) -> Packed:
    """Return random codes of this shape."""
    codes = torch.randint(-127, 128, (rows, columns)).to(torch.int8)
    ones = torch.ones(rows + columns).half()
    return Packed(codes, ones[:rows, None], None, (rows, columns), None, ones[rows:])


@torch.no_grad()
def main() -> None:
    """Print a line for each shape."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=30)
    arguments = parser.parse_args()
    width, rounds = arguments.width, arguments.rounds
    bytes_ = "as bytes" if integers.multiplies_bytes() else "in float32, for want of VNNI"
    print(f"{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}; integers {bytes_}")
    shapes = [(width, width), (width, 4 * width), (4 * width, width), (width, VOCABULARY)]
    for columns, rows in shapes:
        layer, codes = nn.Linear(columns, rows), integers.Linear(packed(rows, columns), torch.zeros(rows), alone=True)
        for positions in POSITIONS:
            if rows == VOCABULARY and positions > POSITIONS[1]:  # a head answers for tokens alone
                continue
            x = torch.randn(positions, columns)
            kernels: dict[str, Callable[[Tensor], Tensor]] = {
                "PyTorch": partial(functional.linear, weight=layer.weight, bias=layer.bias),
                "oneDNN": partial(network.linear, weight=layer.weight, bias=layer.bias),
                "int8": codes,
            }
            spent: dict[str, list[float]] = {name: [] for name in kernels}
            for _ in range(rounds):
                for name, kernel in kernels.items():
                    kernel(x)  # the others have had the caches
                    started = time.perf_counter()
                    kernel(x)
                    spent[name].append(time.perf_counter() - started)
            cells = []
            for name, times in spent.items():
                median = statistics.median(times)
                cells.append(f"{name} {1e3 * median:7.3f} ms {2e-9 * positions * columns * rows / median:6.0f} G/s")
            print(f"{positions:5} x {columns:4} x {rows:5}  " + "   ".join(cells), flush=True)


if __name__ == "__main__":
    main()
