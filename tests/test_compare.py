import csv
import json
from pathlib import Path

import pytest

from pipeline import compare
from pipeline.core.errors import UserError
from tests.results.test_comparison import agreements, scores, timings

PARAMS = """
model: tiny
corpus: two
device: cpu
backend: quanto
variants:
  fp32: {backend: none, bits: 32, format: float}
  hqq-int4: {backend: hqq, bits: 4, exclude: [proj_out, model.decoder.*]}
decoding: {}
latency: {}
calibration: {corpus: two, split: dev, utterances: 1}
scoring: {resamples: 1000}
"""
CATALOG = """
models:
  tiny: {source: directory, path: tiny}
corpora:
  two: {source: directory, path: two, splits: [clean]}
"""


def study(folder: Path, **wrong: list[int]) -> None:
    """Write params.yaml, scores, agreement and timings; a name's underscores stand for hyphens."""
    (folder / "params.yaml").write_text(PARAMS)
    (folder / "catalog.yaml").write_text(CATALOG)
    (folder / "reports/scores").mkdir(parents=True)
    (folder / "reports/timings").mkdir(parents=True)
    (folder / "reports/agreement").mkdir(parents=True)
    for name, total, variant in (
        ("fp32", 150_000_000, {"backend": "none", "bits": 32, "group_size": None, "exclude": []}),
        ("hqq-int4", 90_000_000, {"backend": "hqq", "bits": 4, "group_size": 64, "exclude": ["a", "b*"]}),
        ("candidate", 100_000_000, {"backend": "quanto", "bits": 8, "group_size": None, "exclude": []}),
    ):
        scored = scores(*wrong[name.replace("-", "_")])
        agreed = agreements(scored) if name == "fp32" else agreements(scored, kl=0.00712345, flips=1)
        (folder / f"reports/scores/{name}.json").write_text(json.dumps(scored))
        (folder / f"reports/agreement/{name}.json").write_text(json.dumps(agreed))
        (folder / f"reports/timings/{name}.json").write_text(json.dumps(timings(total, **variant)))


