import json
import shutil
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer

from pipeline.core.errors import UserError
from pipeline.speech import corpus
from pipeline.speech.corpus import Utterance
from pipeline.whisper.inference import decoding, mel
from pipeline.whisper.inference.decoding import Vocabulary
from pipeline.whisper.model import weights
from pipeline.whisper.model.network import Cache
from tests import toy
from tests.conftest import SPEECH, encode, noise

END = 9


class Script:
    """Stands in for Whisper: row n of the features says its line, token by token, and then END for ever.

    It finds its lines by what stands in the caches, so a row that is mixed up with another says the wrong words.
    """

    def __init__(self, lines: Sequence[Sequence[int]], positions: int = 100) -> None:
        self.lines = lines
        self.config = types.SimpleNamespace(vocab_size=12, max_target_positions=positions)
        self.device = torch.device("cpu")
        self.steps: list[list[int]] = []
        """The lines that were asked for at each step."""
        self.fed: list[list[list[int]]] = []
        """The tokens that came with them."""

    def caches(self, features: torch.Tensor, positions: int) -> list[tuple[Cache, Cache]]:
        rows = torch.arange(len(features))[:, None, None, None]
        return [(Cache(rows.expand(-1, 1, positions, 1).clone(), rows.clone()), Cache(rows.clone(), rows.clone()))]

    def next_logits(self, tokens: torch.Tensor, caches: list[tuple[Cache, Cache]]) -> torch.Tensor:
        ((own, heard),) = caches
        assert own.length + tokens.shape[1] <= own.keys.shape[2], "more tokens than there is room for"
        rows = heard.keys.flatten().tolist()
        step = len(self.steps)
        logits = torch.zeros(len(rows), self.config.vocab_size)
        for row, line in enumerate(rows):
            said = [*self.lines[line], *[END] * 99]
            logits[row, said[step]] = 5.0
            logits[row, 1] = 3.0  # the second best
            logits[row, 2] = 2.0  # the third
        own.length += tokens.shape[1]
        self.steps.append(rows)
        self.fed.append(tokens.tolist())
        return logits


def greedy(
    script: Script, limit: int = 50, suppressed: Sequence[int] = (), first: Sequence[int] = ()
) -> list[list[int]]:
    tokenizer: Any = None
    vocabulary = Vocabulary(
        tokenizer, prompt=[10, 11], end=END, suppressed=list(suppressed), suppressed_first=list(first)
    )
    model: Any = script
    return decoding.greedy(model, torch.zeros(len(script.lines), 80, 3000), vocabulary, limit)


def transformers_tokens(folder: Path, sounds: Sequence[mel.Samples], **options: Any) -> list[list[int]]:
    """Decode with Transformers' `generate`, greedily; drop the prompt and the special tokens."""
    from transformers import WhisperForConditionalGeneration

    model = WhisperForConditionalGeneration.from_pretrained(folder)
    features = mel.log_mel(list(sounds), model.config.num_mel_bins)
    with torch.no_grad():
        rows = model.generate(features, num_beams=1, do_sample=False, **options)
    end = model.generation_config.eos_token_id
    return [[token for token in row.tolist() if token < end] for row in rows]


@pytest.fixture(scope="module")
def libri(shared_speech: Path) -> list[Utterance]:
    """Return four utterances of LibriSpeech, short and long."""
    files = sorted(shared_speech.glob("test-other/*/*/*.flac"), key=lambda file: file.stat().st_size)[:60:15]
    return [Utterance(f.stem, "test-other", "1", soundfile.info(f).duration, "", f.read_bytes()) for f in files]


def test_rows_that_end_early_leave_the_others_alone() -> None:
    lines = [[3], [4, 5, 6, 7, 8, 3], [], [5, 5, 5], [7, 8], [8, 7, 6, 5]]
    script = Script(lines)
    assert greedy(script) == lines
    # Whoever ends leaves at once, and the last rows take the empty places.
    assert script.steps == [
        [0, 1, 2, 3, 4, 5],
        [0, 1, 5, 3, 4],
        [4, 1, 5, 3],
        [3, 1, 5],
        [5, 1],
        [1],
        [1],
    ]
    assert script.fed[0] == [[10, 11]] * 6
    assert script.fed[1:] == [
        [[3], [4], [8], [5], [7]],
        [[8], [5], [7], [5]],
        [[5], [6], [6]],
        [[5], [7]],
        [[8]],
        [[3]],
    ]


