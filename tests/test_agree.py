import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline import agree, backends, calibrate, quantize, reference
from pipeline.core import pieces
from pipeline.core.errors import UserError
from pipeline.speech import corpus
from pipeline.whisper import agreement
from pipeline.whisper.inference import decoding
from tests import toy
from tests.conftest import ROOT, Project, noise


@pytest.fixture
def project(tmp_project: Project, heard: Path) -> Project:
    """Work in a project where fp32 and hqq-int4 can hear the corpus."""
    shutil.copytree(heard, tmp_project.root, dirs_exist_ok=True)
    for made in ("data/heard", "reports"):
        shutil.rmtree(made)
    return tmp_project


def found(variant: str) -> Any:
    return json.loads(Path(f"reports/agreement/{variant}.json").read_text())


def refusal(variant: str) -> str:
    with pytest.raises(UserError) as error:
        agree.main(variant)
    return str(error.value)


@pytest.mark.usefixtures("project")
def test_fp32_agrees_with_itself_exactly(capsys: pytest.CaptureFixture[str]) -> None:
    agree.main("fp32")
    assert found("fp32")["splits"] == {
        split: {"tokens": tokens, "kl": 0.0, "kl_p99": 0.0, "flips": 0.0, "log_likelihood": 0.0}
        for split, tokens in (("test-a", 6), ("test-b", 24))
    }
    (piece, *_) = Path("reports/agreement/.fp32.json.pieces").glob("piece-*")
    kept = json.loads(piece.read_text())
    assert {*kept["kl"], *(row[key] for row in kept["rows"] for key in ("kl", "log_likelihood"))} == {0.0}
    assert capsys.readouterr().out == (
        "fp32, test-a: KL 0.000000 a token, 0.00 % of 6 tokens flip\n"
        "fp32, test-b: KL 0.000000 a token, 0.00 % of 24 tokens flip\n"
    )


@pytest.mark.usefixtures("project")
def test_sums_of_utterances_are_sorted_and_give_the_splits() -> None:
    agree.main("hqq-int4")
    agreed = found("hqq-int4")
    rows = agreed["utterances"]
    assert list(agreed) == ["variant", "dequantized", "splits", "utterances"]
    assert list(rows[0]) == ["id", "split", "speaker", "tokens", "kl", "flips", "log_likelihood"]
    assert [(row["split"], row["id"]) for row in rows] == [
        *[("test-a", "a-1")],
        *[("test-b", f"b-{n}") for n in range(4)],
    ]
    assert {row["speaker"] for row in rows} == {"a", "b"}
    assert all(row["kl"] > 0 for row in rows)
    for split, rates in agreed["splits"].items():
        own = [row for row in rows if row["split"] == split]
        tokens, kl, flips = (sum(row[key] for row in own) for key in ("tokens", "kl", "flips"))
        assert rates["tokens"] == tokens
        assert rates["kl"] == pytest.approx(kl / tokens, abs=1e-6)
        assert rates["flips"] == pytest.approx(100 * flips / tokens, abs=1e-6)
        assert rates["kl_p99"] >= rates["kl"]


@pytest.mark.usefixtures("project")
def test_two_processes_say_the_same() -> None:
    command = [sys.executable, "-m", "pipeline.agree", "hqq-int4"]
    outputs = []
    for threads in ("1", "2"):
        shutil.rmtree("reports", ignore_errors=True)
        subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": threads}, check=True)
        outputs.append(found("hqq-int4"))
    one, other = outputs
    assert one["splits"] == {split: pytest.approx(rates, abs=1.5e-6) for split, rates in other["splits"].items()}
    for row, again in zip(one["utterances"], other["utterances"], strict=True):
        numbers = [{key: each[key] for key in ("tokens", "kl", "flips", "log_likelihood")} for each in (row, again)]
        assert numbers[0] == pytest.approx(numbers[1], abs=1.5e-6)


@pytest.mark.usefixtures("project")
def test_all_windows_of_a_recording_count() -> None:
    toy.write_shard(Path("data/corpus/test-a/00000.parquet"), "test-a", {"a-1": noise(70.0), "a-2": noise(1.0)})
    reference.main()
    agree.main("hqq-int4")
    tokens = {row["id"]: row["tokens"] for row in found("hqq-int4")["utterances"]}
    assert (tokens["a-1"], tokens["a-2"]) == (24, 6)


def test_means_and_percentile_by_hand() -> None:
    rows = [
        {"tokens": 60, "kl": 0.6, "flips": 1, "log_likelihood": -0.3},
        {"tokens": 41, "kl": 1.42, "flips": 0, "log_likelihood": 0.098},
    ]
    kls = [0.0] * 99 + [0.5, 1.52]  # the 100th of 101 is the percentile
    assert agree.summary(rows, kls) == {
        "tokens": 101,
        "kl": 0.02,
        "kl_p99": 0.5,
        "flips": 0.990099,
        "log_likelihood": -0.002,
    }


