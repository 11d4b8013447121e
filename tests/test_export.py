import json
import os
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import WhisperForConditionalGeneration

from pipeline import backends, export
from pipeline.core.errors import UserError
from pipeline.results import card, tables
from pipeline.speech import corpus
from pipeline.whisper import BASELINE
from tests import toy
from tests.backends import common
from tests.conftest import ROOT, Project

WEIGHT_ONLY = [
    "fp32",
    "fp16",
    "quanto-int8",
    "quanto-int4",
    "quanto-float8",
    "hqq-int3",
    "hqq-int4-whole",
    "bnb-nf4-dq",
]
WEIGHT_ONLY += ["torchao-int4", "gptq-int4", "mixed-45"]


@pytest.fixture
def project(tmp_project: Project) -> Project:
    """Return a project whose baseline is a toy that every runtime can compute, with the default run's results."""
    toy.write(tmp_project.root / BASELINE, encoder_ffn_dim=256, decoder_ffn_dim=256)
    (tmp_project.root / "reports").mkdir()
    shutil.copy(ROOT / "reports/results.csv", tmp_project.root / "reports")
    return tmp_project


def make(name: str) -> common.Saved:
    """Quantize the project's baseline as a variant."""
    variant = common.VARIANTS.get(name) or common.RUNTIMES[name]
    return common.saved(BASELINE.resolve(), variant, Path("models") / name)


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("name", WEIGHT_ONLY)
def test_transformers_computes_what_the_variant_does(name: str) -> None:
    made = make(name)
    export.main(name, "hf", Path("out"))
    expected = toy.logits(backends.get(common.VARIANTS[name].backend).load(made.folder, "cpu"))
    found = toy.logits_of_transformers(WhisperForConditionalGeneration.from_pretrained("out", dtype=torch.float32))
    # Kernels of two libraries multiply in bfloat16.
    rough = 0.02 if name.startswith(("bnb", "torchao-int4")) else 1e-4
    torch.testing.assert_close(found, expected, rtol=0, atol=rough * float(expected.abs().max()))
    config = json.loads(Path("out/config.json").read_text())
    assert config["dtype"] == ("float16" if name in ("fp16", "torchao-int4") else "float32")
    assert "quantization_config" not in config


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("name", ["ct2-float32", "ct2-int8"])
def test_ctranslate2_gets_the_file_that_was_measured(name: str) -> None:
    make(name)
    export.main(name, "ct2", Path("out"))
    names = {file.name for file in Path("out").iterdir()}
    assert {"model.bin", "config.json", "vocabulary.json", "tokenizer.json", "preprocessor_config.json"} <= names
    assert Path("out/model.bin").read_bytes() == (Path("models") / name / "model.bin").read_bytes()
    assert {file.stat().st_mode & 0o777 for file in Path("out").iterdir()} == {0o644}


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("name", ["ggml-f16", "ggml-q5-1"])
def test_gguf_holds_the_tensors_of_the_ggml_file(name: str) -> None:
    from gguf import GGUFReader, dequantize

    made = make(name)
    export.main(name, "ggml", Path("ggml"))
    export.main(name, "gguf", Path("gguf"))
    assert Path("ggml/ggml-model.bin").read_bytes() == (made.folder / "ggml-model.bin").read_bytes()
    assert {file.name for file in Path("ggml").iterdir()} == {"ggml-model.bin", "README.md"}
    reader = GGUFReader("gguf/model.gguf")
    assert int(reader.fields["whisper.d_model"].contents()) == 64
    own = {key: tensor for key, tensor in made.model.state_dict().items() if key != "proj_out.weight"}
    found = {tensor.name: dequantize(tensor.data, tensor.tensor_type) for tensor in reader.tensors}
    assert found.keys() == own.keys()
    for key, tensor in own.items():
        error = (torch.tensor(found[key]).reshape(tensor.shape) - tensor).abs().max()
        assert error <= (0.1 if name == "ggml-q5-1" else 1e-3) * tensor.abs().max(), key


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize(
    ("name", "target", "reason"),
    [
        (
            "bnb-nf4",
            "ggml",
            "ggml holds float16, q8_0, q5_1, q5_0, q4_1 and q4_0; export a variant of backend ggml",
        ),
        (
            "mixed-45",
            "ct2",
            "CTranslate2 holds float32, float16, int16 and int8 by row; export a variant of backend ct2",
        ),
        (
            "torch-int8-dynamic",
            "hf",
            "its kernels round activations, and no other runtime's do it as they do; "
            "export a variant that quantizes weights alone",
        ),
        ("ct2-int8", "hf", "it is a file of another runtime; export a variant that quantizes weights alone"),
        (
            "ct2-int8",
            "gguf",
            "ggml holds float16, q8_0, q5_1, q5_0, q4_1 and q4_0; export a variant of backend ggml",
        ),
    ],
)
def test_what_cannot_be_carried_is_refused_with_what_can(name: str, target: str, reason: str) -> None:
    make(name)
    with pytest.raises(UserError) as error:
        export.main(name, target, Path("out"))
    assert str(error.value) == f"{name} cannot be exported to {target}: {reason}"
    assert not Path("out").exists()


@pytest.mark.usefixtures("project")
def test_what_is_there_is_left_alone() -> None:
    make("fp16")
    Path("out").mkdir()
    with pytest.raises(UserError, match="out is there already; name a folder that is not"):
        export.main("fp16", "hf", Path("out"))
    assert list(Path("out").iterdir()) == []


