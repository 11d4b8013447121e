import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.core.errors import UserError
from pipeline.speech.corpus import Utterance
from pipeline.whisper import agreement
from pipeline.whisper.inference import decoding
from pipeline.whisper.model import network, weights
from tests import toy
from tests.conftest import encode, noise

TOKENS = [257, 260, 97, 9, 32, 38, 4, 62]
"""A prompt of two, and six more."""


def utterance(name: str, flac: bytes) -> Utterance:
    return Utterance(name, "test", "s", 1.0, "", flac)


def logits(*shares: Sequence[float]) -> torch.Tensor:
    """Return logits of these distributions: softmax does not tell them from logits shifted by a constant."""
    return torch.tensor(shares).log() + 3.0


def test_divergence_flips_and_likelihoods_worked_by_hand() -> None:
    fp32 = logits([1 / 2, 1 / 4, 1 / 4], [1 / 2, 1 / 4, 1 / 4], [0.9, 0.05, 0.05])
    other = logits([1 / 4, 1 / 2, 1 / 4], [1 / 2, 1 / 4, 1 / 4], [0.6, 0.3, 0.1])
    found = agreement.differences(fp32, other, torch.tensor([0, 0, 0]), torch.zeros(3, 3, dtype=torch.bool))
    # 1/2 ln(1/2 : 1/4) + 1/4 ln(1/4 : 1/2) + 1/4 ln 1; then nothing; then 0.9 ln 1.5 - 0.05 ln 6 - 0.05 ln 2.
    assert found[:, 0].tolist() == pytest.approx([math.log(2) / 4, 0.0, 0.2406734], abs=1e-6)
    assert found[:, 1].tolist() == [1, 0, 0]
    assert found[:, 2].tolist() == pytest.approx([-math.log(2), 0.0, math.log(2 / 3)], abs=1e-6)


def test_suppressed_tokens_take_no_part() -> None:
    """However likely they are: as if there were none."""
    fp32, other = logits([0.5, 0.25, 0.25]), logits([0.25, 0.5, 0.25])
    said, open_ = torch.tensor([0]), torch.zeros(1, 3, dtype=torch.bool)
    expected = agreement.differences(fp32, other, said, open_)
    quiet, loud = (torch.cat([each, torch.tensor([[more]])], dim=1) for each, more in ((fp32, -40.0), (other, 40.0)))
    barred = torch.tensor([[False, False, False, True]])
    assert torch.equal(agreement.differences(quiet, loud, said, barred), expected)
    assert expected[0, 1] == 1


@pytest.fixture
def fp32(baseline: Path) -> network.Whisper:
    return weights.load(baseline)


def window(fp32: network.Whisper, features: torch.Tensor) -> agreement.Window:
    return agreement.Window("a-1", TOKENS, agreement.states(fp32, features, TOKENS, len(TOKENS) - 2))


def open_(model: network.Whisper) -> torch.Tensor:
    return torch.zeros(2, model.config.vocab_size, dtype=torch.bool)


def test_fp32_agrees_with_itself_exactly(baseline: Path, fp32: network.Whisper) -> None:
    features, head = toy.features(1), agreement.head(baseline, "cpu")
    found = agreement.compare(weights.load(baseline), features, window(fp32, features), head, open_(fp32))
    assert found.shape == (6, 3)
    assert torch.equal(found[:, [0, 2]], torch.zeros(6, 2, dtype=torch.float64))
    with torch.no_grad():
        likeliest = fp32(features, torch.tensor([TOKENS[:-1]]))[0, 1:].argmax(dim=1)
    assert found[:, 1].tolist() == (likeliest != torch.tensor(TOKENS[2:])).tolist()  # nobody wrote these tokens


