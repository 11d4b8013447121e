import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline import fetch
from pipeline.core.errors import UserError
from pipeline.whisper import BASELINE
from pipeline.whisper.formats import huggingface
from tests.conftest import SIZES, Project


@pytest.fixture
def checkpoint(trained: Path, tmp_path: Path) -> Path:
    """Return a copy of the random Whisper, to be changed."""
    folder = tmp_path / "mine"
    folder.mkdir()
    for file in trained.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def use(project: Project, folder: Path) -> None:
    project.set(model="mine", models__mine={"source": "directory", "path": str(folder)})


def test_a_directory_is_taken_over_value_for_value(
    tmp_project: Project, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import WhisperForConditionalGeneration

    use(tmp_project, trained)
    fetch.main()
    assert capsys.readouterr().out == "models/baseline: mine, 0.00 M parameters, 0.0 MB\n"
    expected, found = (
        WhisperForConditionalGeneration.from_pretrained(folder).state_dict() for folder in (trained, BASELINE)
    )
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    generation = json.loads((BASELINE / "generation_config.json").read_text())
    assert generation == {
        "begin_suppress_tokens": [10],
        "bos_token_id": 10,
        "eos_token_id": 10,
        "pad_token_id": 10,
        "decoder_start_token_id": 11,
        "is_multilingual": True,
        "max_initial_timestamp_index": 50,
        "max_length": 448,
        "no_timestamps_token_id": 17,
        "prev_sot_token_id": 16,
        "return_timestamps": False,
        "suppress_tokens": [],
        "lang_to_id": {"<|en|>": 12, "<|de|>": 13},
        "task_to_id": {"translate": 14, "transcribe": 15},
    }


def test_half_precision_shards_and_a_stored_head_become_one_full_file(tmp_project: Project, checkpoint: Path) -> None:
    from transformers import WhisperForConditionalGeneration

    model: Any = WhisperForConditionalGeneration.from_pretrained(checkpoint)
    model.half()
    (checkpoint / "model.safetensors").unlink()
    model.save_pretrained(checkpoint, max_shard_size="4KB")
    first = sorted(checkpoint.glob("*.safetensors"))[0]
    save_file(load_file(first) | {"proj_out.weight": model.proj_out.weight.detach().clone()}, first, {"format": "pt"})
    assert len(list(checkpoint.glob("*.safetensors"))) > 1
    use(tmp_project, checkpoint)
    fetch.main()
    found = load_file(BASELINE / "model.safetensors")
    expected = {name: tensor.float() for name, tensor in model.state_dict().items() if name != "proj_out.weight"}
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert json.loads((BASELINE / "config.json").read_text())["dtype"] == "float32"


def test_complete_json_files_are_kept(tmp_project: Project, checkpoint: Path) -> None:
    edit(checkpoint / "generation_config.json", no_timestamps_token_id=17, is_multilingual=True, max_length=5)
    (checkpoint / "preprocessor_config.json").write_text('{"feature_size": 80, "chunk_length": 15}')
    expected = json.loads((checkpoint / "generation_config.json").read_text())
    use(tmp_project, checkpoint)
    fetch.main()
    assert json.loads((BASELINE / "generation_config.json").read_text()) == expected
    assert json.loads((BASELINE / "preprocessor_config.json").read_text()) == {
        "feature_size": 80,
        "chunk_length": 15,
    }


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def without_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.decoder.layers.0.fc1.bias"]
    save_file(tensors, folder / "model.safetensors")


def with_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors") | {"model.decoder.adapter": torch.zeros(1)}
    save_file(tensors, folder / "model.safetensors")


def quantized(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.encoder.conv1.weight"] = tensors["model.encoder.conv1.weight"].to(torch.int8)
    save_file(tensors, folder / "model.safetensors")


def climbing(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"x": "../model.safetensors"}}')


def half_sharded(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"x": "model-2.safetensors"}}')


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            pickled,
            "model 'mine': DIR has pickled weights only, and no pickle is loaded; save it as safetensors",
        ),
        (lambda folder: (folder / "model.safetensors").unlink(), "model 'mine': DIR has no model.safetensors"),
        (
            lambda folder: edit(folder / "config.json", model_type="wav2vec2"),
            "model 'mine': DIR holds a model of type 'wav2vec2', but only whisper is known",
        ),
        (
            lambda folder: edit(folder / "config.json", quantization_config={}),
            "model 'mine': DIR is quantized already; a baseline has its full weights",
        ),
        (
            lambda folder: (folder / "config.json").write_text("{"),
            "model 'mine': DIR/config.json is not valid JSON "
            "(Expecting property name enclosed in double quotes: line 1 column 2 (char 1))",
        ),
        (
            lambda folder: (folder / "tokenizer.json").unlink(),
            "model 'mine': DIR/tokenizer.json is missing; a Whisper checkpoint in Hugging Face's layout has it",
        ),
        (
            lambda folder: edit(folder / "tokenizer.json", added_tokens=[]),
            "tokenizer.json has no token <|endoftext|>; it is not Whisper's tokenizer",
        ),
        (
            lambda folder: (folder / "model.safetensors").write_bytes(b"{}"),
            "model 'mine': DIR/model.safetensors is no whole safetensors file "
            "(Error while deserializing header: header too small)",
        ),
        (
            lambda folder: edit(folder / "config.json", d_model=16),
            "model 'mine': the tensor model.decoder.embed_positions.weight is 12 x 8, but config.json makes it 12 x 16",
        ),
        (without_tensor, "model 'mine': the weights lack the tensor model.decoder.layers.0.fc1.bias"),
        (
            with_tensor,
            "model 'mine': the weights have a tensor model.decoder.adapter, which is no part of Whisper",
        ),
        (
            quantized,
            "model 'mine': model.encoder.conv1.weight is torch.int8, a quantized weight is no baseline",
        ),
        (
            climbing,
            "model 'mine': DIR/model.safetensors.index.json names the file '../model.safetensors', "
            "outside of its folder",
        ),
        (
            half_sharded,
            "model 'mine': DIR/model-2.safetensors is missing, though the index of the weights names it",
        ),
    ],
)
def test_a_directory_that_is_no_baseline_is_one_sentence(
    change: Any, sentence: str, tmp_project: Project, checkpoint: Path
) -> None:
    change(checkpoint)
    use(tmp_project, checkpoint)
    with pytest.raises(UserError) as error:
        fetch.main()
    assert str(error.value) == sentence.replace("DIR", str(checkpoint))
    assert list(Path("models").iterdir()) == []


def test_a_missing_directory_is_one_sentence(tmp_project: Project, tmp_path: Path) -> None:
    use(tmp_project, tmp_path / "nowhere")
    with pytest.raises(UserError) as error:
        fetch.main()
    assert str(error.value) == f"model 'mine': the folder {tmp_path}/nowhere does not exist; correct models.mine.path"


def test_the_shape_of_every_tensor_is_transformers_own() -> None:
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    with torch.device("meta"):
        model = WhisperForConditionalGeneration(WhisperConfig(**SIZES, pad_token_id=10, decoder_start_token_id=11))
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if name != "proj_out.weight"}
    huggingface.check("model 'mine'", SIZES, shapes)
