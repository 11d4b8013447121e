import platform
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch

from pipeline import backends
from pipeline.core import machine
from pipeline.core.errors import UserError
from tests.conftest import ROOT


def device(wanted: str, backend: str) -> str:
    """Choose a device for one of our backends."""
    return machine.device(wanted, backend, backends.get(backend).DEVICES)


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Return a function that makes PyTorch see so many GPUs."""

    def see(count: int) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)

    return see


@pytest.mark.parametrize("backend", ["none", "torch", "quanto", "hqq", "bnb"])
def test_without_a_gpu_auto_is_the_cpu(backend: str, gpus: Callable[[int], None]) -> None:
    gpus(0)
    assert device("auto", backend) == "cpu"
    assert device("cpu", backend) == "cpu"


@pytest.mark.parametrize("wanted", ["cuda", "cuda:1"])
def test_a_gpu_that_is_not_there_is_one_sentence(wanted: str, gpus: Callable[[int], None]) -> None:
    gpus(0)
    with pytest.raises(UserError) as error:
        device(wanted, "torch")
    assert str(error.value) == f"device is '{wanted}', but PyTorch sees no GPU here; set device to auto or cpu"


def test_a_number_that_is_too_high_is_one_sentence(gpus: Callable[[int], None]) -> None:
    gpus(2)
    assert device("cuda:1", "hqq") == "cuda:1"
    with pytest.raises(UserError) as error:
        device("cuda:2", "hqq")
    assert str(error.value) == "device is 'cuda:2', but this machine has 2 GPU(s), numbered from 0"


@pytest.mark.parametrize(
    ("wanted", "backend", "expected"),
    [
        ("auto", "none", "cuda"),
        ("auto", "bnb", "cuda"),
        ("cuda", "quanto", "cuda"),
        ("cuda:0", "hqq", "cuda:0"),
        ("cpu", "bnb", "cpu"),
    ],
)
def test_with_a_gpu(wanted: str, backend: str, expected: str, gpus: Callable[[int], None]) -> None:
    gpus(1)
    assert device(wanted, backend) == expected


@pytest.mark.parametrize("wanted", ["auto", "cuda", "cuda:0"])
def test_a_backend_without_kernels_for_gpus_says_so(
    wanted: str, gpus: Callable[[int], None], capsys: pytest.CaptureFixture[str]
) -> None:
    gpus(1)
    assert device(wanted, "torch") == "cpu"
    assert capsys.readouterr().err == "torch has no kernels for a GPU: this variant runs on the CPU\n"


def test_what_is_recorded_of_a_machine() -> None:
    found = machine.describe("cpu")
    versions = found.pop("versions")
    assert versions.pop("python") == platform.python_version()
    assert versions.pop("torch").split("+")[0] == torch.__version__.split("+")[0]
    runtimes = {"ctranslate2", "pywhispercpp", "gguf"}
    assert set(versions) == {"optimum-quanto", "hqq", "bitsandbytes", "torchao"} | runtimes
    assert found.pop("machine")
    assert set(found.pop("instructions").split()) <= {*machine._INSTRUCTIONS}
    assert found == {"threads": torch.get_num_threads(), "jobs": 1}


def test_peak_memory_counts_what_is_touched() -> None:
    """300 MB, in a process of its own: in this one, other tests have touched more."""
    code = (
        "import torch; from pipeline.core.machine import peak_memory; "
        "before = peak_memory('cpu'); torch.ones(75_000_000); "
        "after = peak_memory('cpu'); print(before['peak_gpu_mb'], after['peak_rss_mb'] - before['peak_rss_mb'])"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    on_gpu, more = ended.stdout.split()
    assert on_gpu == "None"
    assert float(more) == pytest.approx(300, abs=30)


def test_the_cpu_needs_no_waiting_for() -> None:
    machine.synchronize("cpu")
