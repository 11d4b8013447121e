"""CTranslate2 and whisper.cpp: what holds of every checkpoint that another engine than PyTorch computes."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import ctranslate2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline import backends
from pipeline.backends import ct2, ggml
from pipeline.core import machine, manifest
from pipeline.core.errors import UserError
from pipeline.core.variant import Variant
from pipeline.speech import corpus
from pipeline.whisper import agreement
from pipeline.whisper.inference import decoding
from pipeline.whisper.inference.mel import Samples
from pipeline.whisper.model import integers, weights
from tests import toy
from tests.backends import common
from tests.backends.common import RUNTIMES, make
from tests.conftest import noise

ERRORS = {
    "ct2-float32": 1e-6,
    "ct2-int8": 0.02,
    "ggml-f16": 0.0045,
    "ggml-q8-0": 0.01,
    "ggml-q5-1": 0.05,
}
"""The most that a variant may change the toy's logits, as a share of their norm: about 1.5 times what it does."""

EXACT = ("ct2-float32", "ggml-f16")
TOKENS = [257, 260, *range(40, 52)]
"""The toy's prompt, and a text."""


def heard(seconds: float = 1.5, seed: int = 0) -> Samples:
    return (noise(seconds, seed) / 32768).astype(np.float32)


def opened(folder: Path, name: str) -> decoding.Engine:
    found = backends.runtime(backends.get(RUNTIMES[name].backend))
    assert found
    return found.load(folder, "cpu")


