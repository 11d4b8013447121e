"""What the tests of all backends share: a toy whose weights are float16, as OpenAI's are."""

import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file


@pytest.fixture(scope="session")
def baseline(baseline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the toy Whisper; storing what is not quantized as float16 loses nothing of it."""
    folder = shutil.copytree(baseline, tmp_path_factory.mktemp("toy") / "half")
    tensors = {name: tensor.half().float() for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder
