import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.core import params
from pipeline.core.errors import UserError
from pipeline.results import overview, page, tables
from tests import made
from tests.conftest import ROOT
from tests.made import FP32, LINES, OWN, line, protocol, sections

STUDIES = sorted(folder for folder in (ROOT / "studies").glob("*") if folder.is_dir())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a study's folder with everything in it."""
    folder = made.write(tmp_path / "small")
    other = protocol(3.0, 1.5, 4.5, normalizer="basic", looping=2, wer_without_loops=9.9)
    (folder / "protocol.csv").write_text(tables.to_csv([OWN, other]))
    (folder / "engines.csv").write_text(made.ENGINES)
    return folder


def test_committed_studies_have_the_page_that_their_files_make() -> None:
    """After a change of the page: python -m pipeline.study --page studies/<name>."""
    differ = [folder.name for folder in STUDIES if (folder / "README.md").read_text() != page.text(folder, folder.name)]
    assert differ == []


def test_the_index_of_committed_studies_is_what_their_files_make() -> None:
    """After a change of studies: make page."""
    assert (ROOT / "studies/README.md").read_text() == page.index(STUDIES)
    assert (ROOT / "studies/index.html").read_text() == overview.text(STUDIES)


def test_the_index_has_every_claim_by_model(folder: Path, tmp_path: Path) -> None:
    other = made.write(tmp_path / "other", [FP32, line("hqq-int3", 0.1, -0.2, 0.3)])
    found = page.index([folder, other])
    assert "| [small](small/README.md) | small | test-clean: 120 utterances of 20 speakers, 2,400 words<br>" in found
    assert "| nf4 and int3 save up to 71 % | the paper | holds | does not hold |" in found
    assert "| quanto int8 saves 57 % | the paper | holds |  |" in found
    assert "- other: Nothing yet: this study is older than margins, and did not test them." in found


def test_the_answer_names_the_smallest_and_the_fastest(tmp_path: Path) -> None:
    safe = [
        line("a", 0.1, -0.2, 0.2, "no worse", no_worse_than=0.3, size_mb=290.07, size_reduction=70.0),
        line("b", 0.1, -0.2, 0.2, "no worse", no_worse_than=1.0, size_mb=80.0, latency_p50_ms=400.0)
        | {"dequantized": "True", "latency_other_texts": 3},
    ]
    open_ = line("c", 1.0, 0.0, 2.0)
    lines = [row | {"test_unit": "speaker"} for row in (FP32, *safe, open_)]
    said, _, table = page.answer(made.write(tmp_path / "small", lines)).partition("\n\n")
    assert said == (
        "**Ship `a`: 290.1 MB, 30 % of fp32's 966.9, no worse than 0.3 points of WER on test-clean; "
        "where 1.0 points may be lost, `b`, 80.0 MB (by its weights in float32: with its library's kernels, "
        "3 of 20 timed utterances read otherwise); "
        "for speed, `b`, 80.0 MB: 0.50 of fp32's time for a single utterance on A processor, 2 threads.** "
        "Whisper small, test-clean: 120 utterances of 20 speakers, 2,400 words; 3 variants compared, "
        "97.5 % sure for each margin and split."
    )
    assert [row.split(" | ")[0] for row in table.splitlines()[2:]] == ["| fp32", "| a", "| b"]


def test_where_nothing_is_safe_the_answer_is_fp32(tmp_path: Path) -> None:
    lines = [row | {"test_unit": "utterance"} for row in (FP32, line("a", 0.1, -0.2, 0.2))]
    folder = made.write(tmp_path / "small", lines)
    assert page.answer(folder).startswith(
        "Ship fp32: of no variant does this speech (test-clean) show that it loses less than 1.0 points.\n\n| variant |"
    )
    assert "answer.svg" not in page.text(folder, "small")