def test_a_model_that_gives_no_numbers_is_one_sentence(project: Project) -> None:
    toy.break_weights(project.root / "models/hqq-int4")
    assert re.fullmatch(
        r"variant 'hqq-int4': utterance '[ab]-\d': a token's logit is not a finite number, "
        "so no distribution follows: the weights are broken",
        refusal("hqq-int4"),
    )
    assert not list((project.root / "reports").glob("*/[!.]*"))


@pytest.mark.usefixtures("project")
def test_what_is_heard_is_what_decoding_from_scratch_writes() -> None:
    model = backends.load("hqq", Path("models/hqq-int4"), "cpu")
    vocabulary = decoding.Vocabulary.read(Path("models/hqq-int4"), "en", "transcribe")
    agree.main("hqq-int4")
    agree.main("fp32")
    fp32, heard = (
        {row["id"]: row["windows"] for row in map(json.loads, outputs(name)[0].decode().splitlines()[1:])}
        for name in ("fp32", "hqq-int4")
    )
    assert heard == {
        each.id: decoding.transcribe(model, [each], vocabulary, 6, 1)[0].windows for each in corpus.read(corpus.CORPUS)
    }
    assert heard != fp32


def test_dequantized_weights_say_what_the_library_computes(project: Project) -> None:
    rates = {}
    for kernels in ("library", "dequantized"):
        project.set(kernels=kernels)
        agree.main("hqq-int4")
        assert found("hqq-int4")["dequantized"] == (kernels == "dequantized")
        rates[kernels] = found("hqq-int4")["splits"]["test-b"]["kl"]
    assert rates["dequantized"] == pytest.approx(rates["library"], rel=1e-2)


class StoppedError(Exception):
    """Stands for whatever ends a run."""


def interrupt(monkeypatch: pytest.MonkeyPatch, calls: int) -> list[str]:
    """Let hearing end the run at call number `calls`; return a list that fills with the ids that it was asked for."""
    asked: list[str] = []
    hear = agreement.Listener.hear

    def some(self: agreement.Listener, utterance: corpus.Utterance, *rest: Any) -> Any:
        if calls and len(asked) >= calls:
            raise StoppedError
        asked.append(utterance.id)
        return hear(self, utterance, *rest)

    monkeypatch.setattr(agreement.Listener, "hear", some)
    return asked


def outputs(name: str = "fp32") -> list[bytes]:
    return [Path(f"data/heard/{name}.jsonl").read_bytes(), Path(f"reports/agreement/{name}.json").read_bytes()]


@pytest.fixture
def stopped(project: Project, monkeypatch: pytest.MonkeyPatch) -> Project:
    """Return the project after a run that ended in its last shard: a-1 and b-1 to b-3 of the first two were ready."""
    with monkeypatch.context() as patch:
        asked = interrupt(patch, 4)
        with pytest.raises(StoppedError):
            agree.main("fp32")
        assert sorted(asked) == ["a-1", "b-1", "b-2", "b-3"]
    return project