def ours(baseline: Path, sound: Samples, tokens: list[int], places: int) -> torch.Tensor:
    """Return our own fp32's logits for the last `places` of the tokens."""
    model = weights.load(baseline)
    with torch.no_grad():
        return model(decoding.features(model, [sound]), torch.tensor([tokens[:-1]]))[0, -places:]  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def baseline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a toy as wide inside as whisper.cpp wants it, whose weights are float16."""
    folder = toy.write(tmp_path_factory.mktemp("toy") / "wide", encoder_ffn_dim=256, decoder_ffn_dim=256)
    tensors = {name: tensor.half().float() for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def saved(baseline: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, common.Saved]:
    """Save a toy that talks as every such variant of params.yaml."""
    folder = tmp_path_factory.mktemp("models")
    return {name: common.saved(baseline, variant, folder / name) for name, variant in RUNTIMES.items()}


@pytest.mark.parametrize("name", RUNTIMES)
def test_forced_logits_are_ours_but_for_what_the_bits_cost(
    name: str, saved: dict[str, common.Saved], baseline: Path
) -> None:
    found = opened(saved[name].folder, name).logits(heard(), TOKENS, 12)
    expected = ours(baseline, heard(), TOKENS, 12)
    assert found.shape == expected.shape
    error = float((found - expected).norm() / expected.norm())
    assert (error > 1e-6) == (name != "ct2-float32")
    # Without VNNI, CTranslate2's sums of two products of bytes are cut off at 16 bits.
    assert error <= (0.15 if name == "ct2-int8" and not integers.multiplies_bytes() else ERRORS[name])


@pytest.fixture(scope="module")
def talking(tmp_path_factory: pytest.TempPathFactory) -> dict[str, common.Saved]:
    """Save a toy that says words as the two that quantize nothing."""
    folder = tmp_path_factory.mktemp("talking")
    words = toy.talkative(toy.write(folder / "words", encoder_ffn_dim=256, decoder_ffn_dim=256))
    return {name: common.saved(words, RUNTIMES[name], folder / name) for name in EXACT}


def utterances(seconds: list[float], folder: Path) -> list[corpus.Utterance]:
    toy.speech(folder / "test/00000.parquet", "test", {f"u-{n}": length for n, length in enumerate(seconds)})
    return list(corpus.read_shard(folder / "test/00000.parquet"))


@pytest.mark.parametrize("limit", [444, 3, 1])
def test_ctranslate2_writes_our_text(limit: int, talking: dict[str, common.Saved], tmp_path: Path) -> None:
    """In batches, of recordings longer than a window, and to the limit of tokens."""
    made = talking["ct2-float32"]
    vocabulary = decoding.Vocabulary.read(made.folder, "en", "transcribe")
    batch = utterances([0.01, 0.5, 2.0, 31.0, 5.0], tmp_path)
    found = decoding.transcribe(opened(made.folder, "ct2-float32"), batch, vocabulary, limit, 2)
    assert found == decoding.transcribe(made.model, batch, vocabulary, limit, 2)
    assert max(len(window) for each in found for window in each.windows) == min(limit, 30)


@pytest.mark.parametrize("limit", [444, 3, 1])
def test_whisper_cpp_writes_what_its_logits_say(limit: int, talking: dict[str, common.Saved], tmp_path: Path) -> None:
    """A toy has no room for the rounding of its GELU, so that its text is not ours; that of real weights is, below."""
    made = talking["ggml-f16"]
    vocabulary = decoding.Vocabulary.read(made.folder, "en", "transcribe")
    batch = utterances([0.01, 0.5, 2.0, 31.0], tmp_path)
    engine = opened(made.folder, "ggml-f16")
    for utterance, found in zip(batch, decoding.transcribe(engine, batch, vocabulary, limit, 2), strict=True):
        for sound, row in zip(decoding.sounds(engine, utterance), found.windows, strict=True):
            logits = engine.logits(sound, [*vocabulary.prompt, *row], len(row))
            logits[:, vocabulary.suppressed] = -torch.inf
            logits[0, vocabulary.suppressed_first] = -torch.inf
            assert logits.argmax(dim=1).tolist() == row
            assert len(row) == min(limit, 30)


@pytest.mark.parametrize("name", EXACT)
def test_suppressed_tokens_are_the_studys(name: str, talking: dict[str, common.Saved], tmp_path: Path) -> None:
    made = talking[name]
    vocabulary = decoding.Vocabulary.read(made.folder, "en", "transcribe")
    batch, engine = utterances([1.0, 2.0], tmp_path), opened(made.folder, name)

    def said(vocabulary: decoding.Vocabulary) -> set[int]:
        found = decoding.transcribe(engine, batch, vocabulary, 10, 2)
        return {token for each in found for row in each.windows for token in row}

    first = said(vocabulary)
    second = said(dataclasses.replace(vocabulary, suppressed=[*vocabulary.suppressed, *first]))
    assert second
    assert not first & second


@pytest.mark.slow
@pytest.mark.parametrize("name", EXACT)
def test_languages_and_texts_of_real_speech_are_ours(
    name: str, base: Path, sample: list[corpus.Utterance], tmp_path: Path
) -> None:
    made = common.saved(base, RUNTIMES[name], tmp_path / name)
    vocabulary = decoding.Vocabulary.read(base, "auto", "transcribe")
    found = decoding.transcribe(opened(made.folder, name), sample[3:], vocabulary, 444, 2)
    assert found == decoding.transcribe(made.model, sample[3:], vocabulary, 444, 2)
    assert {vocabulary.languages[each.language] for each in found if each.language} == {"en"}


@pytest.mark.slow
def test_whisper_cpps_own_loop_writes_our_text(tiny_en: Path, sample: list[corpus.Utterance], tmp_path: Path) -> None:
    """What its users call, on the file that we write: the study's rules are its own."""
    from pywhispercpp.model import Model

    made = common.saved(tiny_en, RUNTIMES["ggml-f16"], tmp_path / "ggml-f16")
    vocabulary = decoding.Vocabulary.read(tiny_en, "en", "transcribe")
    theirs = Model(
        str(made.folder / ggml.FILE),
        redirect_whispercpp_logs_to=None,
        print_progress=False,
        no_timestamps=True,
        single_segment=True,
        suppress_nst=True,
        temperature_inc=0.0,
        greedy={"best_of": 1},
        n_threads=torch.get_num_threads(),
    )
    found = decoding.transcribe(opened(made.folder, "ggml-f16"), sample, vocabulary, 444, 16)
    for utterance, each in zip(sample, found, strict=True):
        text = " ".join(segment.text for segment in theirs.transcribe(corpus.samples(utterance)))
        assert text == each.line(vocabulary)["pred_text"]


@pytest.mark.slow
def test_the_file_of_base_has_the_size_of_whisper_cpps_own(base: Path, tmp_path: Path) -> None:
    for name, size in (("ggml-q8-0", 81.8), ("ggml-q5-1", 59.7), ("ggml-f16", 148.0)):
        made = common.saved(base, RUNTIMES[name], tmp_path / name)
        assert made.manifest["bytes"]["total"] / 1e6 == pytest.approx(size, rel=0.01)