def test_the_page_tells_how_well_kl_foretells(tmp_path: Path) -> None:
    names = ["quanto-int8", "hqq-int3", "hqq-int4", "bnb-nf4", "quanto-int4", "quanto-int2"]
    columns = ("kl", "kl_low", "kl_high", "kl_p99", "flips", "flips_low", "flips_high", "tokens")
    agreed: dict[str, Any] = dict.fromkeys(columns, 1)
    lost = {name: 2.0 * (name == "quanto-int2") for name in names}
    lines = [FP32 | agreed, *(line(name, lost[name], -0.2, 3.0, bits=4, **agreed) for name in names)]
    folder = made.write(tmp_path / "small", lines)
    rows = [f"split,id,speaker,words,fp32,{','.join(names)}"]
    rows += [f"test-clean,{n}-1-{n},{n},20,1,{','.join(str(n % 2 + i) for i in range(6))}" for n in range(12)]
    (folder / "errors.csv").write_text("\n".join(rows) + "\n")
    told = ["variant,model,corpus,split,utterances,tokens,kl", "fp32,small,subset,train,9,1200,0"]
    told += [f"{name},small,subset,train,9,1200,{n}" for n, name in enumerate(names, 1)]
    (folder / "foretold.csv").write_text("\n".join(told) + "\n")
    body = page.text(folder, "small")
    assert "How well does KL along 1,200 tokens of 9 other utterances (`train`) rank" in body
    assert "- 6 variants: 1.00 [" in body
    assert "- 5 variants, those that lose less than 1.0: 1.00 [" in body


def test_the_whole_page(folder: Path) -> None:
    text = page.text(folder, "base")
    assert list(sections(text)) == [
        "",
        "Findings",
        "Accuracy",
        "Size, time and memory",
        "Claims",
        "The protocol",
        "Speed",
        "Limits",
    ]
    assert text.endswith("or a phone.\n")
    assert "\n\n\n" not in text
    assert [mark for mark in ("None", "nan", "[]", "{", "}") if mark in text] == []
    assert page.text(folder, "base") == text


def test_what_was_done(folder: Path) -> None:
    assert sections(page.text(folder, "base"))[""] == (
        "# Study base: Whisper small on subset\n"
        "\n"
        "- Model: Whisper `small`, from the hub (openai/whisper-small, revision "
        "973afd24965f72e36ca33b3055d56a652f456b4d); fp32 and 2 quantized variants, each saved, loaded from disk again "
        "and then measured.\n"
        "- Speech: `subset`, a *subset* that lies in a folder.\n"
        "- test-clean: 120 utterances of 20 speakers, 2,400 words, 15.0 minutes.\n"
        "- test-other: 120 utterances of 20 speakers, 2,400 words, 15.0 minutes.\n"
        "- Calibration, where a variant learns from speech: 5 utterances of split `dev-clean` of corpus `subset`.\n"
        "- Decoding: greedy, without temperature fallback; language en, task transcribe, batch_size 16, "
        "max_new_tokens 444, suppress_non_speech true, seed 0.\n"
        "- Scoring: normalizer english, resamples 10000, seed 0. Intervals: bootstrap, 95 %, by speaker, paired if "
        "against fp32. Verdicts stand after Holm's correction over all variants, intervals are not corrected.\n"
        "- Machine: A processor, cpu, 2 threads.\n"
        "- Software: python 3.11.7, torch 2.13.0+cpu, optimum-quanto 0.2.7, hqq 0.2.8, bitsandbytes 0.50.2, "
        "torchao 0.18.0.\n"
        "\n"
        "[environment.json](environment.json) has the commit, the date and every installed package, "
        "[utterances.txt](utterances.txt) what\n"
        "was transcribed and what calibrated, [results.csv](results.csv) everything measured, "
        "[params.yaml](params.yaml)\n"
        "and [catalog.yaml](catalog.yaml) every setting. Again:\n"
        "\n"
        "```sh\n"
        "dvc exp run -S model=small -S corpus=subset -S calibration.corpus=subset -S calibration.split=dev-clean "
        "-S calibration.utterances=5\n"
        "make study NAME=base\n"
        "```\n"
    )


