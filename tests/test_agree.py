import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline import agree, calibrate, quantize, reference
from pipeline.core import pieces
from pipeline.core.errors import UserError
from pipeline.speech import corpus
from pipeline.whisper import agreement
from tests import toy
from tests.conftest import ROOT, Project, noise


@pytest.fixture(scope="module")
def referenced(quantized: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a project that has been quantized as fp32 and hqq-int4, with fp32's reference."""
    folder = shutil.copytree(quantized, tmp_path_factory.mktemp("referenced") / "project")
    with contextlib.chdir(folder):
        reference.main()
    return folder


@pytest.fixture
def project(tmp_project: Project, referenced: Path) -> Project:
    shutil.copytree(referenced, tmp_project.root, dirs_exist_ok=True)
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
    assert list(agreed) == ["variant", "splits", "utterances"]
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


def test_an_interrupted_run_goes_on_where_it_stopped(
    project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    agree.main("hqq-int4")
    whole = Path("reports/agreement/hqq-int4.json").read_bytes()
    asked: list[str] = []
    compare = agreement.compare

    def some(*arguments: Any) -> torch.Tensor:
        if len(asked) == 4:
            raise KeyboardInterrupt
        asked.append(arguments[2].id)
        return compare(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(agreement, "compare", some)
        with pytest.raises(KeyboardInterrupt):
            agree.main("hqq-int4")
    Path("reports/agreement/hqq-int4.json").unlink()
    capsys.readouterr()
    agree.main("hqq-int4")
    assert capsys.readouterr().out.startswith("hqq-int4: kept 4 utterances")
    assert Path("reports/agreement/hqq-int4.json").read_bytes() == whole
    pieces.remove_finished(project.root)
    assert [path.name for path in Path("reports/agreement").iterdir()] == ["hqq-int4.json"]


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
