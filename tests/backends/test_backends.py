import dataclasses
import itertools
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline import backends, quantize
from pipeline.core.errors import UserError
from pipeline.core.variant import Variant, backend_names
from pipeline.speech import corpus
from pipeline.whisper import agreement
from pipeline.whisper.inference import decoding
from pipeline.whisper.model import weights
from tests import toy
from tests.backends import common
from tests.backends.common import VARIANTS, make
from tests.conftest import ROOT

ENCODER = [
    f"model.encoder.layers.{n}.{name}"
    for n in (0, 1)
    for name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj", "fc1", "fc2")
]
DECODER = [
    f"model.decoder.layers.{n}.{name}"
    for n in (0, 1)
    for name in (
        *("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj", "fc1", "fc2"),
        *("encoder_attn.q_proj", "encoder_attn.k_proj", "encoder_attn.v_proj", "encoder_attn.out_proj"),
    )
]

ERRORS = {
    "fp32": 0.0,
    "torch-int8-dynamic": 0.01,
    "torch-int8-dynamic-tensor": 0.01,
    "torch-int8-static": 0.01,
    "torch-int8-static-tensor": 0.01,
    "quanto-int8": 0.01,
    "quanto-int8-static": 0.01,
    "quanto-int4": 0.04,
    "quanto-int2": 0.2,
    "quanto-float8": 0.02,
    "hqq-int8": 0.002,
    "hqq-int4": 0.04,
    "hqq-int3": 0.08,
    "hqq-int2": 0.2,
    "bnb-int8": 0.005,
    "bnb-fp4": 0.07,
    "bnb-nf4": 0.05,
    "bnb-nf4-dq": 0.05,
    "fp16": 0.0,
    "quanto-int8-whole": 0.011,
    "hqq-int4-whole": 0.04,
    "bnb-nf4-whole": 0.05,
    "torchao-int8": 0.005,
    "torchao-int4": 0.04,
    "gptq-int5": 0.05,
    "gptq-int4": 0.035,
    "mixed-50": 0.016,
    "mixed-50-dynamic": 0.02,
    "mixed-45": 0.02,
    "mixed-40": 0.04,
}
"""The most that a variant may change the toy's logits, as a share of their norm: about 1.5 times what it does."""

POSSIBLE = {
    "torch": [
        make("torch", 8, "int", activations, granularity, symmetric=symmetric)
        for activations, (granularity, symmetric) in itertools.product(
            ("dynamic", "static"), (("tensor", True), ("tensor", False), ("channel", True))
        )
    ],
    "quanto": [
        make("quanto", 8),
        make("quanto", 8, activations="static"),
        make("quanto", 4, group_size=128),
        make("quanto", 2),
        make("quanto", 8, "float"),
    ],
    "hqq": [
        make("hqq", bits, "int", "none", granularity, group_size)
        for bits, (granularity, group_size) in itertools.product(
            (8, 4, 3, 2, 1), (("channel", None), ("group", 64), ("group", 8))
        )
    ],
    "bnb": [
        make("bnb", 8, activations="dynamic"),
        *(
            make("bnb", 4, kind, group_size=block, double_quant=double, include=include)
            for kind, (block, include), double in itertools.product(
                ("fp", "nf"), ((64, ["*"]), (128, ["*.fc2"])), (False, True)
            )
        ),
    ],
    "torchao": [
        *(make("torchao", 8, "int", "dynamic", granularity) for granularity in ("tensor", "channel")),
        *(
            make("torchao", 8, kind, "none", granularity)
            for kind, granularity in itertools.product(("int", "float"), ("tensor", "channel", "group"))
        ),
        make("torchao", 4, group_size=32),
        make("torchao", 4, group_size=64),
        make("torchao", 4, group_size=128, include=["*.fc2"]),
        *(
            make("torchao", bits, "int", "none", granularity, symmetric=symmetric)
            for bits, (granularity, symmetric) in itertools.product(
                (7, 6, 5, 3, 2), (("channel", True), ("group", False))
            )
        ),
        make("torchao", 1, granularity="channel"),
        make("torchao", 1, group_size=8),
    ],
    "gptq": [
        *(make("gptq", bits, group_size=size) for bits, size in itertools.product((8, 6, 5, 4, 3), (32, 64))),
        make("gptq", 4, group_size=128, include=["*.fc2"]),
        make("gptq", 4, encoder=8, decoder=3, layers=["*.v_proj=6", "*.0.fc1=5"], embedding=4, conv=8),
    ],
    "mixed": [make("mixed", budget=100.0), make("mixed", budget=20.0), make("mixed", budget_mb=0.35)],
    "none": [make("none", 16, "float", embedding=bits, conv=8) for bits in (8, 6, 5, 4)],
    "parts": [
        make("torch", 8, activations="static", embedding=6, conv=8),
        make("quanto", 8, decoder=4, embedding=8, conv=8),
        make("hqq", 3, encoder=8, layers=["*.fc2=4"], embedding=5),
        make("bnb", 8, activations="dynamic", embedding=4),
        make("torchao", 8, decoder=4, embedding=8, conv=8),
    ],
}
"""All that the backends support, and what is between."""