def test_the_tables(folder: Path) -> None:
    found = sections(page.text(folder, "base"))
    assert found["Accuracy"] == (
        "| variant | test-clean WER % [95 %] | vs fp32 [95 %] | test-other WER % [95 %] | vs fp32 [95 %] | "
        "loops (WER % without) |\n"
        "| --- | --- | --- | --- | --- | --- |\n"
        "| fp32 | 3.50 [3.00, 4.10] |  | 8.00 [7.00, 9.00] |  |  |\n"
        "| quanto-int8 | 3.43 [3.00, 4.10] | -0.07 [-0.12, -0.02] **better** | 8.02 [7.00, 9.00] | "
        "+0.02 [-0.30, +0.34] undecided |  |\n"
        "| hqq-int3 | 3.80 [3.00, 4.10] | +0.30 [-0.10, +0.70] undecided | 10.00 [7.00, 9.00] | "
        "+2.00 [+1.10, +2.90] **worse** | 3 (9.00) |\n"
        "\n"
        "Worse and better: significant after Holm's correction over all variants.\nUndecided: neither."
    )
    assert found["Size, time and memory"].split("\n\n")[0] == (
        "| variant | MB | saved | of fp16 | bits/weight | p50 ms | p95 ms | RTFx | peak MB |\n"
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |\n"
        "| fp32 | 966.9 | 0.0 % | -100.0 % | 32.00 | 800 | 1500 | 4.0 | 2500 |\n"
        "| quanto-int8 | 412.2 | 57.4 % | 14.7 % | 8.04 | 900 | 1500 | 4.0 | 2500 |\n"
        "| hqq-int3 | 278.3 | 71.2 % | 42.4 % | 4.20 | 600 | 1500 | 4.0 | 2500 |"
    )
    assert found["The protocol"].split("\n\n")[1] == (
        "| split | suppress_non_speech | max_new_tokens | normalizer | S/D/I | WER % | vs the study's own [95 %] | "
        "loops (WER % without) |\n"
        "| --- | --- | --- | --- | --- | --- | --- | --- |\n"
        "| test-other | true | 444 | english | 150/20/22 | 8.00 |  |  |\n"
        "| test-other | true | 444 | basic | 150/20/22 | 11.00 | +3.00 [+1.50, +4.50] | 2 (9.90) |"
    )
    assert found["Speed"] == (
        "All 3 variants in batches took 1.00 times what 3 passes of fp32 take.\n"
        "\n"
        "| engine, fp32 unless it says otherwise | RTFx | time, ours is 1 | texts that differ from ours |\n"
        "| --- | --- | --- | --- |\n"
        "| whisper-ptq fp32 | 4.1 | 1.00 | 0 |\n"
        "| ctranslate2 int8 | 9.0 | 0.45 | 3 |\n"
        "\n"
        "48 utterances, 310 s, in batches of 16; A processor, 2 threads;\n"
        "medians of 3 rounds in which the engines took turns."
    )


RULES = """\
- A claim to be *better* holds where the verdict is "better", and does not hold where it is "worse".
- A claim of *about +x points* does not hold where the 95 % interval leaves x out, and holds where x is in it and the
  verdict is "worse".
- A claim of *at most +x points* holds where the whole interval is at or below x, and does not hold where all of it is
  above.
- A claim to cost *nothing* or be *neutral* holds where it is no worse than 0.3, and does not hold where it is "worse".
- A claim to cost *a lot*, *break* or *fail* holds where the whole interval is above 1.0 and the verdict is "worse", \
and does not hold where it is no worse than that.
- *Fewer bits cost more* holds within a library where the fewest bits have their whole interval above that of the most
  bits, and does not hold where any interval lies below that of more bits.
- A claim about Whisper-small's size holds where the saving is within one point of it; other models have other shares
  of quantized weights and tell nothing.
- Everything else cannot be told."""


def test_claims_stand_with_their_rules(folder: Path) -> None:
    body = sections(page.text(folder, "base"))["Claims"]
    assert (
        "| quanto int8 saves 57 % | the paper | `quanto-int8` 57.4 % (Whisper-small by arithmetic: 57.4 %) | holds |"
        in body
    )
    assert body.endswith(RULES)


def test_what_was_not_measured_is_told_with_its_command(tmp_path: Path) -> None:
    found = sections(page.text(made.write(tmp_path / "base"), "base"))
    assert found["The protocol"] == (
        "Whether another protocol would move the baseline was not measured (`dvc repro score_protocols` does)."
    )
    assert found["Speed"].splitlines()[1] == (
        "Other engines were not measured beside it (`python -m benchmarks.engines --out reports/engines.csv` does)."
    )


