import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from pipeline import fetch
from pipeline.core.errors import UserError
from pipeline.speech.corpus import Utterance
from pipeline.whisper import BASELINE
from pipeline.whisper.formats import configs, huggingface
from pipeline.whisper.inference import decoding
from pipeline.whisper.model import weights
from tests.conftest import SIZES, Project, encode, noise


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
    own = json.loads((trained / "generation_config.json").read_text())
    del own["_from_model_config"]
    assert generation == own | {
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


def test_what_json_files_say_is_kept(tmp_project: Project, checkpoint: Path) -> None:
    edit(checkpoint / "generation_config.json", no_timestamps_token_id=17, lang_to_id={"<|de|>": 13}, max_length=5)
    (checkpoint / "preprocessor_config.json").write_text('{"feature_size": 80, "chunk_length": 30, "extra": 1}')
    use(tmp_project, checkpoint)
    fetch.main()
    generation = json.loads((BASELINE / "generation_config.json").read_text())
    assert (generation["lang_to_id"], generation["max_length"]) == ({"<|de|>": 13}, 5)
    features = json.loads((BASELINE / "preprocessor_config.json").read_text())
    assert {key: features[key] for key in ("feature_size", "extra", "n_fft")} == {
        "feature_size": 80,
        "extra": 1,
        "n_fft": 400,
    }
    # The model has 50 positions, a second: what the file says of 30 is another model's.
    assert [features[key] for key in ("chunk_length", "n_samples", "nb_max_frames")] == [1, 16000, 100]


@pytest.mark.parametrize(
    ("end", "languages", "told", "multilingual"),
    [
        (50256, ["<|en|>", "<|de|>"], None, False),
        (50256, ["<|en|>", "<|de|>"], False, False),
        (50257, ["<|en|>", "<|de|>"], None, True),
        (50257, ["<|en|>", "<|de|>"], True, True),
        (10, ["<|en|>"], None, True),
        (10, ["<|en|>"], False, False),
        (10, [], None, False),
    ],
)
def test_the_tokenizer_tells_english_models_from_multilingual_ones(
    end: int, languages: list[str], told: bool | None, multilingual: bool
) -> None:
    """A prompt of another kind of model: generation configs without is_multilingual."""
    names = [
        "<|endoftext|>",
        "<|startoftranscript|>",
        *languages,
        "<|translate|>",
        "<|transcribe|>",
        "<|notimestamps|>",
    ]
    tokens = {name: end + n for n, name in enumerate(names)}
    given = {} if told is None else {"is_multilingual": told}
    found = configs.generation_config("model 'mine'", tokens, 60000, given)
    assert found["is_multilingual"] is multilingual
    assert ("lang_to_id" in found) is multilingual


@pytest.mark.parametrize(("end", "told"), [(50256, True), (50257, False)])
def test_a_contradicted_kind_of_model_is_one_sentence(end: int, told: bool) -> None:
    """Prompts of another kind of model: a generation config copied from one."""
    names = ["<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|translate|>", "<|transcribe|>", "<|notimestamps|>"]
    tokens = {name: end + n for n, name in enumerate(names)}
    with pytest.raises(UserError) as error:
        configs.generation_config("model 'mine'", tokens, 60000, {"is_multilingual": told})
    kind = "an English" if told else "a multilingual"
    assert str(error.value) == (
        f"model 'mine': is_multilingual is {told}, but tokenizer.json, whose <|endoftext|> is {end}, is that of {kind} "
        "model; correct one"
    )


def test_weights_saved_without_a_head_are_read(tmp_project: Project, checkpoint: Path) -> None:
    """Missing tensors, of a checkpoint that WhisperModel has saved: without the prefix `model.`"""
    tensors = load_file(checkpoint / "model.safetensors")
    bare = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    save_file(bare, checkpoint / "model.safetensors", {"format": "pt"})
    edit(checkpoint / "config.json", quantization_config=None)
    use(tmp_project, checkpoint)
    fetch.main()
    assert load_file(BASELINE / "model.safetensors").keys() == tensors.keys()


def test_ids_beyond_the_vocabulary_mean_nothing(tmp_project: Project, checkpoint: Path) -> None:
    """Index errors, of ids that are Transformers' defaults for Whisper's own vocabulary: it passes over them."""
    edit(checkpoint / "generation_config.json", suppress_tokens=[3, 50000], begin_suppress_tokens=[220, 50256])
    edit(checkpoint / "generation_config.json", eos_token_id=50256, decoder_start_token_id=50257)
    use(tmp_project, checkpoint)
    fetch.main()
    generation = json.loads((BASELINE / "generation_config.json").read_text())
    vocabulary = decoding.Vocabulary.read(BASELINE, "de", "transcribe")
    assert (vocabulary.suppressed, vocabulary.suppressed_first) == ([3], [])
    assert (generation["eos_token_id"], generation["decoder_start_token_id"]) == (10, 11)


def test_positions_of_another_window_are_kept(tmp_project: Project, checkpoint: Path) -> None:
    """A model of windows of another length than 30 s: fine-tuned for short commands."""
    use(tmp_project, checkpoint)
    fetch.main()
    model = weights.load(BASELINE)
    assert model.config.max_source_positions == 50
    vocabulary = decoding.Vocabulary.read(BASELINE, "de", "transcribe")
    utterance = Utterance("long", "s", "1", 2.5, "", encode(noise(2.5)))
    (heard,) = decoding.transcribe(model, [utterance], vocabulary, 8, size=2)
    assert len(heard.windows) == 4  # halves of halves: the first that are below a second


@pytest.mark.parametrize("tied", [True, False])
def test_a_head_is_kept_as_it_is(tied: bool, tmp_project: Project, checkpoint: Path) -> None:
    """A head that is not the token embedding: fine-tuning unties them."""
    tensors = load_file(checkpoint / "model.safetensors")
    head = tensors["model.decoder.embed_tokens.weight"].clone() + (0 if tied else 1)
    save_file(tensors | {"proj_out.weight": head}, checkpoint / "model.safetensors", {"format": "pt"})
    edit(checkpoint / "config.json", tie_word_embeddings=tied)
    use(tmp_project, checkpoint)
    fetch.main()
    assert ("proj_out.weight" in load_file(BASELINE / "model.safetensors")) is not tied
    assert torch.equal(weights.load(BASELINE).proj_out.weight, head)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "prompt"), [("tiny_en", [50257, 50362]), ("base", [50258, 50259, 50359, 50363])])