@pytest.mark.usefixtures("stopped")
def test_an_interrupted_run_goes_on_where_it_stopped(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert [path.name for path in Path("reports/agreement").iterdir()] == [".fp32.json.pieces"]
    asked = interrupt(monkeypatch, 0)
    agree.main("fp32")
    assert asked == ["b-0"]  # the last shard
    assert capsys.readouterr().out.startswith("fp32: kept 4 utterances of an interrupted run\n")
    resumed = outputs()
    agree.main("fp32")
    assert outputs() == resumed
    assert len(asked) == 1 + 5


def test_pieces_stay_until_dvc_has_recorded_the_output(stopped: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """DVC may fail to, or be killed; it removes the output before it runs the stage again."""
    agree.main("fp32")
    whole = outputs()
    for path in ("data/heard/fp32.jsonl", "reports/agreement/fp32.json"):
        Path(path).unlink()
    asked = interrupt(monkeypatch, 0)
    agree.main("fp32")
    assert asked == []
    assert outputs() == whole
    pieces.remove_finished(stopped.root)
    assert [path.name for path in Path("reports/agreement").iterdir()] == ["fp32.json"]


def _other_settings(project: Project, _: pytest.MonkeyPatch) -> None:
    project.set(decoding__max_new_tokens=5)


def _other_model(project: Project, _: pytest.MonkeyPatch) -> None:
    weights = project.root / "models/baseline/model.safetensors"
    tensors = load_file(weights)
    tensors["model.decoder.layer_norm.bias"] += 0.5
    save_file(tensors, weights, {"format": "pt"})
    quantize.main("fp32")
    reference.main()


def _other_corpus(project: Project, _: pytest.MonkeyPatch) -> None:
    toy.speech(project.root / "data/corpus/test-b/00000.parquet", "test-b", {"b-3": 1.5, "b-2": 0.5, "b-1": 1.0})
    reference.main()


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
    [_other_settings, _other_model, _other_corpus, _other_library, _other_code, _other_threads],
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
    agree.main("fp32")
    assert len(asked) == 5
    assert "kept" not in capsys.readouterr().out
    mixed = outputs()
    agree.main("fp32")
    assert outputs() == mixed


@pytest.mark.usefixtures("stopped")
def test_a_piece_that_was_cut_short_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    piece = Path("reports/agreement/.fp32.json.pieces/piece-test-a-00000.json")
    piece.write_bytes(piece.read_bytes()[:-10])
    asked = interrupt(monkeypatch, 0)
    agree.main("fp32")
    assert asked == ["a-1", "b-0"]


@pytest.mark.usefixtures("stopped")
def test_variants_keep_pieces_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = interrupt(monkeypatch, 0)
    agree.main("hqq-int4")
    assert len(asked) == 5
    asked.clear()
    agree.main("fp32")
    assert asked == ["b-0"]


def test_without_a_reference(project: Project) -> None:
    shutil.rmtree(project.root / "data/reference")
    assert refusal("fp32") == (
        "data/reference/test-a-00000.parquet is not here; run 'python -m pipeline.reference' first"
    )


def test_a_damaged_reference(project: Project) -> None:
    path = project.root / "data/reference/test-b-00000.parquet"
    path.write_bytes(path.read_bytes()[:-9])
    assert re.fullmatch(
        r"data/reference/test-b-00000.parquet cannot be read \(.+\); run 'python -m pipeline.reference' again",
        refusal("fp32"),
    )


def test_a_reference_with_a_flipped_bit(project: Project) -> None:
    path = project.root / "data/reference/test-b-00000.parquet"
    (states, *_) = (row["states"] for row in corpus.rows(path, ["states"]))
    whole = bytearray(path.read_bytes())
    whole[whole.index(states[:64])] ^= 1
    path.write_bytes(whole)
    assert re.fullmatch(
        r"data/reference/test-b-00000.parquet cannot be read \(.+\); run 'python -m pipeline.reference' again",
        refusal("fp32"),
    )


def test_a_reference_of_other_weights(project: Project) -> None:
    toy.retrain(project.root / "models/baseline")
    quantize.main("fp32")
    assert refusal("fp32") == (
        "data/reference/test-a-00000.parquet is of other weights than the fp32 that is here; "
        "run 'python -m pipeline.reference' again"
    )


@pytest.mark.usefixtures("project")
def test_a_reference_of_other_speech() -> None:
    toy.write_shard(Path("data/corpus/test-a/00000.parquet"), "test-a", {"a-2": noise(1.0)})
    assert refusal("fp32") == (
        "data/reference/test-a-00000.parquet is of other speech than data/corpus/test-a/00000.parquet; "
        "run 'python -m pipeline.reference' again"
    )


@pytest.mark.parametrize("name", ["fp32", "hqq-int4"])
def test_a_damaged_checkpoint(project: Project, name: str) -> None:
    weights = project.root / f"models/{name}/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    assert refusal("hqq-int4") == (
        f"models/{name}/model.safetensors is not the file that was saved: it is cut short or edited; "
        "run 'dvc repro' to restore it"
    )


@pytest.mark.usefixtures("project")
def test_an_unknown_variant() -> None:
    assert refusal("fp23") == "unknown variant 'fp23' (did you mean 'fp32'?)"


@pytest.mark.slow
def test_int8_of_real_weights_is_near_and_fp32_exact(
    tiny_en: Path, sample: list[corpus.Utterance], tmp_project: Project
) -> None:
    """Kullback-Leibler divergences of a real model: 8 bits are far below 4."""
    shutil.copytree(tiny_en, "models/baseline")
    toy.speech(Path("data/calibration/00000.parquet"), "train", {"c-1": 0.5})
    tmp_project.set(device="cpu")
    _copy(sample, Path("data/corpus/librivox/00000.parquet"))
    rates = {}
    calibrate.main()
    for number, name in enumerate(("fp32", "hqq-int8", "hqq-int4")):
        quantize.main(name)
        if not number:
            reference.main()
        agree.main(name)
        rates[name] = found(name)["splits"]["librivox"]
    assert rates["fp32"] == {"tokens": 91, "kl": 0.0, "kl_p99": 0.0, "flips": 0.0, "log_likelihood": 0.0}
    assert 0 < rates["hqq-int8"]["kl"] < 0.002 < 0.02 < rates["hqq-int4"]["kl"] < 0.2
    assert rates["hqq-int8"]["flips"] < rates["hqq-int4"]["flips"] < 15


def _copy(utterances: list[corpus.Utterance], shard: Path) -> None:
    sounds = {each.id: (corpus.samples(each) * 32768).astype("int16") for each in utterances}
    toy.write_shard(shard, "librivox", sounds)
