import platform
import resource
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pipeline import machine
from pipeline.errors import UserError


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
    assert machine.device("auto", backend) == "cpu"
    assert machine.device("cpu", backend) == "cpu"


@pytest.mark.parametrize("wanted", ["cuda", "cuda:1"])
def test_a_gpu_that_is_not_there_is_one_sentence(wanted: str, gpus: Callable[[int], None]) -> None:
    gpus(0)
    with pytest.raises(UserError) as error:
        machine.device(wanted, "torch")
    assert str(error.value) == f"device is '{wanted}', but PyTorch sees no GPU here; set device to auto or cpu"


def test_a_number_that_is_too_high_is_one_sentence(gpus: Callable[[int], None]) -> None:
    gpus(2)
    assert machine.device("cuda:1", "hqq") == "cuda:1"
    with pytest.raises(UserError) as error:
        machine.device("cuda:2", "hqq")
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
    assert machine.device(wanted, backend) == expected


@pytest.mark.parametrize("wanted", ["auto", "cuda", "cuda:0"])
def test_a_backend_without_kernels_for_gpus_says_so(
    wanted: str, gpus: Callable[[int], None], capsys: pytest.CaptureFixture[str]
) -> None:
    gpus(1)
    assert machine.device(wanted, "torch") == "cpu"
    assert capsys.readouterr().err == "torch has no kernels for a GPU: this variant runs on the CPU\n"


def test_what_is_recorded_of_a_machine() -> None:
    found = machine.describe("cpu")
    versions = found.pop("versions")
    assert versions.pop("python") == platform.python_version()
    assert versions.pop("torch").split("+")[0] == torch.__version__.split("+")[0]
    assert set(versions) == {"optimum-quanto", "hqq", "bitsandbytes"}
    assert found.pop("machine")
    assert found == {"threads": torch.get_num_threads()}


def test_peak_memory_counts_what_is_touched() -> None:
    before = machine.peak_memory("cpu")
    assert before["peak_gpu_mb"] is None
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6
    assert before["peak_rss_mb"] is not None
    assert before["peak_rss_mb"] >= resident * 0.95
    more = int(before["peak_rss_mb"] - resident) + 100  # MB, beyond whatever earlier tests needed
    torch.ones(more, 250_000)
    after = machine.peak_memory("cpu")["peak_rss_mb"]
    assert after is not None
    assert 50 < after - before["peak_rss_mb"] < 200


def test_the_cpu_needs_no_waiting_for() -> None:
    machine.synchronize("cpu")