SILENT: dict[str, Any] = {
    "split": "silence",
    "measure": "insertions_per_minute",
    "words": 0,
    "utterances": 12,
    "wer_without_loops": None,
    "interval_unit": "utterance",
}


def test_speech_without_words(tmp_path: Path) -> None:
    base = FP32 | SILENT | {"rate": 0.5, "rate_low": 0.1, "rate_high": 2.5}
    lines = [base, line("hqq-int3", 9.5, 4.0, 15.0, "worse", **SILENT, rate=10.0, looping=7)]
    folder = made.write(tmp_path / "silence", lines, corpus="silence")
    silent = OWN | {"split": "silence", "wer": None, "wer_without_loops": None}
    (folder / "protocol.csv").write_text(tables.to_csv([silent]))
    text = page.text(folder, "silence")
    found = sections(text)
    assert "- Speech: `silence`, generated by this project.\n" in found[""]
    assert (
        "- silence: 12 recordings without speech, 15.0 minutes (fewer than 30 utterances: a rough guess).\n"
        in found[""]
    )
    assert found["Accuracy"].splitlines()[0] == (
        "| variant | silence I/min [95 %] | vs fp32 [95 %] | loops (WER % without) |"
    )
    assert found["Accuracy"].splitlines()[3].endswith("| 10.00 [3.00, 4.10] | +9.50 [+4.00, +15.00] **worse** | 7 |")
    assert found["Claims"] == (
        "Left out: [arXiv 2511.08093](https://arxiv.org/abs/2511.08093) is about test-clean and test-other, which were "
        "not transcribed here."
    )
    assert "| silence | true | 444 | english | 150/20/22 | 1.46 I/min |  |  |" in found["The protocol"]
    assert "None" not in text


def test_claims_of_no_variant_here_are_left_out(tmp_path: Path) -> None:
    body = sections(page.text(made.write(tmp_path / "few", [FP32]), "few"))["Claims"]
    assert (
        body
        == "Left out: [arXiv 2511.08093](https://arxiv.org/abs/2511.08093) makes no claim about any of these variants."
    )


def test_a_gpu_several_machines_and_what_was_being_tried(tmp_path: Path) -> None:
    lines = [
        FP32 | {"device": "cuda", "machine": "A GPU", "peak_gpu_mb": 1200.4},
        line("candidate", 0.1, -0.2, 0.4, latency_utterances=7),
    ]
    found = sections(page.text(made.write(tmp_path / "base", lines, exclude=[]), "base"))
    assert "- Machine: A GPU, cuda, 2 threads; A processor, cpu, 2 threads.\n" in found[""]
    assert "- `candidate` is what was being tried: bits 8, backend quanto, exclude [].\n" in found[""]
    head, _, gpu, cpu = found["Size, time and memory"].splitlines()[:4]
    assert head.endswith("| peak MB | peak GPU MB |")
    assert gpu.endswith("| 2500 | 1200 |")
    assert cpu.endswith("| 2500 |  |")
    assert "(of 7 to 20, 2 threads," in found["Size, time and memory"]
    assert "are of 2 machines, across which they do not compare." in found["Limits"]


def test_jobs_that_shared_the_machine_are_told(tmp_path: Path) -> None:
    lines = [line | {"jobs": 4} for line in LINES]
    found = sections(page.text(made.write(tmp_path / "base", lines), "base"))
    assert "- Machine: A processor, cpu, 2 threads, one of 4 jobs at once.\n" in found[""]
    assert "are of one machine, which several jobs shared: each was slower than alone; a CPU" in found["Limits"]


def test_a_library_that_an_earlier_study_does_not_know_is_left_out(tmp_path: Path) -> None:
    folder = made.write(tmp_path / "base")
    packages = {name: version for name, version in made.PACKAGES.items() if name != "torchao"}
    (folder / "environment.json").write_text(json.dumps({"python": made.PYTHON, "packages": packages}))
    assert "hqq 0.2.8, bitsandbytes 0.50.2.\n" in page.text(folder, "base")