@pytest.fixture(scope="module")
def saved(baseline: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, common.Saved]:
    """Save the toy as every variant of params.yaml."""
    folder = tmp_path_factory.mktemp("models")
    return {name: common.saved(baseline, variant, folder / name) for name, variant in VARIANTS.items()}


@pytest.fixture(scope="module")
def elsewhere(saved: dict[str, common.Saved], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """Return the logits of every checkpoint, loaded in other processes: one for each backend, as in the pipeline."""
    folder = tmp_path_factory.mktemp("logits")
    running = []
    for backend in backend_names():
        folders = [str(saved[name].folder) for name, variant in VARIANTS.items() if variant.backend == backend]
        target = folder / f"{backend}.safetensors"
        command = [sys.executable, "-m", "tests.backends.reload", str(target), *folders]
        running.append(subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True))
    for process in running:
        _, complaints = process.communicate()
        assert process.returncode == 0, complaints
    return {name: row for file in folder.iterdir() for name, row in load_file(file).items()}


def test_layer_names(baseline: Path) -> None:
    assert quantize.select(weights.load(baseline), ["*"], []) == [*ENCODER, *DECODER, "proj_out"]


@pytest.mark.parametrize("name", VARIANTS)
def test_another_process_reloads_the_very_same_model(
    name: str, baseline: Path, elsewhere: dict[str, Tensor], saved: dict[str, common.Saved]
) -> None:
    never_saved, _, _ = common.quantized(baseline, VARIANTS[name])
    expected = toy.logits(common.computing(never_saved, VARIANTS[name]))
    assert torch.equal(elsewhere[name], expected)
    assert torch.equal(toy.logits(saved[name].model), expected)  # saving leaves the model as it was


@pytest.mark.parametrize("name", VARIANTS)
def test_the_error_is_as_large_as_the_bits_allow(name: str, baseline: Path, elsewhere: dict[str, Tensor]) -> None:
    exact = toy.logits(weights.load(baseline))
    error = ((elsewhere[name] - exact).norm() / exact.norm()).item()
    assert (error > 0) == (VARIANTS[name].backend != "none")
    assert error <= ERRORS[name]


@pytest.mark.parametrize(
    "variant",
    POSSIBLE["none"] + POSSIBLE["parts"],
    ids=lambda v: "-".join(str(value) for value in dataclasses.astuple(v)[:8]),
)
def test_parts_of_a_model_with_a_tied_head(variant: Variant, baseline: Path, tmp_path: Path) -> None:
    """All that is supported meets a head of its own in test_degenerate.py."""
    model = common.saved(baseline, variant, tmp_path / "saved").model
    expected = toy.logits(model)
    assert expected.isfinite().all()
    assert not torch.equal(expected, toy.logits(weights.load(baseline)))
    reloaded = backends.get(variant.backend).load(tmp_path / "saved", "cpu")
    assert torch.equal(toy.logits(reloaded), expected)
    assert not any(parameter.requires_grad for parameter in reloaded.parameters())


