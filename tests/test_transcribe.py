import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline import calibrate, quantize, transcribe, transcribe_protocols
from pipeline.core import pieces
from pipeline.core.errors import UserError
from pipeline.speech import corpus
from pipeline.whisper.inference import decoding
from pipeline.whisper.model import network, weights
from tests import toy
from tests.conftest import ROOT, Project


@pytest.fixture
def project(tmp_project: Project, quantized: Path) -> Project:
    """Work in a project that has been quantized as fp32 and hqq-int4."""
    shutil.copytree(quantized, tmp_project.root, dirs_exist_ok=True)
    return tmp_project


def refusal(variant: str) -> str:
    with pytest.raises(UserError) as error:
        transcribe.main(variant)
    return str(error.value)


def test_transcripts_are_sorted_and_the_same_every_time(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    transcribe.main("fp32")
    assert capsys.readouterr().out.startswith("fp32: 5 utterances, RTFx ")
    file = project.root / "reports/transcripts/fp32.jsonl"
    first = file.read_bytes()
    transcribe.main("fp32")
    assert file.read_bytes() == first

    baseline = project.root / "models/baseline"
    model, vocabulary = weights.load(baseline), decoding.Vocabulary.read(baseline, "en", "transcribe")
    utterances = list(corpus.read(corpus.CORPUS))
    texts = {u.id: toy.texts(model, [u], vocabulary, max_new_tokens=6)[0] for u in utterances}
    assert [json.loads(line) for line in first.decode().splitlines()] == [
        {
            "id": name,
            "split": f"test-{name[0]}",
            "speaker": name[0],
            "duration": seconds,
            "text": f"THE WORDS OF {name}",
            "pred_text": texts[name],
        }
        for name, seconds in [("a-1", 2.0), ("b-0", 0.25), ("b-1", 1.0), ("b-2", 0.5), ("b-3", 1.5)]
    ]
    assert len(set(texts.values()) - {""}) >= 3, texts


def test_timings_tell_how_they_came_about(project: Project) -> None:
    transcribe.main("hqq-int4")
    timings = json.loads((project.root / "reports/timings/hqq-int4.json").read_text())
    manifest = json.loads((project.root / "models/hqq-int4/checkpoint.json").read_text())
    assert list(timings) == [
        *("device", "batch_size", "split_utterances", "conversions", "audio_s"),
        *("load_s", "transcribe_s", "rtfx", "latency"),
        *("peak_rss_mb", "peak_gpu_mb", "pass_peak_rss_mb", "pass_peak_gpu_mb"),
        *("kernels", "threads", "jobs", "machine", "instructions", "versions", "checkpoint"),
    ]
    assert (timings["device"], timings["batch_size"], timings["audio_s"]) == ("cpu", 2, 5.25)
    assert timings["split_utterances"] == {"test-a": 1, "test-b": 1}
    assert timings["conversions"] == {split: {"resampled": 0, "mixed_down": 0} for split in ("test-a", "test-b")}
    assert timings["load_s"] > 0
    assert timings["rtfx"] == pytest.approx(5.25 / timings["transcribe_s"], rel=0.05)
    assert timings["threads"] == torch.get_num_threads()
    single = timings["latency"]
    assert list(single) == ["p50_ms", "p90_ms", "p95_ms", "utterances", "other_texts", "threads"]
    assert 0 < single["p50_ms"] <= single["p90_ms"] <= single["p95_ms"]
    assert (single["utterances"], single["other_texts"], single["threads"]) == (5, 0, 1)
    assert 50 < timings["peak_rss_mb"] <= timings["pass_peak_rss_mb"]
    assert timings["checkpoint"] == {
        "variant": manifest["variant"],
        "calibration": [],
        "bytes": manifest["bytes"],
        "bits_per_weight": manifest["bits_per_weight"],
    }


def test_latency_is_of_single_utterances_in_fixed_threads(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []
    hear = decoding.transcribe

    def watched(model: network.Whisper, batch: list[corpus.Utterance], *rest: Any) -> list[decoding.Heard]:
        seen.append((len(batch), torch.get_num_threads()))
        return hear(model, batch, *rest)

    def warming(*arguments: Any) -> None:
        seen.append((0, torch.get_num_threads()))
        warm(*arguments)

    warm = decoding.warm_up
    monkeypatch.setattr(decoding, "transcribe", watched)
    monkeypatch.setattr(decoding, "warm_up", warming)
    before = torch.get_num_threads()
    project.set(latency={"utterances": 3, "seconds": 60, "threads": before + 1})
    transcribe.main("fp32")
    assert seen[:5] == [(0, before), (0, before + 1)] + [(1, before + 1)] * 3  # two to warm up
    assert seen[5:] == [(1, before), (2, before), (1, before), (1, before)]  # shard by shard
    timings = json.loads((project.root / "reports/timings/fp32.json").read_text())
    assert timings["latency"]["utterances"] == 3


def test_a_variant_that_is_slow_is_measured_on_fewer_utterances(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    hear = decoding.transcribe

    def slow(*arguments: Any) -> list[decoding.Heard]:
        time.sleep(0.8)
        return hear(*arguments)

    monkeypatch.setattr(decoding, "transcribe", slow)
    project.set(latency={"utterances": 5, "seconds": 2, "threads": 1})
    transcribe.main("fp32")
    single = json.loads((project.root / "reports/timings/fp32.json").read_text())["latency"]
    assert single["utterances"] == 2
    assert single["p50_ms"] >= 800


def test_a_model_that_gives_no_numbers_is_one_sentence(project: Project) -> None:
    """Texts of "!!!!" that are scored: the logits of a broken model are all NaN."""
    toy.break_weights(project.root / "models/fp32")
    assert re.fullmatch(
        r"variant 'fp32': utterance '[ab]-\d': no token can be chosen, as its logit is not a finite number: "
        "the weights are broken, or every token is suppressed",
        refusal("fp32"),
    )
    assert not list((project.root / "reports").glob("*/[!.]*"))


@pytest.mark.slow
def test_memory_does_not_follow_the_recording(project: Project) -> None:
    """Out of memory on a lecture: all windows of a recording were decoded at once."""
    project.set(decoding__batch_size=8, latency__utterances=1)
    peaks = []
    for minutes in (6, 24):
        shutil.rmtree(project.root / "data/corpus")
        sound = np.random.default_rng(0).integers(-30, 30, minutes * 60 * 16000).astype(np.int16)
        toy.write_shard(project.root / "data/corpus/long/00000.parquet", "long", {"lecture": sound})
        command = [sys.executable, "-m", "pipeline.transcribe", "fp32"]
        subprocess.run(command, cwd=project.root, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True)
        peaks.append(json.loads(Path("reports/timings/fp32.json").read_text())["pass_peak_rss_mb"])
    assert peaks[1] <= 1.4 * peaks[0], peaks  # all at once would be 2.3 times as much


def test_detected_languages_stand_in_the_transcript(tmp_project: Project, tmp_path: Path) -> None:
    """Recordings of several languages, and `language: auto`."""
    toy.project(tmp_project, toy.write(tmp_path / "multilingual", toy.MULTILINGUAL))
    tmp_project.set(decoding__language="auto", scoring__normalizer="basic")
    calibrate.main()
    quantize.main("fp32")
    transcribe.main("fp32")
    lines = [json.loads(line) for line in Path("reports/transcripts/fp32.jsonl").read_text().splitlines()]
    assert list(lines[0]) == ["id", "split", "speaker", "duration", "text", "language", "pred_text"]
    assert {line["language"] for line in lines} <= {"en", "de"}
    assert len(lines) == 5
    transcribe_protocols.main()
    assert {json.loads(line)["language"] for line in Path("reports/protocols.jsonl").read_text().splitlines()} == {
        line["language"] for line in lines
    }


class StoppedError(Exception):
    """Stands for whatever ends a run."""


def interrupt(monkeypatch: pytest.MonkeyPatch, calls: int) -> list[str]:
    """Let decoding end the run at call number `calls`; return a list that fills with the ids that it was asked for."""
    asked: list[str] = []
    hear = decoding.transcribe

    def some(model: network.Whisper, batch: list[corpus.Utterance], *rest: Any) -> list[decoding.Heard]:
        if calls and len(asked) >= calls:
            raise StoppedError
        asked.extend(utterance.id for utterance in batch)
        return hear(model, batch, *rest)

    monkeypatch.setattr(decoding, "transcribe", some)
    return asked


def outputs(project: Project, name: str = "fp32") -> dict[str, Any]:
    """Return what a finished run leaves in reports/, aside from its pieces."""
    folder = project.root / "reports"
    assert sorted(path.relative_to(folder).as_posix() for path in folder.glob("*/[!.]*")) == [
        f"timings/{name}.json",
        f"transcripts/{name}.jsonl",
    ]
    return {
        "transcripts": (folder / f"transcripts/{name}.jsonl").read_bytes(),
        "timings": json.loads((folder / f"timings/{name}.json").read_text()),
    }


ALONE = 5
"""Utterances that are transcribed one at a time, after those that warm up."""


@pytest.fixture
def stopped(project: Project, monkeypatch: pytest.MonkeyPatch) -> Project:
    """Return the project after a run that ended in its last shard: a-1 and b-1 to b-3 of the first two were ready."""
    with monkeypatch.context() as patch:
        shards = (project.root / "data/corpus").rglob("*.parquet")
        assert sorted(shard.parent.name + shard.stem for shard in shards) == [
            *("test-a00000", "test-b00000", "test-b00001"),
        ]
        asked = interrupt(patch, ALONE + 4)
        with pytest.raises(StoppedError):
            transcribe.main("fp32")
        assert sorted(asked[ALONE:]) == ["a-1", "b-1", "b-2", "b-3"]
    return project


def test_an_interrupted_run_goes_on_where_it_stopped(
    stopped: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert list((stopped.root / "reports/transcripts").glob("*")) == [
        stopped.root / "reports/transcripts/.fp32.jsonl.pieces"
    ]
    asked = interrupt(monkeypatch, 0)
    transcribe.main("fp32")
    assert asked == ["b-0"]  # the last shard
    assert capsys.readouterr().out.startswith("fp32: kept 4 utterances of an interrupted run\n")
    resumed = outputs(stopped)
    transcribe.main("fp32")
    whole = outputs(stopped)
    assert resumed["transcripts"] == whole["transcripts"]
    assert resumed["timings"]["audio_s"] == whole["timings"]["audio_s"] == 5.25
    assert resumed["timings"]["latency"]["utterances"] == 5
    assert len(asked) == 1 + ALONE + 5


def test_pieces_stay_until_dvc_has_recorded_the_output(stopped: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """DVC may fail to, or be killed; it removes the output before it runs the stage again."""
    transcribe.main("fp32")
    whole = outputs(stopped)
    for path in ("transcripts/fp32.jsonl", "timings/fp32.json"):
        (stopped.root / "reports" / path).unlink()
    asked = interrupt(monkeypatch, 0)
    transcribe.main("fp32")
    assert asked == []
    assert outputs(stopped) == whole
    pieces.remove_finished(stopped.root)
    assert [path.name for path in (stopped.root / "reports/transcripts").iterdir()] == ["fp32.jsonl"]


def _other_settings(project: Project, _: pytest.MonkeyPatch) -> None:
    project.set(decoding__max_new_tokens=5)


def _other_batches(project: Project, _: pytest.MonkeyPatch) -> None:
    project.set(decoding__batch_size=3)


def _other_latency(project: Project, _: pytest.MonkeyPatch) -> None:
    project.set(latency__seconds=50)


def _other_model(project: Project, _: pytest.MonkeyPatch) -> None:
    weights = project.root / "models/baseline/model.safetensors"
    tensors = load_file(weights)
    tensors["model.decoder.layer_norm.bias"] += 0.5
    save_file(tensors, weights, {"format": "pt"})
    quantize.main("fp32")


def _other_corpus(project: Project, _: pytest.MonkeyPatch) -> None:
    toy.speech(project.root / "data/corpus/test-b/00000.parquet", "test-b", {"b-3": 1.5, "b-2": 0.5, "b-1": 1.0})


def _other_library(_: Project, patch: pytest.MonkeyPatch) -> None:
    version = importlib.metadata.version
    patch.setattr(importlib.metadata, "version", lambda name: "9.9" if name == "torch" else version(name))


def _other_code(project: Project, patch: pytest.MonkeyPatch) -> None:
    shutil.copytree(ROOT / "pipeline", project.root / "pipeline")
    shutil.copy(ROOT / "dvc.yaml", project.root)
    with (project.root / "pipeline/backends/none.py").open("a") as file:
        file.write("# A remark\n")
    patch.setattr(pieces, "_ROOT", project.root)


def _other_threads(_: Project, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(torch, "get_num_threads", lambda: 64)
    patch.setattr(torch, "set_num_threads", lambda _: None)  # else 64 stay set for the tests that follow


@pytest.mark.parametrize(
    "change",
    [
        _other_settings,
        _other_batches,
        _other_latency,
        _other_model,
        _other_corpus,
        _other_library,
        _other_code,
        _other_threads,
    ],
    ids=lambda change: change.__name__.removeprefix("_other_"),
)
def test_after_a_change_an_interrupted_run_starts_afresh(
    change: Callable[[Project, pytest.MonkeyPatch], None],
    stopped: Project,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    change(stopped, monkeypatch)
    capsys.readouterr()
    asked = interrupt(monkeypatch, 0)
    transcribe.main("fp32")
    assert len(asked) == ALONE + 5
    assert "kept" not in capsys.readouterr().out
    mixed = outputs(stopped)["transcripts"]
    transcribe.main("fp32")
    assert outputs(stopped)["transcripts"] == mixed


def test_a_piece_that_was_cut_short_is_made_again(stopped: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    piece = stopped.root / "reports/transcripts/.fp32.jsonl.pieces/piece-test-a-00000.json"
    piece.write_bytes(piece.read_bytes()[:-10])
    asked = interrupt(monkeypatch, 0)
    transcribe.main("fp32")
    assert asked == ["a-1", "b-0"]


@pytest.mark.usefixtures("stopped")
def test_variants_keep_pieces_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = interrupt(monkeypatch, 0)
    transcribe.main("hqq-int4")
    assert len(asked) == ALONE + 5
    asked.clear()
    transcribe.main("fp32")
    assert asked == ["b-0"]


def test_percentiles_and_texts_that_differ_in_a_batch() -> None:
    single = [{"id": str(n), "text": "said", "seconds": n / 10} for n in range(1, 12)]  # 100 ms to 1,100 ms
    texts = {str(n): "said" for n in range(1, 12)} | {"3": "other"}
    assert transcribe.summary(single, texts) == {
        "p50_ms": 600.0,
        "p90_ms": 1000.0,
        "p95_ms": 1050.0,
        "utterances": 11,
        "other_texts": 1,
    }


def test_the_checkpoint_decides_not_params_yaml(project: Project) -> None:
    """What is measured is what lies on the disk."""
    transcribe.main("hqq-int4")
    first = (project.root / "reports/transcripts/hqq-int4.jsonl").read_bytes()
    project.set(**{"variants__hqq-int4": {"backend": "none", "bits": 32, "format": "float"}})
    transcribe.main("hqq-int4")
    assert (project.root / "reports/transcripts/hqq-int4.jsonl").read_bytes() == first
    timings = json.loads((project.root / "reports/timings/hqq-int4.json").read_text())
    assert timings["checkpoint"]["variant"]["backend"] == "hqq"


def test_an_unknown_variant(project: Project) -> None:
    assert refusal("fp23") == "unknown variant 'fp23' (did you mean 'fp32'?)"
    assert not (project.root / "reports").exists()


def test_a_variant_that_is_not_quantized_yet(project: Project) -> None:
    assert refusal("bnb-nf4") == (
        "models/bnb-nf4 has no readable checkpoint.json, so it is no checkpoint of this project; "
        "run 'dvc repro' to restore it"
    )
    assert not (project.root / "reports").exists()


def test_a_damaged_checkpoint(project: Project) -> None:
    weights = project.root / "models/fp32/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    assert refusal("fp32") == (
        "models/fp32/model.safetensors is not the file that was saved: it is cut short or edited; "
        "run 'dvc repro' to restore it"
    )


def test_no_gpu(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    project.set(device="cuda")
    assert refusal("fp32") == "device is 'cuda', but PyTorch sees no GPU here; set device to auto or cpu"


def test_a_language_that_the_model_does_not_know(project: Project) -> None:
    project.set(decoding__language="de", scoring__normalizer="basic")
    assert refusal("fp32") == ("decoding: this model only transcribes English, so de/transcribe needs another model")


def test_no_corpus(project: Project) -> None:
    for shard in (project.root / "data/corpus").rglob("*.parquet"):
        shard.unlink()
    assert refusal("fp32") == "data/corpus holds no prepared speech; run 'python -m pipeline.prepare' first"