def test_main_writes_the_metrics_of_the_contract_and_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Every utterance has the same rate, so that every resample has too: 10 %, 20 % and 10 %.
    study(tmp_path, fp32=[1] * 10, hqq_int4=[2] * 10, candidate=[1] * 10)
    monkeypatch.chdir(tmp_path)
    compare.main()
    assert json.loads(Path("reports/metrics.json").read_text()) == {
        "fp32": {
            "size_mb": 150.0,
            "size_reduction": 0.0,
            "clean": {
                "wer": 10.0,
                "wer_low": 1.0,
                "wer_high": 30.0,
                "wer_delta": 0.0,
                "wer_delta_low": 0.0,
                "wer_delta_high": 0.0,
                "kl": 0.0,
                "flips": 0.0,
            },
        },
        "hqq-int4": {
            "size_mb": 90.0,
            "size_reduction": 40.0,
            "clean": {
                "wer": 20.0,
                "wer_low": 1.0,
                "wer_high": 30.0,
                "wer_delta": 10.0,
                "wer_delta_low": 10.0,
                "wer_delta_high": 10.0,
                "kl": 0.000712,
                "flips": 10.0,
            },
        },
        "candidate": {
            "size_mb": 100.0,
            "size_reduction": 33.333,
            "clean": {
                "wer": 10.0,
                "wer_low": 1.0,
                "wer_high": 30.0,
                "wer_delta": 0.0,
                "wer_delta_low": 0.0,
                "wer_delta_high": 0.0,
                "kl": 0.000712,
                "flips": 10.0,
            },
        },
    }
    assert json.loads(Path("reports/candidate.json").read_text()) == {
        "size_mb": 100.0,
        "clean": {"wer": 10.0, "vs_fp32": "+0.00 [+0.00, +0.00]", "kl": 0.000712},
    }
    first, *others = Path("reports/errors.csv").read_text().splitlines()
    assert first == "split,id,speaker,words,fp32,hqq-int4,candidate"
    assert [line.split(",")[3:] for line in others] == [["10", "1", "2", "1"]] * 10
    with Path("reports/results.csv").open(newline="") as file:
        baseline, variant, candidate = csv.DictReader(file)
    assert (baseline["verdict"], baseline["p_value"], baseline["p_holm"]) == ("baseline", "", "")
    assert (candidate["verdict"], candidate["p_value"], candidate["p_holm"]) == ("undecided", "1.0", "1.0")
    assert variant == {
        "variant": "hqq-int4",
        "split": "clean",
        "backend": "hqq",
        "bits": "4",
        "group_size": "64",
        "exclude": "a b*",
        "utterances": "10",
        "split_utterances": "20",
        "resampled": "4",
        "mixed_down": "2",
        "normalizer": "english",
        "normalizer_version": "whisper-normalizer 0.1.15",
        "words": "100",
        "hits": "80",
        "substitutions": "20",
        "deletions": "0",
        "insertions": "0",
        "looping": "0",
        "dequantized": "False",
        "other_texts": "10",
        "other_ids": " ".join(f"u{n}" for n in range(10)),
        "regressed": "10",
        "improved": "0",
        "p_churn": "0.001953",
        "empty": "0",
        "looping_ids": "",
        "measure": "wer",
        "wer": "20.0",
        "wer_low": "1.0",
        "wer_high": "30.0",
        "wer_delta": "10.0",
        "wer_delta_low": "10.0",
        "wer_delta_high": "10.0",
        "wer_delta_low_utterance": "10.0",
        "wer_delta_high_utterance": "10.0",
        "wer_delta_low_speaker": "",  # there is only one
        "wer_delta_high_speaker": "",
        "p_value": "0.001953",  # ten utterances agree: 2 / 2^10
        "p_value_utterance": "0.001953",
        "p_value_speaker": "",
        "p_holm": "0.003906",  # the smaller of two
        "p_no_worse_0_3": "1.0",
        "p_no_worse_0_5": "1.0",
        "p_no_worse_1_0": "1.0",
        "test_unit": "utterance",
        "verdict": "worse",
        "no_worse_than": "",
        "units_to_decide": "",
        "smallest_detectable": "7.0",  # words of a hundred: 2 / 2^7 is below 0.05 / 2, 2 / 2^6 is not
        "mapsswe_z": "3.162",  # ten segments that all differ by one: sqrt(10)
        "mapsswe_p": "0.001565",
        "tokens": "10",
        "kl": "0.000712",
        "kl_p99": "0.007123",
        "flips": "10.0",
        "log_likelihood": "-0.007123",
        "larger": "",
        "kl_less_larger": "",
        "p_kl": "",
        "torch_ao": "",
        "kl_of_torch_ao": "",
        "latency_of_torch_ao": "",
        "kl_low": "0.000712",  # every utterance has the same
        "kl_high": "0.000712",
        "flips_low": "10.0",
        "flips_high": "10.0",
        "size_mb": "90.0",
        "size_reduction": "40.0",
        "size_reduction_fp16": "-20.0",
        "calibration": "2",
        "bytes_total": "90000000",
        "bytes_scales": "7",
        "bits_per_weight": "4.5",
        "device": "cpu",
        "rtfx": "12.346",
        "peak_gpu_mb": "",
        "versions_torch": "2.13.0",
    }


def test_a_dropped_variant_disappears(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study(tmp_path, fp32=[1, 1], hqq_int4=[2, 2], candidate=[1, 1])
    kept = [line for line in PARAMS.splitlines() if "hqq-int4" not in line]
    (tmp_path / "params.yaml").write_text("\n".join(kept))
    monkeypatch.chdir(tmp_path)
    compare.main()
    assert list(json.loads(Path("reports/metrics.json").read_text())) == ["fp32", "candidate"]


def test_what_dropped_variants_left_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study(tmp_path, fp32=[1, 1], hqq_int4=[2, 2], candidate=[1, 1])
    monkeypatch.chdir(tmp_path)
    compare.sweep(["fp32", "candidate"])
    assert {path.stem for path in Path("reports").glob("*/*.json")} == {"fp32", "candidate"}
    assert len(list(Path("reports").glob("*/*.json"))) == 6


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"reports/agreement/hqq-int4.json is not here; run 'dvc repro', or 'python -m pipeline.agree hqq-int4'"),
        ("[]", r"reports/agreement/hqq-int4.json is no JSON object; run 'python -m pipeline.agree hqq-int4' again"),
    ],
)
def test_a_missing_or_odd_agreement_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None, message: str
) -> None:
    study(tmp_path, fp32=[1, 1], hqq_int4=[2, 2], candidate=[1, 1])
    monkeypatch.chdir(tmp_path)
    path = Path("reports/agreement/hqq-int4.json")
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(UserError, match=message):
        compare.main()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "fp32.json is not here; run 'dvc repro', or 'python -m pipeline.score fp32'"),
        ("{", "is no JSON object"),
        ("[[1, 2]]", "is no JSON object"),
        ("[" * 10_000, "is no JSON object"),
    ],
)
def test_a_missing_or_broken_file_is_refused(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "fp32.json").write_text(content)
    with pytest.raises(UserError, match=message):
        compare.read(tmp_path / "fp32.json", "score")