@pytest.mark.usefixtures("project")
def test_an_edited_checkpoint_is_not_exported() -> None:
    made = make("ggml-q8-0")
    with (made.folder / "ggml-model.bin").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(UserError, match="is not the file that was saved: it is cut short or edited"):
        export.main("ggml-q8-0", "ggml", Path("out"))


@pytest.mark.usefixtures("tmp_project")
def test_a_variant_that_is_not_made_is_one_line() -> None:
    command = [sys.executable, "-m", "pipeline.command", "export", "fp16", "--to", "hf", "out"]
    done = subprocess.run(command, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert re.fullmatch(r"export: models/fp16 has no readable checkpoint.json, .*; run 'dvc repro' .*\n", done.stderr)


def timed(name: str, made: common.Saved) -> None:
    """Record a checkpoint as the one that was measured."""
    Path("reports/timings").mkdir(parents=True, exist_ok=True)
    facts = {key: made.manifest[key] for key in ("variant", "calibration", "bytes", "bits_per_weight")}
    Path(f"reports/timings/{name}.json").write_text(json.dumps({"checkpoint": facts}))


@pytest.mark.usefixtures("project")
def test_the_card_tells_what_was_measured_of_this_checkpoint() -> None:
    made = make("ggml-q5-1")
    timed("ggml-q5-1", made)
    export.main("ggml-q5-1", "ggml", Path("there/out"))
    text = Path("there/out/README.md").read_text()
    assert text.startswith("---\nlicense: mit\n")
    row = next(row for row in tables.read(ROOT / tables.RESULTS).itertuples() if row.variant == "ggml-q5-1")
    assert f"A checkpoint of {row.size_mb:.2f} MB" in text
    assert f"| {row.words} | " in text
    assert 'model = Model("out/ggml-model.bin")' in text
    assert "quantized after training: backend ggml, bits 5" in text


@pytest.mark.usefixtures("project")
def test_the_card_of_a_checkpoint_that_was_not_measured_has_no_figures() -> None:
    """One made anew since, under the same name: its lines in results.csv are another's."""
    timed("ggml-q5-1", make("ggml-q8-0"))
    make("ggml-q5-1")
    export.main("ggml-q5-1", "ggml", Path("other"))
    Path("reports/timings/ggml-q5-1.json").unlink()
    export.main("ggml-q5-1", "ggml", Path("untimed"))
    for folder in ("other", "untimed"):
        text = Path(folder, "README.md").read_text()
        assert "Nothing: the study's results were not of this checkpoint." in text
        assert "KL" not in text


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize(("stage", "key"), [("fetch", "model"), ("prepare", "corpus")])
def test_what_the_last_run_was_not_of_is_not_exported(stage: str, key: str) -> None:
    make("fp16")
    Path("dvc.lock").write_text(f"stages:\n  {stage}:\n    params:\n      params.yaml:\n        {key}: another\n")
    with pytest.raises(UserError, match=f"^{key} is '.*', but the last run was of 'another'; run 'dvc repro' first$"):
        export.main("fp16", "hf", Path("out"))


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("folder", ["params.yaml/out", "/proc/out"])
def test_a_folder_that_cannot_be_is_one_sentence(folder: str) -> None:
    make("fp16")
    with pytest.raises(UserError, match=rf"^{folder} cannot be written \(.*\); name a folder elsewhere$"):
        export.main("fp16", "hf", Path(folder))


@pytest.mark.usefixtures("project")
def test_a_name_with_a_quote_is_quoted_in_the_cards_lines() -> None:
    make("ggml-f16")
    export.main("ggml-f16", "ggml", Path('it"s'))
    assert 'Model("it\\"s/ggml-model.bin")' in Path('it"s/README.md').read_text()


@pytest.mark.slow
@pytest.mark.usefixtures("project")
def test_the_cards_lines_run_without_this_project(
    tiny_en: Path, sample: list[corpus.Utterance], tmp_path: Path
) -> None:
    """In a fresh environment that has the runtimes alone."""
    shutil.rmtree(BASELINE)
    shutil.copytree(tiny_en, BASELINE)
    pairs = {"hf": "quanto-int8-whole", "ct2": "ct2-int8", "ggml": "ggml-q5-1", "gguf": "ggml-q5-1"}
    for name in sorted({*pairs.values()}):
        make(name)
    samples = tmp_path / "samples.npy"
    np.save(samples, corpus.samples(sample[4]))
    venv.create(tmp_path / "fresh", with_pip=True)
    python = tmp_path / "fresh/bin/python"
    pins = [line for line in (ROOT / "pyproject.toml").read_text().split('"') if re.match(r"(torch|numpy)==", line)]
    packages = sorted({word for words in card.PACKAGES.values() for word in words.split()})
    subprocess.run([python, "-m", "pip", "install", "--quiet", "soundfile", *packages, *pins], check=True)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
    for target, name in pairs.items():
        export.main(name, target, Path(target))
        (lines,) = re.findall("```python\n(.*?)```", Path(target, "README.md").read_text(), re.DOTALL)
        program = f"import numpy\nsamples = numpy.load({str(samples)!r})\n{lines}"
        done = subprocess.run([python, "-c", program], env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        if target == "gguf":
            assert "'model.decoder.embed_tokens.weight': (51864, 384)" in done.stdout
        else:
            assert "He might even have been made amiable himself." in done.stdout