def test_a_generation_config_that_says_nothing_is_completed(
    name: str, prompt: list[int], tmp_project: Project, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """A prompt of another kind of model: OpenAI's own, without what tells English-only from multilingual."""
    published: Path = request.getfixturevalue(name)
    (tmp_path / "mine").mkdir()
    for file in published.iterdir():
        (tmp_path / "mine" / file.name).symlink_to(file)
    generation = json.loads((published / "generation_config.json").read_text())
    kept = ("suppress_tokens", "begin_suppress_tokens")
    (tmp_path / "mine/generation_config.json").unlink()
    (tmp_path / "mine/generation_config.json").write_text(json.dumps({key: generation[key] for key in kept}))
    use(tmp_project, tmp_path / "mine")
    fetch.main()
    assert decoding.Vocabulary.read(BASELINE, "en", "transcribe").prompt == prompt
    made = json.loads((BASELINE / "generation_config.json").read_text())
    assert {key: made.get(key) for key in generation if key != "alignment_heads"} == {
        key: value for key, value in generation.items() if key != "alignment_heads"
    }


@pytest.mark.slow
def test_a_slow_tokenizer_alone_is_made_a_fast_one(tmp_project: Project, base: Path, tmp_path: Path) -> None:
    """Only vocab.json and merges.txt: checkpoints saved by older versions of Transformers."""
    whole = json.loads((base / "tokenizer.json").read_text())
    slow = tmp_path / "slow"
    slow.mkdir()
    (slow / "vocab.json").write_text(json.dumps(whole["model"]["vocab"]))
    pairs = [pair if isinstance(pair, str) else " ".join(pair) for pair in whole["model"]["merges"]]
    (slow / "merges.txt").write_text("\n".join(["#version: 0.2", *pairs]))
    added = {entry["content"]: entry["id"] for entry in whole["added_tokens"]}
    (slow / "added_tokens.json").write_text(json.dumps(added))
    for name in ("config.json", "generation_config.json", "tokenizer_config.json", "model.safetensors"):
        (slow / name).symlink_to(base / name)
    use(tmp_project, slow)
    fetch.main()
    vocabulary = decoding.Vocabulary.read(BASELINE, "de", "transcribe")
    assert vocabulary.prompt == decoding.Vocabulary.read(base, "de", "transcribe").prompt
    ids = Tokenizer.from_file(str(base / "tokenizer.json")).encode(" Grüße aus Köln", add_special_tokens=False).ids
    assert vocabulary.text([vocabulary.prompt[0], *ids, 50363, vocabulary.end]) == " Grüße aus Köln"
    assert vocabulary.control == decoding.Vocabulary.read(base, "de", "transcribe").control


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def without_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.decoder.layers.0.fc1.bias"]
    save_file(tensors, folder / "model.safetensors")


def with_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors") | {"model.decoder.adapter": torch.zeros(1)}
    save_file(tensors, folder / "model.safetensors")


def not_finite(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.encoder.conv1.weight"][3, 2, 1] = float("nan")
    save_file(tensors, folder / "model.safetensors")


def overflowing(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.encoder.conv1.bias"] = torch.full((8,), 1e300, dtype=torch.float64)
    save_file(tensors, folder / "model.safetensors")


def another_head(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    head = tensors["model.decoder.embed_tokens.weight"] + 1
    save_file(tensors | {"proj_out.weight": head}, folder / "model.safetensors")


def more_tokens(folder: Path) -> list[dict[str, Any]]:
    tokens: list[dict[str, Any]] = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    return [*tokens, *(tokens[-1] | {"id": 18 + n, "content": f"<|more{n}|>"} for n in range(3))]


def configured(**changes: Any) -> Any:
    return lambda folder: edit(folder / "config.json", **changes)


def generating(**changes: Any) -> Any:
    return lambda folder: edit(folder / "generation_config.json", **changes)


def preprocessing(**changes: Any) -> Any:
    return lambda folder: (folder / "preprocessor_config.json").write_text(json.dumps(changes))


def quantized(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.encoder.conv1.weight"] = tensors["model.encoder.conv1.weight"].to(torch.int8)
    save_file(tensors, folder / "model.safetensors")


def climbing(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"x": "../model.safetensors"}}')


def named(file: str) -> Any:
    def change(folder: Path) -> None:
        (folder / "folder").mkdir()
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": file}}))

    return change


def emptily_sharded(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {}}')


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
            lambda folder: (folder / "preprocessor_config.json").mkdir() or (folder / "config.json").unlink(),
            "model 'mine': DIR/config.json is missing; a Whisper checkpoint in Hugging Face's layout has it",
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
            "model 'mine': DIR has no tokenizer.json (nor vocab.json, to make it of); save the tokenizer there",
        ),
        (
            lambda folder: edit(folder / "tokenizer.json", added_tokens=[]),
            "model 'mine': tokenizer.json has no token <|endoftext|>; it is not Whisper's tokenizer",
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
        (
            not_finite,
            "model 'mine': model.encoder.conv1.weight holds values that are not finite; train or save it again",
        ),
        (
            overflowing,
            "model 'mine': model.encoder.conv1.bias holds values that are not finite; train or save it again",
        ),
        (
            another_head,
            "model 'mine': config.json ties proj_out.weight to the token embedding, but their values differ; "
            "set tie_word_embeddings to false, or remove the tensor",
        ),
        (
            configured(tie_word_embeddings="yes"),
            "model 'mine': config.json: tie_word_embeddings is 'yes', but it must be true or false",
        ),
        (configured(tie_word_embeddings=False), "model 'mine': the weights lack the tensor proj_out.weight"),
        *(
            (
                configured(activation_function=kind),
                f"model 'mine': config.json: activation_function is {kind!r}, but this Whisper has 'gelu' alone",
            )
            for kind in ("relu", "gelu_new")
        ),
        (
            configured(scale_embedding=True),
            "model 'mine': config.json: scale_embedding is True, but this Whisper has False alone",
        ),
        (
            configured(hidden_size=16),
            "model 'mine': config.json: hidden_size is 16, but d_model is 8; correct one",
        ),
        (
            configured(decoder_attention_heads=3),
            "model 'mine': config.json: 3 decoder_attention_heads do not divide d_model 8",
        ),
        (
            configured(encoder_layers=10**9),
            "model 'mine': config.json: encoder_layers is 1000000000, but a whole number from 1 to 1,000,000 is needed",
        ),
        (
            configured(encoder_layers=2),
            "model 'mine': the weights have 1 layers in the encoder, but config.json says 2",
        ),
        (
            configured(max_source_positions=20),
            "model 'mine': config.json: max_source_positions is 20, but a whole number from 50 to 1,000,000 is needed",
        ),
        (
            configured(vocab_size="20"),
            "model 'mine': config.json: vocab_size is '20', but a whole number from 1 to 1,000,000 is needed",
        ),
        (
            generating(suppress_tokens=[1, "2"]),
            "model 'mine': suppress_tokens has '2', but a list of tokens' ids is needed; correct it",
        ),
        (
            generating(begin_suppress_tokens=[-1]),
            "model 'mine': begin_suppress_tokens has -1, but a list of tokens' ids is needed; correct it",
        ),
        (
            generating(eos_token_id=11),
            "model 'mine': eos_token_id is 11, but tokenizer.json shows 10; correct one",
        ),
        (
            generating(no_timestamps_token_id=16),
            "model 'mine': no_timestamps_token_id is 16, but tokenizer.json shows 17; correct one",
        ),
        (
            generating(is_multilingual=False, lang_to_id={"<|en|>": 12}),
            "model 'mine': is_multilingual is False, but there are languages in lang_to_id; correct one",
        ),
        (
            generating(lang_to_id={"<|en|>": 12.0}),  # which is 12, but no index
            "model 'mine': lang_to_id has <|en|> at 12.0, but tokenizer.json shows 12; correct one",
        ),
        (
            generating(lang_to_id={"<|en|>": 13}),
            "model 'mine': lang_to_id has <|en|> at 13, but tokenizer.json shows 12; correct one",
        ),
        (
            generating(lang_to_id={"<|fr|>": 13}),
            "model 'mine': lang_to_id has <|fr|> at 13, but tokenizer.json has no such token; correct one",
        ),
        (
            generating(task_to_id={"transcribe": 14}),
            "model 'mine': task_to_id has <|transcribe|> at 14, but tokenizer.json shows 15; correct one",
        ),
        (
            generating(task_to_id=[14]),
            "model 'mine': task_to_id is [14], but a map of names to the ids of tokens is needed",
        ),
        (
            preprocessing(feature_size=128),
            "model 'mine': preprocessor_config.json: feature_size is 128, but the model gets 80; "
            "correct it, or remove the file",
        ),
        (
            preprocessing(do_normalize=True),
            "model 'mine': preprocessor_config.json: do_normalize is True, but the model gets False; "
            "correct it, or remove the file",
        ),
        (
            lambda folder: edit(folder / "tokenizer.json", added_tokens=more_tokens(folder)),
            "model 'mine': tokenizer.json has tokens up to 20, but the model has 20 (vocab_size); "
            "one of them is another model's",
        ),
        (
            lambda folder: (folder / "tokenizer.json").write_text("{}"),
            "model 'mine': tokenizer.json cannot be read (Cannot instantiate Tokenizer from buffer: Model missing. "
            "at line 1 column 2); save the tokenizer again",
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
            emptily_sharded,
            "model 'mine': DIR/model.safetensors.index.json has no weight_map of tensors to files; "
            "save the model again",
        ),
        (
            named(""),
            "model 'mine': DIR/model.safetensors.index.json names the file '', outside of its folder",
        ),
        (
            named("x" * 300),
            f"model 'mine': DIR/{'x' * 300} is missing, though the index of the weights names it",
        ),
        (
            named("folder"),
            "model 'mine': DIR/folder is no whole safetensors file (No such device (os error 19))",
        ),
        (
            lambda folder: (folder / "config.json").write_text('["half \\ud800"]'),
            "model 'mine': DIR/config.json is not valid JSON ('utf-8' codec can't encode character '\\ud800' in "
            "position 7: surrogates not allowed)",
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
    """Settings of a model that are read by nobody, or contradict each other: of other tools, or edited by hand."""
    change(checkpoint)
    use(tmp_project, checkpoint)
    with pytest.raises(UserError) as error:
        fetch.main()
    assert str(error.value) == sentence.replace("DIR", str(checkpoint))
    assert list(Path("models").iterdir()) == []


@pytest.mark.parametrize("name", ["nowhere", "x" * 300])
def test_a_missing_directory_is_one_sentence(name: str, tmp_project: Project, tmp_path: Path) -> None:
    use(tmp_project, tmp_path / name)
    with pytest.raises(UserError) as error:
        fetch.main()
    assert str(error.value) == f"model 'mine': the folder {tmp_path}/{name} does not exist; correct models.mine.path"


def test_the_shape_of_every_tensor_is_transformers_own() -> None:
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    with torch.device("meta"):
        model = WhisperForConditionalGeneration(WhisperConfig(**SIZES, pad_token_id=10, decoder_start_token_id=11))
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if name != "proj_out.weight"}
    huggingface.check("model 'mine'", SIZES, shapes)
