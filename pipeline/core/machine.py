"""The machine a figure comes from: its devices, memory, threads and versions."""

import os
import resource
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

from pipeline.core.errors import UserError

JOBS = "WHISPER_PTQ_JOBS"
"""Set by `pipeline.core.jobs`: how many stages share the machine."""

_INSTRUCTIONS = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
"""What PyTorch and the libraries choose their kernels by."""

_PACKAGES = ("torch", "optimum-quanto", "hqq", "bitsandbytes", "torchao", "ctranslate2", "pywhispercpp", "gguf")


def device(wanted: str, backend: str, kernels: Collection[str]) -> str:
    """Choose the device: `auto` takes the GPU where there is one and the backend has kernels for it.

    `kernels` lists what it has some for, of `cpu` and `cuda`. Without any for the wanted device it runs on the CPU, and
    the timings say so. Raises UserError when a GPU is asked for by name and there is none.
    """
    import torch

    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        return "cpu"
    if not torch.cuda.is_available():
        raise UserError(f"device is {wanted!r}, but PyTorch sees no GPU here; set device to auto or cpu")
    count = torch.cuda.device_count()
    if wanted.startswith("cuda:") and int(wanted.removeprefix("cuda:")) >= count:
        raise UserError(f"device is {wanted!r}, but this machine has {count} GPU(s), numbered from 0")
    if "cuda" not in kernels:
        print(f"{backend} has no kernels for a GPU: this variant runs on the CPU", file=sys.stderr)
        return "cpu"
    return "cuda" if wanted == "auto" else wanted


def synchronize(device: str) -> None:
    """Wait until the device has done its work, so that a clock read next is true."""
    if device != "cpu":
        import torch

        torch.cuda.synchronize(device)


def peak_memory(device: str) -> dict[str, float | None]:
    """Return the most memory that this process has held so far, resident and on the GPU, in MB (10^6 bytes)."""
    on_gpu = None
    if device != "cpu":
        import torch

        on_gpu = round(torch.cuda.max_memory_allocated(device) / 1e6, 1)
    return {"peak_rss_mb": round(_peak_resident() / 1e6, 1), "peak_gpu_mb": on_gpu}


def _peak_resident() -> int:
    status = Path("/proc/self/status")
    if status.exists():  # getrusage's figure is inherited from the process that started this one
        return 1024 * next(int(line.split()[1]) for line in status.read_text().splitlines() if "VmHWM" in line)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def describe(device: str) -> dict[str, Any]:
    """Return threads, jobs that share the machine, the processor or GPU, what kernels are chosen by, and versions."""
    import importlib.metadata

    import torch

    gpu = device != "cpu"
    return {
        "threads": torch.get_num_threads(),
        "jobs": int(os.environ.get(JOBS, "1")),
        "machine": torch.cuda.get_device_name(device) if gpu else _cpu("model name") or os.uname().machine,
        "instructions": " ".join(flag for flag in _cpu("flags").split() if flag in _INSTRUCTIONS),
        "versions": {"python": sys.version.split()[0]}
        | {package: importlib.metadata.version(package) for package in _PACKAGES},
    }


def lacking(instructions: Collection[str]) -> list[str]:
    """Return which of these instructions the processor lacks, as far as Linux tells."""
    there = _cpu("flags").split()
    return [each for each in instructions if there and each not in there]


def _cpu(key: str) -> str:
    """Return what Linux tells of the first processor, or nothing."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(key)), "")