def test_whole_and_limited_corpora(tmp_path: Path) -> None:
    whole = page.text(made.write(tmp_path / "whole", corpus="librispeech"), "whole")
    assert "- Speech: `librispeech`, as OpenSLR publishes it.\n" in whole
    assert "240 utterances, all of the chosen splits; by speaker," in whole
    limited = page.text(made.write(tmp_path / "few", corpus="librispeech", corpora__librispeech__limit=60), "few")
    assert "- Speech: `librispeech`, as OpenSLR publishes it; a *subset* of 60 utterances of each split.\n" in limited
    assert "240 utterances, a *subset*; by speaker," in limited
    assert "-S corpus=librispeech -S catalog.yaml:corpora.librispeech.limit=60 -S" in limited


def test_options_are_what_is_not_the_default(tmp_path: Path) -> None:
    changed: dict[str, Any] = {
        "device": "cuda:1",
        "decoding__batch_size": 4,
        "decoding__suppress_non_speech": False,
        "scoring__seed": 7,
    }
    folder = made.write(tmp_path / "base", **changed)
    assert page.options(params.read(folder)) == {
        "model": "small",
        "corpus": "subset",
        "device": "cuda:1",
        "calibration.corpus": "subset",
        "calibration.split": "dev-clean",
        "calibration.utterances": "5",
        "decoding.batch_size": "4",
        "decoding.suppress_non_speech": "false",
        "scoring.seed": "7",
    }


def test_headline_is_compact_and_leaves_the_candidate_out(tmp_path: Path) -> None:
    lines = [one for one in LINES if one["variant"] != "hqq-int3"]
    lines += [one | {"variant": "candidate"} for one in lines if one["variant"] == "quanto-int8"]
    assert page.headline(made.write(tmp_path / "base", lines)) == (
        "| variant | MB | saved | test-clean WER % | vs fp32 [95 %] | test-other WER % | vs fp32 [95 %] | "
        "p50 ms (of fp32's) |\n"
        "| --- | --- | --- | --- | --- | --- | --- | --- |\n"
        "| fp32 | 966.9 | 0.0 % | 3.50 |  | 8.00 |  | 800 (1.00) |\n"
        "| quanto-int8 | 412.2 | 57.4 % | 3.43 | -0.07 [-0.12, -0.02] **better** | 8.02 | +0.02 [-0.30, +0.34] "
        "undecided | 900 (1.12) |"
    )


def test_agreement_is_told_where_it_was_measured(tmp_path: Path) -> None:
    agreeing = {
        "kl": 0.0,
        "kl_low": 0.0,
        "kl_high": 0.0,
        "kl_p99": 0.0,
        "flips": 0.0,
        "flips_low": 0.0,
        "flips_high": 0.0,
    }
    rounded = {"kl": 0.0012, "kl_low": 0.0008, "kl_high": 0.002, "kl_p99": 0.0213, "flips": 0.52, "flips_low": 0.2}
    tokens = {"test-clean": 1000, "test-other": 3000}
    lines = [
        one
        | (agreeing if one["variant"] == "fp32" else agreeing | rounded)
        | {"tokens": tokens[one["split"]]}
        | ({"kl": 0.004} if one["variant"] == "quanto-int8" and one["split"] == "test-other" else {})
        for one in LINES
    ]
    folder = made.write(tmp_path / "base", lines)
    table = sections(page.text(folder, "base"))["Agreement with fp32"]
    (row,) = (line for line in table.splitlines() if line.startswith("| quanto-int8 |"))
    told = "[0.0008, 0.0020] | 0.021 | 0.52 % [0.20, 0.00] |"
    assert row == f"| quanto-int8 | 412.2 | 0.0012 {told} 0.0040 {told}"
    assert "(4,000 of them)" in table
    *_, last = page.headline(folder, ["fp32", "quanto-int8"]).splitlines()
    assert last.startswith("| quanto-int8 | 412.2 | 57.4 % | 0.0033 | 3.43 |")  # weighted by tokens
    with pytest.raises(UserError) as error:
        page.headline(folder, ["quanto-int9"])
    assert str(error.value) == f"{folder} has no variant 'quanto-int9' (did you mean 'quanto-int8'?)"
    assert "Agreement with fp32" not in sections(page.text(made.write(tmp_path / "earlier", LINES), "earlier"))


