from pathlib import Path

import pytest
import torch

from pipeline.core.errors import UserError
from pipeline.whisper.quantization import calibration


def test_what_was_heard_is_read_back_in_order(tmp_path: Path) -> None:
    heard = [(torch.randn(1, 80, 30), torch.tensor([[50257, number]])) for number in range(12)]
    names = [f"u{number}" for number in range(12)]
    calibration.write(names, heard, tmp_path / "heard")
    assert calibration.ids(tmp_path / "heard") == names
    found = list(calibration.read(tmp_path / "heard"))
    assert all(
        torch.equal(a, b) for pair, other in zip(found, heard, strict=True) for a, b in zip(pair, other, strict=True)
    )


def test_what_was_not_heard_yet_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        calibration.ids(tmp_path / "heard")
    assert str(error.value) == f"{tmp_path}/heard is not here; run 'python -m pipeline.calibrate' first"
