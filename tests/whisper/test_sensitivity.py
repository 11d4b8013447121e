from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.core.errors import UserError
from pipeline.whisper.inference import decoding
from pipeline.whisper.model import network, weights
from pipeline.whisper.quantization import sensitivity
from pipeline.whisper.quantization.calibration import Heard
from pipeline.whisper.quantization.sensitivity import Layer
from tests import toy


@pytest.fixture(scope="module")
def talkative(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a toy that hears: what it says depends on every layer."""
    return toy.talkative(toy.write(tmp_path_factory.mktemp("talkative") / "baseline"))


@pytest.fixture
def vocabulary(talkative: Path) -> decoding.Vocabulary:
    return decoding.Vocabulary.read(talkative, "en", "transcribe")


def heard(vocabulary: decoding.Vocabulary, utterances: int = 6, words: int = 20) -> list[Heard]:
    """Return sounds, and words that the toy may say."""
    generator = torch.Generator().manual_seed(5)
    spoken = torch.tensor([token for token in range(256) if token not in vocabulary.suppressed])
    found = []
    for _ in range(utterances):
        sound = torch.randn(1, 80, 3000, generator=generator)
        said = spoken[torch.randint(len(spoken), (words,), generator=generator)]
        found.append((sound, torch.tensor([[*vocabulary.prompt, *said.tolist()]])))
    return found


@pytest.fixture(scope="module")
def layers(talkative: Path) -> dict[str, Layer]:
    vocabulary = decoding.Vocabulary.read(talkative, "en", "transcribe")
    return sensitivity.measure(weights.load(talkative), heard(vocabulary), vocabulary)


@torch.no_grad()
def likelihoods(model: network.Whisper, sounds: Sequence[Heard], vocabulary: decoding.Vocabulary) -> torch.Tensor:
    """Return the log-likelihood of every token at every place, suppressed ones left out."""
    found = []
    for features, tokens in sounds:
        logits = model(features, tokens)[0, len(vocabulary.prompt) - 1 :].double()
        logits[:, vocabulary.suppressed] = logits[0, vocabulary.suppressed_first] = float("-inf")
        found.append(logits.log_softmax(1))
    return torch.cat(found)


@pytest.mark.parametrize(
    "name",
    [
        "model.encoder.layers.0.self_attn.q_proj",
        "model.encoder.layers.1.self_attn.k_proj",
        "model.encoder.layers.1.fc2",
        "model.decoder.layers.0.encoder_attn.q_proj",
        "model.decoder.layers.1.self_attn.out_proj",
        "proj_out",
    ],
)
def test_a_small_error_does_about_what_is_predicted(
    name: str, layers: dict[str, Layer], talkative: Path, vocabulary: decoding.Vocabulary
) -> None:
    sounds, model, generator = heard(vocabulary), weights.load(talkative), torch.Generator().manual_seed(6)
    fp32, module, predicted, measured = likelihoods(model, sounds, vocabulary), model.get_submodule(name), 0.0, 0.0
    whole = model.get_parameter(f"{name}.weight")
    for _ in range(4):
        error = torch.randn(whole.shape, generator=generator) * whole.std() / 50
        module.weight = torch.nn.Parameter(whole + error, requires_grad=False)  # of the head alone, not the embedding
        change = (fp32 - likelihoods(model, sounds, vocabulary)).nan_to_num()  # of suppressed tokens inf - inf
        measured += float((fp32.exp() * change).sum(1).mean())
        predicted += layers[name].divergence(error)
    assert measured > 0
    assert 1 / 3 < predicted / measured < 3


def test_a_divergence_worked_by_hand() -> None:
    layer = Layer(torch.tensor([[2.0, 1.0], [1.0, 4.0]]), torch.tensor([0.25, 0.75]))
    # Row 0: 1*2*1 + 2*1*1*1 + 1*4*1 = 8; row 1: 2*4*2 = 16. Half of 8/4 + 16*3/4.
    assert layer.divergence(torch.tensor([[1.0, 1.0], [0.0, 2.0]])) == 7.0


def test_shares_of_the_outputs_add_up_to_one(layers: dict[str, Layer]) -> None:
    for name, layer in layers.items():
        assert float(layer.outputs.sum()) == pytest.approx(1, abs=1e-5), name
        assert float(layer.outputs.min()) >= 0.3 / len(layer.outputs) * 0.999, name


def test_every_linear_layer_is_measured_in_the_models_order(layers: dict[str, Layer], talkative: Path) -> None:
    model = weights.load(talkative)
    linear = {name: each.weight for name, each in model.named_modules() if isinstance(each, torch.nn.Linear)}
    assert [*layers] == [*linear]
    for name, weight in linear.items():
        assert (len(layers[name].outputs), len(layers[name].inputs)) == weight.shape
        assert float(layers[name].inputs.diagonal().min()) >= 0
        torch.testing.assert_close(layers[name].inputs, layers[name].inputs.T)


def test_measuring_leaves_the_model_as_it_was(talkative: Path, vocabulary: decoding.Vocabulary) -> None:
    model, before = weights.load(talkative), weights.load(talkative).state_dict()
    sensitivity.measure(model, heard(vocabulary, 1, 4), vocabulary)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_positions_without_a_gradient_count_nothing_and_those_with_little_hardly_anything() -> None:
    """As padding: half of most recordings, and none of the text depends on it."""
    sums = sensitivity.Sums(torch.nn.Linear(3, 2))
    inputs, gradient = torch.randn(8, 3), torch.randn(8, 2)
    padding, none = 100 * torch.ones(50, 3), torch.zeros(50, 2)
    sums.add(torch.cat([inputs, padding]), torch.cat([gradient, none]))
    spoken = sensitivity.Sums(torch.nn.Linear(3, 2))
    spoken.add(inputs, gradient)
    for one, other in zip(vars(sums.layer(4)).values(), vars(spoken.layer(4)).values(), strict=True):
        torch.testing.assert_close(one, other)
    sums.add(padding, none + 1e-4)
    assert float(sums.layer(4).inputs.norm()) < 1.05 * float(spoken.layer(4).inputs.norm())


def test_where_the_positions_of_a_recording_pull_together_an_error_does_more() -> None:
    """A shared error of the weights adds up over positions with the same input and gradient, as their square."""
    alike, apart = (sensitivity.Sums(torch.nn.Linear(2, 1)) for _ in range(2))
    alike.add(torch.ones(10, 2), torch.ones(10, 1))
    for _ in range(10):
        apart.add(torch.ones(1, 2), torch.ones(1, 1))
    torch.testing.assert_close(alike.layer(10).inputs, 10 * apart.layer(10).inputs)


def test_what_is_written_is_read_exactly(layers: dict[str, Layer], talkative: Path, tmp_path: Path) -> None:
    path = tmp_path / "sensitivity.safetensors"
    sensitivity.write(layers, path)
    found = sensitivity.read(weights.load(talkative), path)
    assert {*found} == {*layers}
    for name, layer in layers.items():
        assert torch.equal(found[name].inputs, layer.inputs)
        assert torch.equal(found[name].outputs, layer.outputs)


def refusal(folder: Path, path: Path) -> str:
    with pytest.raises(UserError) as error:
        sensitivity.read(weights.load(folder), path)
    return str(error.value)


def test_a_file_that_is_not_here_is_one_sentence(talkative: Path, tmp_path: Path) -> None:
    path = tmp_path / "sensitivity.safetensors"
    assert refusal(talkative, path) == f"{path} is not here; run 'python -m pipeline.sensitivity' first"


@pytest.mark.parametrize(
    "name", ["model.encoder.layers.1.fc1", "model.decoder.layers.0.encoder_attn.v_proj", "proj_out"]
)
def test_a_file_of_another_model_is_one_sentence(
    name: str, layers: dict[str, Layer], talkative: Path, tmp_path: Path
) -> None:
    path = tmp_path / "sensitivity.safetensors"
    why = f"{path} is of another model, as {name} differs; run 'python -m pipeline.sensitivity' again"
    sensitivity.write({other: layer for other, layer in layers.items() if other != name}, path)
    assert refusal(talkative, path) == why
    sensitivity.write(layers | {name: Layer(layers[name].inputs[1:, 1:].clone(), layers[name].outputs)}, path)
    assert refusal(talkative, path) == why
    sensitivity.write(layers | {name: Layer(layers[name].inputs, layers[name].outputs[1:])}, path)
    assert refusal(talkative, path) == why


def test_layers_that_no_gradient_reaches_have_finite_numbers(
    talkative: Path, vocabulary: decoding.Vocabulary, tmp_path: Path
) -> None:
    folder = tmp_path / "deaf"
    folder.mkdir()
    for file in talkative.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    tensors = load_file(folder / "model.safetensors")
    for number in range(2):
        tensors[f"model.decoder.layers.{number}.encoder_attn.out_proj.weight"].zero_()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    found = sensitivity.measure(weights.load(folder), heard(vocabulary, 2, 5), vocabulary)
    for name, layer in found.items():
        assert layer.inputs.isfinite().all(), name
        assert layer.outputs.isfinite().all(), name
        assert float(layer.outputs.min()) > 0, name
        unheard = "encoder" in name and not name.endswith("encoder_attn.out_proj")
        expected = layer.divergence(torch.randn(len(layer.outputs), len(layer.inputs)))
        assert (expected == 0) == unheard, name


def test_a_model_that_is_sure_of_every_token_has_finite_numbers(
    talkative: Path, vocabulary: decoding.Vocabulary
) -> None:
    """Where its certainty is 1 in float32, there is no gradient at all."""
    model = weights.load(talkative)
    model.model.decoder.layer_norm.weight.mul_(1e6)
    found = sensitivity.measure(model, heard(vocabulary, 1, 3), vocabulary)
    assert all(tensor.isfinite().all() for layer in found.values() for tensor in vars(layer).values())
