"""Made-up rows of results.csv and protocol.csv, and a study's folder with them, of Whisper-small's sizes."""

import dataclasses
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pandas import DataFrame
from ruamel.yaml import YAML

from pipeline.core.variant import Variant
from pipeline.results import tables
from pipeline.sensitivity import place
from tests.conftest import ROOT, Project, results_csv

Row = dict[str, Any]

COLUMNS = [column for column in tables.RESULT_COLUMNS if "*" not in column]
FP32: Row = dict.fromkeys(COLUMNS) | {
    "variant": "fp32",
    "split": "test-clean",
    "backend": "none",
    "utterances": 120,
    "speakers": 20,
    "words": 2400,
    "minutes": 15.04,
    "looping": 0,
    "size_mb": 966.9,
    "size_reduction": 0.0,
    "wer_without_loops": 3.5,
    "measure": "wer",
    "rate": 3.5,
    "rate_low": 3.0,
    "rate_high": 4.1,
    "delta": 0.0,
    "delta_low": 0.0,
    "delta_high": 0.0,
    "interval_unit": "speaker",
    "verdict": "baseline",
    "rtfx": 4.0,
    "size_reduction_fp16": -100.0,
    "bits_per_weight": 32.0,
    "latency_p50_ms": 800.0,
    "latency_p95_ms": 1500.4,
    "latency_utterances": 20,
    "latency_threads": 2,
    "peak_rss_mb": 2500.2,
    "batch_size": 16,
    "transcribe_s": 500.0,
    "device": "cpu",
    "threads": 2,
    "machine": "A processor",
    "jobs": 1,
}
UNDECIDED = "undecided"


def line(variant: str, delta: float, low: float, high: float, verdict: str = UNDECIDED, **changes: Any) -> Row:
    """Return fp32's line with another name and difference; 0.4 points would have been found."""
    changed = {"rate": FP32["rate"] + delta, "smallest_detectable": 0.4} | changes
    return (
        FP32 | {"variant": variant, "delta": delta, "delta_low": low, "delta_high": high, "verdict": verdict} | changed
    )


def timings(variant: Variant, total: int, split_utterances: dict[str, int]) -> dict[str, Any]:
    """Return the timings of a checkpoint of `total` bytes, as transcribe writes them."""
    checkpoint = {"variant": dataclasses.asdict(variant), "bytes": {"total": total}, "calibration": []}
    kept = ("audio_s", "load_s", "transcribe_s", "rtfx", "peak_rss_mb", "peak_gpu_mb")
    latency = {name: FP32[f"latency_{name}"] for name in ("utterances", "other_texts", "threads")}
    return {
        **{name: FP32[name] for name in (*kept, "device", "batch_size", "threads", "jobs", "machine", "instructions")},
        "latency": latency | {"p50_ms": 800.0, "p90_ms": 1200.0, "p95_ms": 1500.4},
        "pass_utterances": 20,
        "pass_other_texts": 0,
        "pass_peak_rss_mb": 2600.0,
        "pass_peak_gpu_mb": None,
        "split_utterances": split_utterances,
        "conversions": {split: {"resampled": 0, "mixed_down": 0} for split in split_utterances},
        "checkpoint": checkpoint | {"bits_per_weight": FP32["bits_per_weight"]},
    }


def sensitivity(encoder: int = 2, decoder: int = 2, kl: float = 0.0004) -> str:
    """Return sensitivity.csv of so many layers: from one to the next, `kl` doubles."""
    sides = [("encoder", encoder, ("self_attn",)), ("decoder", decoder, ("self_attn", "encoder_attn"))]
    names = [
        f"model.{part}.layers.{number}.{name}"
        for part, layers, attentions in sides
        for number in range(layers)
        for name in (*(f"{of}.{last}_proj" for of in attentions for last in ("q", "k", "v", "out")), "fc1", "fc2")
    ]
    lines = [{"layer": name, **place(name), "weights": 4096} for name in (*names, "proj_out")]
    return tables.to_csv([line | {"kl_4bit": kl * 2 ** (line["number"] or 0)} for line in lines])