@pytest.mark.parametrize("name", RUNTIMES)
def test_the_manifest_tells_the_files_bytes_and_bits(name: str, saved: dict[str, common.Saved]) -> None:
    made = saved[name]
    runtime = backends.runtime(backends.get(RUNTIMES[name].backend))
    assert runtime
    size = (made.folder / runtime.FILE).stat().st_size
    assert made.manifest["bytes"] == {"total": size}
    assert not list(made.folder.glob("*.safetensors"))
    weights_of = sum(layer.numel() for key, layer in made.model.state_dict().items() if key.endswith("weight"))
    bits = {"ct2-float32": 32, "ct2-int8": 8.4, "ggml-f16": 16, "ggml-q8-0": 8.5, "ggml-q5-1": 6}
    assert made.manifest["bits_per_weight"] == pytest.approx(bits[name], abs=0.1)
    assert bool(made.manifest["layers"]) == (name not in EXACT)
    assert size < weights_of * 4 * 1.2


@pytest.mark.parametrize("name", RUNTIMES)
def test_saving_twice_writes_the_same_bytes(
    name: str, saved: dict[str, common.Saved], baseline: Path, tmp_path: Path
) -> None:
    again = common.saved(baseline, RUNTIMES[name], tmp_path / "again")
    assert again.manifest["files"] == saved[name].manifest["files"]


@pytest.mark.parametrize("name", ["ct2-int8", "ggml-q8-0"])
@pytest.mark.parametrize("left", [0, 0.5, 0.99])
def test_a_file_that_is_cut_short_is_one_sentence(
    name: str, left: float, saved: dict[str, common.Saved], tmp_path: Path
) -> None:
    folder = tmp_path / "cut"
    folder.mkdir()
    runtime = backends.runtime(backends.get(RUNTIMES[name].backend))
    assert runtime
    for file in saved[name].folder.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    whole = (folder / runtime.FILE).read_bytes()
    (folder / runtime.FILE).write_bytes(whole[: int(left * len(whole))])
    with pytest.raises(UserError, match="is cut short or edited"):
        manifest.verify(folder)
    with pytest.raises(UserError, match=r"cannot read .*quantize it again"):
        opened(folder, name)


REFUSED = [
    (make("ct2", 4, activations="dynamic"), "ct2: bits 4 is not possible (choose 16 or 8)"),
    (make("ct2", 8), "ct2: activations none is not possible: it quantizes what comes in, too (choose dynamic)"),
    (make("ct2", 8, "nf"), "ct2: format nf is not possible (choose int or float)"),
    (make("ct2", 8, "float"), "ct2: bits 8 is not possible with format float (choose 32 or 16)"),
    (make("ct2", 32, "float", group_size=64), "ct2: group_size 64 is not possible (choose null)"),
    (make("ct2", 16, "float", rest="float32"), "ct2: rest float32 is not possible with 16 bits (choose float16)"),
    (
        make("ct2", 8, activations="dynamic", granularity="group"),
        "ct2: granularity group is not possible (choose null or channel)",
    ),
    (
        make("ct2", 8, activations="dynamic", decoder=4),
        "ct2: decoder 4 is not possible: it quantizes all matrices alike (choose null)",
    ),
    (make("ggml", 6, activations="dynamic"), "ggml: bits 6 is not possible (choose 8, 5 or 4)"),
    (make("ggml", 32, "float"), "ggml: bits 32 is not possible with format float (choose 16)"),
    (
        make("ggml", 8, activations="dynamic", symmetric=False),
        "ggml: symmetric false is not possible with 8 bits (choose null or true)",
    ),
    (make("ggml", 4, activations="dynamic", group_size=64), "ggml: group_size 64 is not possible (choose null or 32)"),
    (
        make("ggml", 4, activations="dynamic", include=["*.fc1"]),
        "ggml: include ['*.fc1'] is not possible: it quantizes all matrices alike (choose ['*'])",
    ),
    (
        make("ggml", 4, activations="dynamic", embedding=8),
        "ggml: embedding 8 is not possible: it quantizes all matrices alike (choose null)",
    ),
    (make("ggml", 4, activations="dynamic", rest="float32"), "ggml: rest float32 is not possible (choose float16)"),
]


@pytest.mark.parametrize(("variant", "sentence"), REFUSED, ids=lambda value: value if isinstance(value, str) else "")
def test_what_is_impossible_is_refused(variant: Variant, sentence: str) -> None:
    with pytest.raises(UserError) as error:
        backends.check(variant)
    assert str(error.value) == sentence


