"""benchmarks/full_study.py, which estimates the time of the full study."""

import pytest
import torch

from benchmarks import full_study


@pytest.mark.parametrize(("size", "parameters"), [("tiny", 37_760_640), ("base", 72_593_920), ("small", 241_734_912)])
def test_random_models_have_the_sizes_of_the_published_ones(size: str, parameters: int) -> None:
    with torch.device("meta"):
        model = full_study.model(size)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


def test_the_first_round_is_not_timed() -> None:
    calls: list[int] = []
    assert full_study.median(lambda: calls.append(1), rounds=4) >= 0
    assert len(calls) == 5
