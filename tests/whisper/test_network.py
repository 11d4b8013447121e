import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.core.errors import UserError
from pipeline.whisper.model import network, weights
from tests import toy

TOKENS = torch.tensor([[3, 141, 5, 92, 6, 53, 58], [97, 9, 32, 38, 4, 62, 64]])


def edit(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


@pytest.fixture
def copy(baseline: Path, tmp_path: Path) -> Path:
    """Return a copy of the toy's config and weights, to be spoilt."""
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((baseline / name).read_bytes())
    return tmp_path


@pytest.mark.parametrize("vocabulary", [51864, 51865], ids=["English", "multilingual"])
def test_logits_are_those_of_transformers(vocabulary: int, tmp_path: Path) -> None:
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    torch.manual_seed(0)
    config = WhisperConfig(**toy.SIZES, vocab_size=vocabulary, init_std=0.2)  # logits of about 2, as trained ones are
    theirs = WhisperForConditionalGeneration(config).eval()
    theirs.save_pretrained(tmp_path)
    ours = weights.load(tmp_path)
    with torch.no_grad():
        expected = theirs(input_features=toy.features(), decoder_input_ids=TOKENS).logits
        found = ours(toy.features(), TOKENS)
    assert found.shape == (2, 7, vocabulary)
    assert expected.std() > 1
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_step_by_step_is_the_whole_sequence(baseline: Path) -> None:
    model = weights.load(baseline)
    with torch.no_grad():
        whole = model(toy.features(), TOKENS)
        caches = model.caches(toy.features(), 7)
        steps = [model.next_logits(TOKENS[:, :3], caches)]  # the prompt at once, then one by one
        steps += [model.next_logits(TOKENS[:, n : n + 1], caches) for n in range(3, 7)]
    assert [own.length for own, _ in caches] == [7, 7]
    torch.testing.assert_close(torch.stack(steps, dim=1), whole[:, 2:], rtol=1e-5, atol=1e-5)


def test_a_row_goes_on_without_the_others(baseline: Path) -> None:
    model = weights.load(baseline)
    with torch.no_grad():
        whole = model(toy.features(), TOKENS)
        caches = model.caches(toy.features(), 7)
        model.next_logits(TOKENS[:, :3], caches)
        for own, audio in caches:
            own.drop([0], [1], 1)
            audio.drop([0], [1], 1)
        step = model.next_logits(TOKENS[1:, 3:4], caches)
    torch.testing.assert_close(step, whole[1:, 3], rtol=1e-5, atol=1e-5)


def test_a_later_token_changes_nothing_before_it(baseline: Path) -> None:
    model = weights.load(baseline)
    with torch.no_grad():
        torch.testing.assert_close(
            model(toy.features(), TOKENS)[:, :4], model(toy.features(), TOKENS[:, :4]), rtol=0, atol=1e-5
        )


def test_the_head_is_tied_and_nothing_asks_for_gradients(baseline: Path) -> None:
    model = weights.load(baseline)
    assert model.proj_out.weight is model.model.decoder.embed_tokens.weight
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert model.device == torch.device("cpu")


def test_a_head_of_its_own_is_kept(copy: Path) -> None:
    tensors = load_file(copy / "model.safetensors")
    head = torch.ones_like(tensors["model.decoder.embed_tokens.weight"])
    save_file(tensors | {"proj_out.weight": head}, copy / "model.safetensors")
    model = weights.load(copy)
    assert torch.equal(model.proj_out.weight, head)
    assert not torch.equal(model.model.decoder.embed_tokens.weight, head)


def test_a_skeleton_takes_no_memory(baseline: Path) -> None:
    assert {parameter.device.type for parameter in weights.skeleton(baseline).parameters()} == {"meta"}


def test_a_missing_weight_is_one_sentence(copy: Path) -> None:
    tensors = load_file(copy / "model.safetensors")
    del tensors["model.encoder.layers.1.fc1.bias"]
    save_file(tensors, copy / "model.safetensors")
    with pytest.raises(UserError) as error:
        weights.load(copy)
    assert str(error.value) == (
        f"{copy}: model.safetensors lacks 'model.encoder.layers.1.fc1.bias', so it does not fit config.json; "
        "fetch or quantize it again"
    )


def test_an_unknown_weight_is_one_sentence(copy: Path) -> None:
    tensors = load_file(copy / "model.safetensors")
    save_file(tensors | {"model.encoder.layers.2.fc1.bias": torch.zeros(128)}, copy / "model.safetensors")
    with pytest.raises(UserError) as error:
        weights.load(copy)
    assert str(error.value) == (
        f"{copy}: model.safetensors holds the unknown 'model.encoder.layers.2.fc1.bias', so it does not fit "
        "config.json; fetch or quantize it again"
    )


def test_a_weight_of_another_shape_is_one_sentence(copy: Path) -> None:
    edit(copy, max_source_positions=750)
    with pytest.raises(UserError) as error:
        weights.load(copy)
    assert str(error.value) == (
        f"{copy}: the weights do not fit config.json: size mismatch for model.encoder.embed_positions.weight: copying "
        "a param with shape torch.Size([1500, 64]) from checkpoint, the shape in current model is "
        "torch.Size([750, 64])."
    )


def test_the_config_of_another_model_is_one_sentence(copy: Path) -> None:
    (copy / "config.json").write_text('{"model_type": "bert", "hidden_size": 768}')
    with pytest.raises(UserError) as error:
        weights.load(copy)
    assert str(error.value) == f"{copy}: config.json has no key 'd_model', so it is not Whisper's"


def test_no_checkpoint_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        weights.load(tmp_path)
    assert str(error.value) == f"{tmp_path} holds no checkpoint: config.json is missing"


@pytest.mark.parametrize("kept", [0, 5, 1000])
def test_weights_cut_short_are_one_sentence(copy: Path, kept: int) -> None:
    data = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(data[:kept])
    with pytest.raises(UserError) as error:
        weights.load(copy)
    assert str(error.value) == (f"{copy}: model.safetensors is missing or cut short; fetch or quantize it again")


def test_split_takes_a_layers_own_tensors_out() -> None:
    tensors = {name: torch.zeros(1) for name in ("a.fc1.weight", "a.fc1.weight.absmax", "a.fc10.weight", "a.fc2.bias")}
    assert sorted(weights.split(tensors, "a.fc1")) == ["weight", "weight.absmax"]
    assert sorted(tensors) == ["a.fc10.weight", "a.fc2.bias"]


@pytest.mark.parametrize("positions", [300, 1500])
def test_onednn_gives_what_pytorch_does(positions: int) -> None:
    """Only without gradients: what they flow through is PyTorch's own."""
    torch.manual_seed(0)
    layer = network.EncoderLayer(64, 2, 128).eval()
    sound = torch.randn(1, positions, 64)
    expected = layer(sound)
    assert expected.requires_grad
    with torch.no_grad():
        found = layer(sound)
    assert not found.equal(expected)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)


def test_what_watches_a_layer_sees_the_positions_of_sound(baseline: Path) -> None:
    model = weights.load(baseline)
    seen: list[tuple[int, ...]] = []
    layer = model.get_submodule("model.encoder.layers.0.fc1")
    layer.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape)))
    toy.logits(model)
    assert seen == [(1, 1500, 64)] * 2


def test_a_copy_of_a_model_computes_with_its_own_weights(baseline: Path) -> None:
    model = weights.load(baseline)
    expected, copy = toy.logits(model), deepcopy(model)
    for parameter in model.parameters():
        parameter.data.zero_()
    assert toy.logits(copy).equal(expected)
