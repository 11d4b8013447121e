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

from pipeline import agree, backends, calibrate, quantize, reference, transcribe, transcribe_protocols
from pipeline.core.errors import UserError
from pipeline.speech import corpus
from pipeline.whisper.inference import decoding
from pipeline.whisper.model import network, weights
from tests import toy
from tests.conftest import ROOT, Project


@pytest.fixture
def project(tmp_project: Project, heard: Path) -> Project:
    """Work in a project where fp32 and hqq-int4 have heard the corpus."""
    shutil.copytree(heard, tmp_project.root, dirs_exist_ok=True)
    return tmp_project


def refusal(variant: str) -> str:
    with pytest.raises(UserError) as error:
        transcribe.main(variant)
    return str(error.value)


def test_transcripts_are_sorted_and_the_same_every_time(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    transcribe.main("fp32")
    assert capsys.readouterr().out.startswith("fp32: 5 utterances; ")
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
        *("device", "batch_size", "split_utterances", "conversions", "load_s", "latency"),
        *("audio_s", "transcribe_s", "rtfx", "pass_utterances", "pass_other_texts"),
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
    assert seen[5:] == [(2, before), (2, before)]  # in whole batches
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
    broken = project.root / "models/fp32"
    toy.break_weights(broken)
    file = project.root / "data/heard/fp32.jsonl"
    source, *others = file.read_text().splitlines(keepends=True)
    made = json.loads(source) | {"files": json.loads((broken / "checkpoint.json").read_text())["files"]}
    file.write_text("".join([json.dumps(made) + "\n", *others]))
    assert re.fullmatch(
        r"variant 'fp32': utterance '[ab]-\d': no token can be chosen, as its logit is not a finite number: "
        "the weights are broken, or every token is suppressed",
        refusal("fp32"),
    )
    assert not (project.root / "reports/transcripts").exists()


@pytest.mark.slow
def test_memory_does_not_follow_the_recording(project: Project) -> None:
    """Out of memory on a lecture: all windows of a recording were decoded at once."""
    project.set(decoding__batch_size=8, latency__utterances=1)
    peaks = []
    for minutes in (6, 24):
        shutil.rmtree(project.root / "data/corpus")
        sound = np.random.default_rng(0).integers(-30, 30, minutes * 60 * 16000).astype(np.int16)
        toy.write_shard(project.root / "data/corpus/long/00000.parquet", "long", {"lecture": sound})
        for stage in (["reference"], ["agree", "fp32"], ["transcribe", "fp32"]):
            command = [sys.executable, "-m", f"pipeline.{stage[0]}", *stage[1:]]
            subprocess.run(command, cwd=project.root, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True)
        peaks.append(json.loads(Path("reports/timings/fp32.json").read_text())["pass_peak_rss_mb"])
    assert peaks[1] <= 1.4 * peaks[0], peaks  # all at once would be 2.3 times as much


def test_detected_languages_stand_in_the_transcript(tmp_project: Project, tmp_path: Path) -> None:
    """Recordings of several languages, and `language: auto`."""
    toy.project(tmp_project, toy.write(tmp_path / "multilingual", toy.MULTILINGUAL))
    tmp_project.set(decoding__language="auto", scoring__normalizer="basic")
    calibrate.main()
    for name in ("fp32", "hqq-int4"):
        quantize.main(name)
        if name == "fp32":
            reference.main()
        agree.main(name)
        transcribe.main(name)
    model, vocabulary = (
        backends.load("hqq", Path("models/hqq-int4"), "cpu"),
        decoding.Vocabulary.read(Path("models/hqq-int4"), "auto", "transcribe"),
    )
    found = [
        decoding.transcribe(model, [each], vocabulary, 6, 1)[0].line(vocabulary) for each in corpus.read(corpus.CORPUS)
    ]
    written = [json.loads(line) for line in Path("reports/transcripts/hqq-int4.jsonl").read_text().splitlines()]
    assert sorted((line["language"], line["pred_text"]) for line in written) == sorted(
        (line["language"], line["pred_text"]) for line in found
    )
    lines = [json.loads(line) for line in Path("reports/transcripts/fp32.jsonl").read_text().splitlines()]
    assert list(lines[0]) == ["id", "split", "speaker", "duration", "text", "language", "pred_text"]
    assert {line["language"] for line in lines} <= {"en", "de"}
    assert len(lines) == 5
    transcribe_protocols.main()
    assert {json.loads(line)["language"] for line in Path("reports/protocols.jsonl").read_text().splitlines()} == {
        line["language"] for line in lines
    }


def test_texts_that_differ_from_the_transcript_are_counted(project: Project) -> None:
    """As kernels round otherwise in a batch, or than the dequantized weights."""
    file = project.root / "data/heard/fp32.jsonl"
    source, other, *others = map(json.loads, file.read_text().splitlines())
    other["windows"] = [[1, 2, 3]]
    file.write_text("".join(json.dumps(line) + "\n" for line in [source, other, *others]))
    transcribe.main("fp32")
    timings = json.loads((project.root / "reports/timings/fp32.json").read_text())
    assert (timings["latency"]["other_texts"], timings["pass_other_texts"]) == (1, 1)


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
    assert not (project.root / "reports/transcripts").exists()


def test_a_variant_that_is_not_quantized_yet(project: Project) -> None:
    assert refusal("bnb-nf4") == (
        "models/bnb-nf4 has no readable checkpoint.json, so it is no checkpoint of this project; "
        "run 'dvc repro' to restore it"
    )
    assert not (project.root / "reports/transcripts").exists()


def test_what_was_heard_must_be_of_this_corpus(project: Project) -> None:
    file = project.root / "data/heard/fp32.jsonl"
    source, first, *others = file.read_text().splitlines(keepends=True)
    again = "run 'python -m pipeline.agree fp32'"
    for text, said in (
        ("".join([source, *others]), f"lacks utterance 'a-1' of split 'test-a'; {again} again"),
        (
            "".join([source, first, *others, first.replace("a-1", "a-2")]),
            f"has utterance 'a-2' of split 'test-a', which is not in the corpus; {again} again",
        ),
        (source + first[:-9], f"is not what 'agree' writes; {again} again"),
        (source + first.replace("windows", "texts"), f"is not what 'agree' writes; {again} again"),
    ):
        file.write_text(text)
        assert refusal("fp32") == f"data/heard/fp32.jsonl {said}"
    file.unlink()
    assert refusal("fp32") == f"data/heard/fp32.jsonl is not here; {again} first"
    assert not (project.root / "reports/transcripts").exists()


def _other_weights(project: Project) -> None:
    toy.retrain(project.root / "models/baseline")
    quantize.main("fp32")


def _other_decoding(project: Project) -> None:
    project.set(decoding__max_new_tokens=5)


@pytest.mark.parametrize("change", [_other_weights, _other_decoding])
def test_what_was_heard_must_be_of_this_checkpoint(change: Callable[[Project], None], project: Project) -> None:
    change(project)
    assert refusal("fp32") == (
        "data/heard/fp32.jsonl is of another checkpoint, or was decoded in another way; "
        "run 'python -m pipeline.agree fp32' again"
    )
    assert not (project.root / "reports/transcripts").exists()


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