@pytest.mark.parametrize(
    "name", ["torch-int8-static", "quanto-int4", "quanto-int8-static", "hqq-int3", "bnb-int8", "bnb-nf4"]
)
def test_only_the_chosen_layers_change(name: str, baseline: Path, tmp_path: Path) -> None:
    """Everything else in the checkpoint is the baseline's, bit for bit; chosen weights are no floats any more."""
    variant = dataclasses.replace(
        VARIANTS[name], include=["*.fc1", "model.encoder.layers.0.*"], exclude=["*.fc2", "model.decoder.layers.1.*"]
    )
    chosen = [*ENCODER[:5], "model.encoder.layers.1.fc1", "model.decoder.layers.0.fc1"]
    made = common.saved(baseline, variant, tmp_path / "saved")
    assert made.manifest["layers"] == chosen
    before = load_file(baseline / "model.safetensors")
    after = load_file(tmp_path / "saved/model.safetensors")
    for tensor in before:
        if tensor.removesuffix(".weight") not in chosen:
            assert torch.equal(after[tensor], before[tensor]), tensor
    for layer in chosen:
        ((kind, weight),) = [
            (key, after[f"{layer}.{key}"])
            for key in ("weight", "weight._data", "weight._data._data", "W_q")
            if f"{layer}.{key}" in after
        ]
        assert not weight.is_floating_point()
        assert weight.nbytes <= before[f"{layer}.weight"].nbytes / (4 if variant.bits == 8 else 7), kind
    added = {key for key in after if key not in before}
    assert {key for key in added if not key.startswith(tuple(f"{layer}." for layer in chosen))} == set()


@pytest.mark.parametrize("name", ["fp32", "torch-int8-static", "quanto-int8", "quanto-int4", "hqq-int3", "bnb-nf4"])
def test_a_missing_weight_is_one_sentence(name: str, baseline: Path, tmp_path: Path) -> None:
    folder = common.saved(baseline, VARIANTS[name], tmp_path / "saved").folder
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.encoder.layer_norm.weight"]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"model\.safetensors lacks 'model\.encoder\.layer_norm\.weight'"):
        backends.get(VARIANTS[name].backend).load(folder, "cpu")


@pytest.mark.parametrize(
    ("backend", "kind", "widths", "size", "refusal"),
    [
        ("hqq", "int", [64, 128], 128, "64 inputs of 0 (choose 8, 16, 32 or 64"),
        ("bnb", "nf", [128, 64], 128, "64 inputs of 1 (choose 64"),
        ("bnb", "fp", [1024, 512, 512], 1024, "512 inputs of 1 (choose 64, 128, 256 or 512"),
        ("hqq", "int", [72, 24], 64, "72 inputs of 0 (choose 8 or 24"),
        ("hqq", "int", [96, 100], 32, "100 inputs of 1 (none that it has divides every row: choose another backend"),
        ("bnb", "nf", [64, 96], 64, "96 inputs of 1 (none that it has divides every row: choose another backend"),
    ],
)
def test_groups_that_do_not_fill_a_row(backend: str, kind: str, widths: list[int], size: int, refusal: str) -> None:
    """The error advises 64 for a width of 96: what it names must help."""
    model: Any = torch.nn.ModuleList(torch.nn.Linear(width, 64) for width in widths)
    library, names = backends.get(backend), [str(n) for n in range(len(widths))]
    with pytest.raises(UserError) as error:
        library.quantize(model, names, library.supports(make(backend, 4, kind, group_size=size)), common.calibrate)
    assert str(error.value) == (
        f"{backend}: group_size {size} does not divide the {refusal}, or put such layers in exclude)"
    )
    assert all(type(layer) is torch.nn.Linear for layer in model)


def test_select_takes_what_include_names_less_what_exclude_names(baseline: Path) -> None:
    model = weights.load(baseline)
    assert quantize.select(model, ["model.decoder.*"], []) == DECODER
    assert quantize.select(model, ["*"], ["model.decoder.*", "proj_out"]) == ENCODER
    assert quantize.select(model, ["proj_out", "*.0.fc[12]"], ["*.fc1"]) == [ENCODER[5], DECODER[5], "proj_out"]