def test_a_head_of_its_own_is_nothing_for_whisper_cpp(baseline: Path, tmp_path: Path) -> None:
    source = common.untied(baseline, tmp_path / "untied")
    with pytest.raises(UserError, match="ggml: this model's output head is not its token embedding"):
        common.saved(source, RUNTIMES["ggml-q8-0"], tmp_path / "saved")
    made = common.saved(source, RUNTIMES["ct2-float32"], tmp_path / "ct2")
    found = opened(made.folder, "ct2-float32").logits(heard(), TOKENS, 12)
    torch.testing.assert_close(found, ours(source, heard(), TOKENS, 12), rtol=0, atol=1e-4)


def test_a_feed_forward_network_of_another_width_is_nothing_for_whisper_cpp(tmp_path: Path) -> None:
    source = toy.write(tmp_path / "narrow")
    with pytest.raises(UserError) as error:
        common.saved(source, RUNTIMES["ggml-q8-0"], tmp_path / "saved")
    assert str(error.value) == "ggml: fc1 of the encoder has 128 rows, and whisper.cpp has 4 x 64 in any model"


def test_a_type_that_ctranslate2_would_replace_is_refused(baseline: Path, tmp_path: Path) -> None:
    """Without MKL's kernels it silently computes int16 in int8."""
    variant = make("ct2", 16, activations="dynamic")
    if "int16" in ctranslate2.get_supported_compute_types("cpu"):
        made = common.saved(baseline, variant, tmp_path / "int16")
        assert ct2.load(made.folder, "cpu").kernels.endswith(" int16")
    else:
        with pytest.raises(
            UserError, match=r"no kernels of CTranslate2 for int16 \(it has float32, int8, int8_float32\)"
        ):
            common.saved(baseline, variant, tmp_path / "int16")


def test_kernels_are_named(saved: dict[str, common.Saved]) -> None:
    for _ in range(2):  # it says so once in a process
        assert re.fullmatch(r"[A-Z0-9]+ [A-Za-z]+ int8_float32", opened(saved["ct2-int8"].folder, "ct2-int8").kernels)
    assert "AVX2" in opened(saved["ggml-q8-0"].folder, "ggml-q8-0").kernels.split()


def test_a_processor_without_the_instructions_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_cpu", lambda _: "fpu sse4_2 avx f16c")  # one that is not here
    ggml._library.cache_clear()
    with pytest.raises(UserError) as error:
        ggml._library()
    what = "this processor lacks avx2 and fma and bmi2, which pywhispercpp's whisper.cpp is compiled for"
    assert str(error.value) == f"ggml: {what}; leave the variant out"


def test_a_runtime_that_is_not_installed_is_one_sentence() -> None:
    with pytest.raises(UserError, match=r"^ggml: the package gg is not installed; remove .* or leave the variant out$"):
        backends.installed("ggml", "gg_not_there", "gg")


def test_threads_are_pytorchs(saved: dict[str, common.Saved]) -> None:
    engine: Any = opened(saved["ct2-int8"].folder, "ct2-int8")
    before = engine.logits(heard(), TOKENS, 12)
    threads = torch.get_num_threads()
    other = 2 if threads == 1 else 1
    try:
        torch.set_num_threads(other)
        after = engine.logits(heard(), TOKENS, 12)
        assert engine._threads == other
    finally:
        torch.set_num_threads(threads)
    torch.testing.assert_close(after, before, rtol=0, atol=1e-4)


def test_an_engine_is_heard_by_its_logits_and_its_text(
    saved: dict[str, common.Saved], baseline: Path, tmp_path: Path
) -> None:
    model = weights.load(baseline)
    vocabulary = decoding.Vocabulary.read(baseline, "en", "transcribe")
    states = agreement.states(model, decoding.features(model, [heard()]), TOKENS, 12)
    window = agreement.Window("u", TOKENS, states)
    mask = torch.zeros(2, len(model.proj_out.weight), dtype=torch.bool)
    mask[:, vocabulary.suppressed] = True
    (spoken,) = utterances([1.5], tmp_path)
    found = {}
    for name in RUNTIMES:
        engine = opened(saved[name].folder, name)
        listener = agreement.Listener(engine, model.proj_out.weight, vocabulary, 12, stepwise=False)
        found[name], said = listener.hear(spoken, [window], mask)
        assert said == decoding.transcribe(engine, [spoken], vocabulary, 12, 1)[0]
    assert all(each.shape == (12, 3) for each in found.values())
    kl = {name: float(each[:, 0].mean()) for name, each in found.items()}
    assert kl["ct2-float32"] < 1e-9 < kl["ggml-q8-0"] < kl["ggml-q5-1"]