def frame(*rows: Row) -> DataFrame:
    """Return results.csv of these rows, read."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "results.csv").write_text(results_csv(*rows))
        return tables.read(Path(folder) / "results.csv")


QUANTO: dict[str, Any] = {
    "backend": "quanto",
    "size_mb": 412.2,
    "size_reduction": 57.369,
    "size_reduction_fp16": 14.738,
    "bits_per_weight": 8.04,
}
HQQ: dict[str, Any] = {
    "backend": "hqq",
    "size_mb": 278.3,
    "size_reduction": 71.217,
    "size_reduction_fp16": 42.434,
    "bits_per_weight": 4.2,
}
CLEAN = [
    FP32,
    line("quanto-int8", -0.07, -0.12, -0.02, "better", **QUANTO, latency_p50_ms=900.0, transcribe_s=600.0),
    line("hqq-int3", 0.3, -0.1, 0.7, **HQQ, latency_p50_ms=600.0, transcribe_s=400.0),
]
NOISY: dict[str, Any] = {"split": "test-other", "rate_low": 7.0, "rate_high": 9.0}
OTHER = [
    FP32 | NOISY | {"rate": 8.0},
    line("quanto-int8", 0.02, -0.3, 0.34, **NOISY, **QUANTO, smallest_detectable=0.5, rate=8.02),
    line("hqq-int3", 2.0, 1.1, 2.9, "worse", **NOISY, **HQQ, looping=3, wer_without_loops=9.0, rate=10.0),
]
LINES = [line for pair in zip(CLEAN, OTHER, strict=True) for line in pair]

OWN: Row = {
    "split": "test-other",
    "suppress_non_speech": "True",
    "max_new_tokens": "444",
    "normalizer": "english",
    "substitutions": 150,
    "deletions": 20,
    "insertions": 22,
    "looping": 0,
    "wer": 8.0,
    "wer_without_loops": 8.0,
    "insertions_per_minute": 1.46,
    "wer_delta": None,
    "wer_delta_low": None,
    "wer_delta_high": None,
    "interval_unit": "speaker",
}

ENGINES = """\
engine,rtfx,time_ratio,texts_differ,utterances,audio_s,batch_size,threads,rounds,machine
whisper-ptq fp32,4.1,1.0,0,48,310.4,16,2,3,A processor
ctranslate2 int8,9.02,0.4545,3,48,310.4,16,2,3,A processor
"""

PACKAGES = {
    "torch": "2.13.0+cpu",
    "optimum-quanto": "0.2.7",
    "hqq": "0.2.8",
    "bitsandbytes": "0.50.2",
    "torchao": "0.18.0",
}
PYTHON = "3.11.7"


def protocol(delta: float, low: float, high: float, **changes: Any) -> Row:
    """Return another protocol on the same split."""
    changed = {"wer": 8.0 + delta, "wer_without_loops": 8.0 + delta, "wer_delta": delta} | changes
    return OWN | {"wer_delta_low": low, "wer_delta_high": high} | changed


def protocols(*rows: Row) -> DataFrame:
    """Return protocol.csv of these rows, read."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "protocol.csv").write_text(tables.to_csv(rows))
        return tables.read(Path(folder) / "protocol.csv")


def sections(page: str) -> dict[str, str]:
    """Return what stands under each head of a study's page, and under its title."""
    title, *others = page.split("\n## ")
    return {"": title} | {head: body.strip() for head, _, body in (part.partition("\n\n") for part in others)}


def write(folder: Path, lines: Sequence[Row] = tuple(LINES), **settings: Any) -> Path:
    """Write what a page is made of: the project's params.yaml with other settings, results and environment."""
    folder.mkdir()
    variants = YAML(typ="safe").load(ROOT / "params.yaml")["variants"]
    kept = {name: variants[name] for name in dict.fromkeys(line["variant"] for line in lines) if name in variants}
    chosen = {"model": "small", "corpus": "subset", "calibration__split": "dev-clean", "calibration__corpus": "subset"}
    Project(folder).set(**chosen | {"variants": kept} | settings)
    (folder / "results.csv").write_text(results_csv(*lines))
    (folder / "environment.json").write_text(json.dumps({"python": PYTHON, "packages": PACKAGES}))
    return folder