@pytest.mark.parametrize(
    ("include", "exclude", "sentence"),
    [
        (
            ["model.encoder.layer.*"],
            [],
            "include: no Linear layer matches 'model.encoder.layer.*' "
            "(did you mean 'model.encoder.layers.0.self_attn.q_proj'?)",
        ),
        (["*"], ["proj_ou"], "exclude: no Linear layer matches 'proj_ou' (did you mean 'proj_out'?)"),
        (
            ["*"],
            ["*.conv1"],
            "exclude: no Linear layer matches '*.conv1' (known: model.encoder.layers.0.self_attn.q_proj, proj_out)",
        ),
        (["proj_out"], ["proj_*"], "include ['proj_out'] and exclude ['proj_*'] leave no layer to quantize"),
        ([], [], "include [] and exclude [] leave no layer to quantize"),
    ],
)
def test_patterns_that_match_nothing(include: list[str], exclude: list[str], sentence: str, baseline: Path) -> None:
    with pytest.raises(UserError) as error:
        quantize.select(weights.load(baseline), include, exclude)
    assert str(error.value) == sentence


def test_an_unknown_backend() -> None:
    with pytest.raises(UserError) as error:
        backends.get("quantoo")
    assert str(error.value) == "unknown backend 'quantoo' (did you mean 'quanto'?)"


@pytest.mark.parametrize(
    ("value", "choices", "sentence"),
    [
        (5, (8, 4, 3), "hqq: key 5 is not possible (choose 8, 4 or 3)"),
        (5, (8,), "hqq: key 5 is not possible (choose 8)"),
        (True, (False, None), "hqq: key true is not possible (choose false or null)"),
        (None, ("group",), "hqq: key null is not possible (choose group)"),
    ],
)
def test_choose(value: object, choices: tuple[object, ...], sentence: str) -> None:
    backends.choose("hqq", "key", choices[0], choices)
    with pytest.raises(UserError) as error:
        backends.choose("hqq", "key", value, choices)
    assert str(error.value) == sentence


def test_drafted_texts_are_those_of_decoding_from_scratch(
    saved: dict[str, common.Saved], baseline: Path, tmp_path: Path
) -> None:
    """fp32's text is the draft of every variant's: where it would go on otherwise, it does."""
    toy.speech(tmp_path / "test/00000.parquet", "test", {"a": 0.5, "b": 2.0, "c": 31.0, "d": 9.0})
    utterances = list(corpus.read_shard(tmp_path / "test/00000.parquet"))
    fp32, vocabulary = weights.load(baseline), decoding.Vocabulary.read(baseline, "en", "transcribe")
    barred = torch.zeros(2, fp32.config.vocab_size, dtype=torch.bool)
    barred[:, vocabulary.suppressed] = barred[0, vocabulary.suppressed_first] = True
    said = [text for each in decoding.transcribe(fp32, utterances, vocabulary, 12, 4) for text in each.windows]
    # What it said, and what flips at its first, third and last place: other tokens, and an end too early.
    wrong = [[98, *said[0][1:]], [*said[1][:2], 99, *said[1][3:]], said[2][:-1], said[3], said[4]]
    drafts = iter([[*vocabulary.prompt, *text, *[vocabulary.end] * (len(text) < 12)] for text in wrong])
    windows = {
        utterance.id: [
            agreement.Window(utterance.id, tokens, agreement.states(fp32, features, tokens, len(tokens) - 2))
            for features, tokens in zip(decoding.windows(fp32, utterance), drafts, strict=False)
        ]
        for utterance in utterances
    }
    for name, made in saved.items():
        stepwise = VARIANTS[name].activations != "none"
        listener = agreement.Listener(made.model, fp32.proj_out.weight, vocabulary, 12, stepwise)
        heard = [listener.hear(each, windows[each.id], barred)[1] for each in utterances]
        assert heard == [decoding.transcribe(made.model, [each], vocabulary, 12, 1)[0] for each in utterances], name
        if name == "fp32":
            assert [text for each in heard for text in each.windows] == said != wrong