def test_one_row_is_decoded_as_in_a_batch() -> None:
    lines = [[3], [4, 5, 6, 7, 8, 3], [5, 5, 5]]
    assert [greedy(Script([line]))[0] for line in lines] == lines


@pytest.mark.parametrize(("limit", "expected"), [(1, [3]), (3, [3, 4, 5]), (4, [3, 4, 5, 6]), (50, [3, 4, 5, 6])])
def test_max_new_tokens(limit: int, expected: list[int]) -> None:
    assert greedy(Script([[3, 4, 5, 6]]), limit) == [expected]


def test_no_more_tokens_than_the_model_has_positions_for() -> None:
    script = Script([[3] * 90, [4, 4]], positions=20)
    assert greedy(script) == [[3] * 18, [4, 4]]  # the prompt takes 2 of the 20
    assert len(script.steps) == 18


def test_suppressed_tokens_are_never_said() -> None:
    assert greedy(Script([[3, 4]]), limit=2, suppressed=[3, 4]) == [[1, 1]]
    assert greedy(Script([[3, 4]]), limit=2, suppressed=[1, 3]) == [[2, 4]]


def test_suppressed_first_tokens_only_come_later() -> None:
    assert greedy(Script([[3, 3], []]), limit=2, first=[3, END]) == [[1, 3], [1]]


@pytest.mark.parametrize("logit", [float("nan"), float("inf")])
def test_nothing_is_chosen_among_logits_that_are_no_numbers(logit: float) -> None:
    """Texts of "!!!!": a NaN wins every argmax, and its index is that of a token."""

    class Broken(Script):
        def next_logits(self, tokens: torch.Tensor, caches: list[tuple[Cache, Cache]]) -> torch.Tensor:
            logits = super().next_logits(tokens, caches)
            rows = caches[0][1].keys.flatten().tolist()
            if len(self.steps) == 3:
                logits[rows.index(2), 7] = logit
            return logits

    sentence = (
        "row 2: no token can be chosen, as its logit is not a finite number: the weights are broken, or every token is "
        "suppressed"
    )
    with pytest.raises(UserError) as error:
        greedy(Broken([[3], [4, 5], [6, 6, 6, 6]]))
    assert str(error.value) == sentence


def test_a_model_whose_tokens_are_all_suppressed_says_nothing() -> None:
    with pytest.raises(UserError, match=r"^row 0: no token can be chosen"):
        greedy(Script([[3]]), suppressed=range(12))


def test_batches_are_sorted_by_duration_and_lose_nothing() -> None:
    utterances = [
        Utterance(name, "s", "1", length, "", b"") for name, length in zip("abcde", (3, 9, 3, 1, 5), strict=True)
    ]
    assert [[u.id for u in batch] for batch in decoding.batches(utterances, 2)] == [["b", "e"], ["a", "c"], ["d"]]
    assert [[u.id for u in batch] for batch in decoding.batches(utterances, 9)] == [["b", "e", "a", "c", "d"]]
    assert list(decoding.batches([], 2)) == []


def test_the_prompt_of_an_english_model(baseline: Path) -> None:
    vocabulary = Vocabulary.read(baseline, "en", "transcribe")
    assert (vocabulary.prompt, vocabulary.end) == ([257, 260], 256)
    assert (vocabulary.suppressed, vocabulary.suppressed_first) == ([], [256])
    assert vocabulary.text([257, *vocabulary.tokenizer.encode("Hi").ids, 260, 256]) == "Hi"