def test_claims_are_told_a_variant_a_line_and_equal_verdicts_once(tmp_path: Path) -> None:
    small: dict[str, Any] = {"size_mb": 290.4, "size_reduction": 55.25}
    lines = [
        FP32 | {"size_mb": 649.0},
        line("torch-int8-static", 0.5, -0.2, 1.2),
        line("quanto-int8-static", 2.4, 2.0, 2.8, "worse"),
        line("quanto-int8", -0.1, -0.2, 0.1, backend="quanto", **small),
        line("quanto-int4", 0.3, -0.2, 0.6, backend="quanto"),
        line("hqq-int4", 0.6, 0.1, 0.7, backend="hqq"),
    ]
    body = sections(page.text(made.write(tmp_path / "base", lines), "base"))["Claims"]
    assert body.split("\n\n")[1].splitlines() == [
        "| claim | by | here | verdict |",
        "| --- | --- | --- | --- |",
        "| quanto int8 is better than fp32 (3.41 against 3.48 %) on test-clean | the paper | `quanto-int8` -0.10 "
        "[-0.20, +0.10] undecided | cannot be told |",
        "| quanto int8 saves 57 % | the paper | `quanto-int8` 55.2 % (Whisper-small by arithmetic: 57.4 %) | cannot be "
        "told on this model |",
        "| static int8 costs about +2.5 points on test-clean | the paper | `torch-int8-static` +0.50 [-0.20, +1.20] "
        "undecided<br>`quanto-int8-static` +2.40 [+2.00, +2.80] worse | does not hold<br>holds |",
        "| int4 costs up to +0.7 points on test-clean | the paper | `quanto-int4` +0.30 [-0.20, +0.60] undecided<br>"
        "`hqq-int4` +0.60 [+0.10, +0.70] undecided | holds |",
        "| 8 bits cost nothing on test-clean | [transcribe.cpp](https://github.com/handy-computer/transcribe.cpp) | "
        "`quanto-int8` -0.10 [-0.20, +0.10] undecided | cannot be told |",
        "| int8 is better than fp32 on test-clean | summaries of the paper | `quanto-int8` -0.10 [-0.20, +0.10] "
        "undecided | cannot be told |",
        "| 4 bits often fail (said of tiny and base) on test-clean | "
        "[whisper.cpp](https://github.com/ggml-org/whisper.cpp/pull/540) | `quanto-int4` +0.30 [-0.20, +0.60] "
        "undecided<br>`hqq-int4` +0.60 [+0.10, +0.70] undecided | cannot be told |",
        "| fewer bits cost more on test-clean (quanto) | the paper | `quanto-int8` -0.10 [-0.20, +0.10] undecided<br>"
        "`quanto-int4` +0.30 [-0.20, +0.60] undecided | cannot be told |",
    ]


def test_headline_of_speech_that_the_paper_is_not_about(tmp_path: Path) -> None:
    folder = made.write(tmp_path / "sample", [FP32 | {"split": "librivox"}])
    assert page.headline(folder) == (
        "| variant | MB | saved | librivox WER % | vs fp32 [95 %] | p50 ms (of fp32's) |\n"
        "| --- | --- | --- | --- | --- | --- |\n"
        "| fp32 | 966.9 | 0.0 % | 3.50 |  | 800 (1.00) |"
    )


def test_what_is_heard_of_dequantized_weights_is_told(tmp_path: Path) -> None:
    plain: dict[str, Any] = {"dequantized": "True", "latency_other_texts": 2, "backend": "bnb"}
    lines = [FP32 | {"latency_other_texts": 0}, line("bnb-nf4", 0.1, -0.1, 0.3, **plain), line("a", 0.1, -0.1, 0.3)]
    head = sections(page.text(made.write(tmp_path / "base", lines), "base"))[""]
    assert "in float32, whatever a library's kernels round" in head
    assert "so many read otherwise with the library's kernels: `bnb-nf4` 2.\n" in head
    own = sections(page.text(made.write(tmp_path / "own", [FP32, line("a", 0.1, -0.1, 0.3)]), "own"))[""]
    assert "dequantized" not in own
