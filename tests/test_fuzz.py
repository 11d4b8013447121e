"""Some inputs of each kind in tests/fuzz, on every run of the tests; `python -m tests.fuzz 10000` tries more.

They stand for public reports of these kinds: a traceback from inside a parser (of YAML, JSON, tar, zip, Parquet, CSV,
safetensors, tokenizers) in the place of a sentence about the file; a RecursionError, or a panic of a library in Rust,
that `except Exception` or `except ValueError` lets through; a header that promises terabytes, and gets them or a loop
without end; NaN, infinity and numbers beyond 64 bits that JSON and CSV let in; half of a surrogate pair, which can be
read but not written; names that lead out of a folder or are too long for one; an output that is half-written after an
error; terminals that are commanded by a file's name.
"""

from collections.abc import Iterator

import pytest

from tests import fuzz
from tests.fuzz.kinds import KINDS

INPUTS = 30


@pytest.fixture(scope="module")
def worker() -> Iterator[fuzz.Worker]:
    """Return a process to try inputs in: they may hang it or kill it."""
    worker = fuzz.Worker()
    yield worker
    worker.stop()


@pytest.mark.parametrize("kind", KINDS)
def test_every_input_is_taken_or_refused_with_a_sentence(kind: str, worker: fuzz.Worker) -> None:
    ends = {seed: worker.attempt(kind, seed) for seed in range(INPUTS)}
    failed = [f"python -m tests.fuzz --only {kind}:{seed}\n{end}" for seed, end in ends.items() if end not in fuzz.ENDS]
    assert not failed, failed[0]
    assert set(ends.values()) == set(fuzz.ENDS), "inputs that all end alike try little"