def test_added_words_belong_to_the_text(baseline: Path, tmp_path: Path) -> None:
    """Words that vanish: those that fine-tuning has added to the tokenizer, beyond its special tokens."""
    tokenizer = Tokenizer.from_file(str(baseline / "tokenizer.json"))
    tokenizer.add_tokens(["Zugspitze", AddedToken("<|0.00|>", special=False), AddedToken("<|30.00|>", special=False)])
    tokenizer.add_special_tokens(["<|laughter|>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    shutil.copyfile(baseline / "generation_config.json", tmp_path / "generation_config.json")
    vocabulary = Vocabulary.read(tmp_path, "en", "transcribe")
    hi = vocabulary.tokenizer.encode("Hi").ids
    assert vocabulary.text([262, *hi, 261, 264, 263, 256]) == "HiZugspitze"


def test_the_prompt_of_a_multilingual_model(tmp_path: Path) -> None:
    folder = toy.write(tmp_path / "baseline", toy.MULTILINGUAL)
    assert Vocabulary.read(folder, "en", "transcribe").prompt == [257, 258, 261, 262]
    assert Vocabulary.read(folder, "de", "translate").prompt == [257, 259, 260, 262]
    with pytest.raises(UserError) as error:
        Vocabulary.read(folder, "dee", "transcribe")
    assert str(error.value) == "decoding: unknown language 'dee' (did you mean 'de'?)"
    with pytest.raises(UserError) as error:
        Vocabulary.read(folder, "xx", "transcribe")
    assert str(error.value) == "decoding: unknown language 'xx' (known: de, en)"


@pytest.mark.parametrize("name", ["tokenizer.json", "generation_config.json"])
def test_a_folder_that_is_no_baseline_is_one_sentence(name: str, baseline: Path, tmp_path: Path) -> None:
    for file in {"tokenizer.json", "generation_config.json"} - {name}:
        shutil.copyfile(baseline / file, tmp_path / file)
    with pytest.raises(UserError) as error:
        Vocabulary.read(tmp_path, "en", "transcribe")
    assert str(error.value) == f"{tmp_path}/{name} is not here; run 'python -m pipeline.fetch' first"


@pytest.mark.parametrize(("language", "task"), [("de", "transcribe"), ("en", "translate"), ("auto", "transcribe")])
def test_an_english_model_does_nothing_else(baseline: Path, language: str, task: str) -> None:
    with pytest.raises(UserError) as error:
        Vocabulary.read(baseline, language, task)
    assert str(error.value) == (
        f"decoding: this model only transcribes English, so {language}/{task} needs another model"
    )


def test_another_tokenizer_is_one_sentence(baseline: Path, tmp_path: Path) -> None:
    shutil.copyfile(baseline / "generation_config.json", tmp_path / "generation_config.json")
    tokenizer = json.loads((baseline / "tokenizer.json").read_text())
    tokenizer["added_tokens"] = [token for token in tokenizer["added_tokens"] if token["content"] != "<|endoftext|>"]
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(UserError) as error:
        Vocabulary.read(tmp_path, "en", "transcribe")
    assert str(error.value) == f"{tmp_path}/tokenizer.json lacks the token '<|endoftext|>'; it is not Whisper's"


@pytest.mark.slow
def test_tokens_are_those_of_transformers(tiny_en: Path, sample: list[Utterance]) -> None:
    vocabulary = Vocabulary.read(tiny_en, "en", "transcribe")
    sounds = [corpus.samples(utterance) for utterance in sample]
    found = decoding.greedy(weights.load(tiny_en), mel.log_mel(sounds, 80), vocabulary, 444)
    assert found == transformers_tokens(tiny_en, sounds)
    assert len(vocabulary.suppressed) > 80
    assert vocabulary.text(found[4]) == " He might even have been made amiable himself."


@pytest.mark.slow
def test_special_tokens_stay_suppressed_when_brackets_and_notes_may_be_written(
    tiny_en: Path, sample: list[Utterance]
) -> None:
    usual = Vocabulary.read(tiny_en, "en", "transcribe")
    free = Vocabulary.read(tiny_en, "en", "transcribe", suppress_non_speech=False)
    assert {usual.tokenizer.token_to_id(mark) for mark in ("(", '"', "[")} <= set(usual.suppressed)
    assert free.suppressed == [token for token in usual.suppressed if token >= usual.end] != []
    sounds = [corpus.samples(utterance) for utterance in sample]
    found = decoding.greedy(weights.load(tiny_en), mel.log_mel(sounds, 80), free, 444)
    assert found == transformers_tokens(tiny_en, sounds, suppress_tokens=free.suppressed)


@pytest.mark.slow
def test_multilingual_tokens_are_those_of_transformers(base: Path, sample: list[Utterance]) -> None:
    sounds = [corpus.samples(utterance) for utterance in sample[1:2]]
    model = weights.load(base)
    for language in ("en", "de"):
        vocabulary = Vocabulary.read(base, language, "transcribe")
        found = decoding.greedy(model, mel.log_mel(sounds, 80), vocabulary, 12)
        assert found == transformers_tokens(base, sounds, language=language, task="transcribe", max_new_tokens=12)


def test_a_language_is_detected_for_each_utterance(tmp_path: Path) -> None:
    """Recordings of several languages: as Transformers detects them, by the first window, and as if it was told."""
    from transformers import WhisperForConditionalGeneration

    languages = [f"<|{first}{second}|>" for first in "abcdefgh" for second in "uvwxyz"]
    folder = toy.write(tmp_path / "baseline", [*toy.ENGLISH[:2], *languages, *toy.ENGLISH[2:]])
    tensors = load_file(folder / "model.safetensors")
    for name, tensor in tensors.items():  # so that the sound decides
        if name in ("model.decoder.embed_tokens.weight", "model.encoder.embed_positions.weight"):
            tensor *= 0.03
        elif "embed" not in name and tensor.dim() == 2:
            tensor *= 12 if "encoder_attn" in name else 3
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    batch = [Utterance(f"u{n}", "s", "1", 0.5 + n, "", encode(noise(0.5 + n, n) // 3**n)) for n in range(4)]
    batch.append(Utterance("long", "s", "1", 70.0, "", encode(noise(70.0, 9))))
    model, vocabulary = weights.load(folder), Vocabulary.read(folder, "auto", "transcribe")
    found = decoding.transcribe(model, batch, vocabulary, 8, size=2)
    lines = [heard.line(vocabulary) for heard in found]
    assert [len(heard.windows) for heard in found] == [1, 1, 1, 1, 3]
    assert len({line["language"] for line in lines}) >= 3
    theirs: Any = WhisperForConditionalGeneration.from_pretrained(folder)
    features = mel.log_mel([corpus.samples(utterance) for utterance in batch[:4]], 80)
    assert [heard.language for heard in found[:4]] == theirs.detect_language(input_features=features).tolist()
    for utterance, line in zip(batch, lines, strict=True):
        told = Vocabulary.read(folder, line["language"], "transcribe")
        assert toy.texts(model, [utterance], told, 8) == [line["pred_text"]]
    _, tokens = decoding.transcript(model, batch[-1], vocabulary)
    assert tokens[0, :4].tolist() == [257, found[-1].language, *vocabulary.prompt[2:]]


@pytest.mark.slow
def test_languages_of_real_speech_are_detected(base: Path, sample: list[Utterance]) -> None:
    model, vocabulary = weights.load(base), Vocabulary.read(base, "auto", "transcribe")
    english = Vocabulary.read(base, "en", "transcribe")
    (heard,) = decoding.transcribe(model, sample[4:], vocabulary, 444, size=16)
    assert heard.line(vocabulary) == {"language": "en", "pred_text": toy.texts(model, sample[4:], english)[0]}
    german = sorted((SPEECH.parent / "speech" / "kerstin-de").glob("*/*/*/*.flac"))[:2]
    if not german:
        pytest.skip("no German speech lies beside the project: the test on it is skipped")
    spoken = [Utterance(f.stem, "de", "1", soundfile.info(f).duration, "", f.read_bytes()) for f in german]
    found = decoding.transcribe(model, spoken, vocabulary, 8, size=16)
    assert [heard.line(vocabulary)["language"] for heard in found] == ["de", "de"]


@pytest.mark.slow
def test_text_does_not_depend_on_the_batch(tiny_en: Path, sample: list[Utterance], libri: list[Utterance]) -> None:
    model, vocabulary = weights.load(tiny_en), Vocabulary.read(tiny_en, "en", "transcribe")
    batch = [*libri, *sample]
    alone = [toy.texts(model, [utterance], vocabulary, 444)[0] for utterance in batch]
    assert toy.texts(model, batch, vocabulary, 444) == alone
    assert len(set(alone)) == 9
    assert alone[8] == "He might even have been made amiable himself."


@pytest.mark.slow
def test_sound_beyond_30_seconds_is_decoded_in_windows(tiny_en: Path, sample: list[Utterance]) -> None:
    model, vocabulary = weights.load(tiny_en), Vocabulary.read(tiny_en, "en", "transcribe")
    first = toy.texts(model, [sample[3]], vocabulary, 444)[0]
    parts = [corpus.samples(sample[n]) for n in (3, 4)]
    room = np.zeros(11 * mel.SAMPLE_RATE, np.float32)
    speech = np.concatenate([parts[0], room, room, parts[1]])
    utterance = Utterance("long", "s", "1", len(speech) / mel.SAMPLE_RATE, "", encode(speech))
    assert toy.texts(model, [utterance, sample[4]], vocabulary, 444) == [
        f"{first} He might even have been made amiable himself.",
        "He might even have been made amiable himself.",
    ]