def test_places_are_those_of_whole_logits(
    baseline: Path, fp32: network.Whisper, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The prompt's own tokens are not compared; the first suppression is of the first place alone."""
    features, other = toy.features(1), weights.load(baseline)
    other.get_parameter("model.decoder.layer_norm.weight").mul_(0.1)
    barred = open_(fp32)
    barred[0, :50] = True
    with torch.no_grad():
        whole, its = (model(features, torch.tensor([TOKENS[:-1]]))[0, 1:] for model in (fp32, other))
    masks = torch.stack([barred[0], *[barred[1]] * 5])
    expected = agreement.differences(whole, its, torch.tensor(TOKENS[2:]), masks)
    assert expected[:, 0].min() > 0.001
    for most in (64, 4, 1):
        monkeypatch.setattr(agreement, "_PLACES", most)
        found = agreement.compare(other, features, window(fp32, features), agreement.head(baseline, "cpu"), barred)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_logits_that_are_no_numbers_are_refused(baseline: Path, fp32: network.Whisper) -> None:
    features, broken = toy.features(1), weights.load(baseline)
    broken.proj_out.weight = torch.nn.Parameter(broken.proj_out.weight.clone(), requires_grad=False)
    broken.proj_out.weight[7] = float("inf")
    with pytest.raises(UserError) as error:
        agreement.compare(broken, features, window(fp32, features), agreement.head(baseline, "cpu"), open_(fp32))
    assert str(error.value) == (
        "utterance 'a-1': a token's logit is not a finite number, so no distribution follows: the weights are broken"
    )


def test_a_head_of_its_own_is_read(baseline: Path, tmp_path: Path) -> None:
    tensors = load_file(baseline / "model.safetensors")
    assert torch.equal(agreement.head(baseline, "cpu"), tensors[weights.EMBEDDING])
    own = torch.ones_like(tensors[weights.EMBEDDING])
    save_file(tensors | {weights.HEAD: own}, tmp_path / "model.safetensors")
    assert torch.equal(agreement.head(tmp_path, "cpu"), own)


def test_what_was_written_is_read(baseline: Path, tmp_path: Path) -> None:
    vocabulary = decoding.Vocabulary.read(baseline, "en", "transcribe")
    made = [
        agreement.Window(name, [257, 260, *range(places)], torch.randn(places, 64))
        for name, places in (("a-1", 3), ("a-1", 30), ("ä 2", 1))
    ]
    path, shard = tmp_path / "split-00000.parquet", tmp_path / "shard"
    shard.write_bytes(b"speech")
    assert agreement.write(path, "5eed", shard, vocabulary, made) == 34
    agreement.check(path, "5eed", shard)
    found = list(agreement.read(path, 64, "cpu"))
    assert [(each.id, each.tokens) for each in found] == [(each.id, each.tokens) for each in made]
    assert all(torch.equal(one.states, other.states) for one, other in zip(found, made, strict=True))
    barred = agreement.barred(path, 261, "cpu")
    assert barred[1].nonzero().flatten().tolist() == sorted(vocabulary.suppressed)
    assert barred[0].nonzero().flatten().tolist() == sorted({*vocabulary.suppressed, *vocabulary.suppressed_first})
    assert vocabulary.end in vocabulary.suppressed_first


def test_token_by_token_gives_the_same_states(fp32: network.Whisper) -> None:
    features, tokens = torch.randn(1, 80, 3000), [257, 260, *range(20)]
    with torch.no_grad():
        once, stepwise = (
            agreement._states(fp32, fp32.caches(features, 22), tokens, 20, stepwise) for stepwise in (False, True)
        )
    assert once.std() > 0.1
    assert torch.allclose(once, stepwise, atol=1e-5)


def transformers_differ(folder: Path, spoken: Sequence[Utterance]) -> list[float]:
    """Return the largest difference of logits to Transformers' in each utterance, with our greedy tokens forced."""
    from transformers import WhisperForConditionalGeneration

    theirs: Any = WhisperForConditionalGeneration.from_pretrained(folder).eval()
    model, vocabulary = weights.load(folder), decoding.Vocabulary.read(folder, "en", "transcribe")
    found = []
    for each in spoken:
        features, tokens = decoding.transcript(model, each, vocabulary)
        places = tokens.shape[1] - len(vocabulary.prompt) + 1
        with torch.no_grad():
            ours = model.proj_out(agreement.states(model, features, [*tokens[0].tolist(), vocabulary.end], places))
            logits = theirs(input_features=features, decoder_input_ids=tokens).logits[0, -places:]
        assert logits.std() > 0.5
        found.append(float((ours - logits).abs().max()))
    return found


def test_logits_are_those_of_transformers(baseline: Path, tmp_path: Path) -> None:
    for name in ("model.safetensors", "config.json", "generation_config.json", "tokenizer.json"):
        (tmp_path / name).write_bytes((baseline / name).read_bytes())
    toy.talkative(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.decoder.layer_norm.weight"] *= 30  # logits as far apart as trained ones
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    spoken = [utterance(f"u{seed}", encode(noise(1.0, seed))) for seed in range(2)]
    assert max(transformers_differ(tmp_path, spoken)) < 1e-4


@pytest.mark.slow
def test_logits_of_tiny_en_are_those_of_transformers(tiny_en: Path, sample: list[Utterance]) -> None:
    assert max(transformers_differ(tiny_en, sample)) < 1e-4


@pytest.mark.slow
def test_logits_on_librispeech_are_those_of_transformers(tiny_en: Path, shared_speech: Path) -> None:
    paths = sorted(shared_speech.glob("test-*/*/*/*.flac"))[::12][:10]
    assert len(paths) == 10
    assert max(transformers_differ(tiny_en, [utterance(path.stem, path.read_bytes()) for path in paths])) < 1e-4
