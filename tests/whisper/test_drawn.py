"""Drawn checkpoints: `fetch` refuses each in one sentence, or fp32 does what Transformers does."""

import collections
import contextlib
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline import fetch
from pipeline.core import files
from pipeline.core.errors import UserError
from pipeline.whisper import BASELINE
from pipeline.whisper.inference import decoding
from pipeline.whisper.model import weights
from tests.conftest import Project
from tests.whisper.drawn import draw
from tests.whisper.sound import END, Checkpoint

SEEDS = range(40)
SOURCE = Path("drawn")
"""Where a drawn checkpoint is written."""
CLOSE = 1e-4
"""How far logits may be apart, and how near two tokens must be for either to count as the likeliest."""


@dataclass(frozen=True)
class Outcome:
    """What became of a drawn checkpoint."""

    odd: tuple[str, ...]
    refusal: str | None
    fault: str | None
    """What was not as it must be."""


def prepare(folder: Path) -> None:
    """Make a project in which `fetch` takes the drawn checkpoint; let Transformers say nothing of what is odd."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    Project(folder).set(model="drawn", models__drawn={"source": "directory", "path": str(SOURCE)})


def judge(checkpoint: Checkpoint) -> Outcome:
    """Fetch a checkpoint, in the folder that `prepare` has made, and hold what comes out against the truth."""
    for folder in (SOURCE, Path("models")):
        files.remove(folder)
    checkpoint.write(SOURCE)
    refusal, fault = None, None
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            fetch.main()
    except UserError as error:
        refusal = str(error)
        fault = _fault(checkpoint, refusal)
    except Exception as error:
        fault = f"fetch ends with {type(error).__name__}: {error}"
    else:
        if checkpoint.verdict == "refused":
            fault = "it is not refused"
        else:
            try:
                fault = compare(checkpoint, BASELINE)
            except UserError as error:
                fault = f"fetch takes it, but what follows does not: {error}"
            except Exception as error:
                fault = f"fp32 ends with {type(error).__name__}: {error}"
    return Outcome(tuple(checkpoint.odd), refusal, fault)


def _fault(checkpoint: Checkpoint, refusal: str) -> str | None:
    if checkpoint.verdict == "works":
        return f"it is sound, but refused: {refusal}"
    if "\n" in refusal or not any(re.search(pattern, refusal) for pattern in checkpoint.odd.values()):
        return f"the refusal does not name what is wrong, in one line: {refusal}"
    left = sorted(path.name for path in Path("models").iterdir())
    return f"the refusal leaves {left}" if left else None


def compare(checkpoint: Checkpoint, folder: Path) -> str | None:
    """Say in what fp32 of a fetched checkpoint differs from the truth, if it does: logits, tokens or text."""
    truth = checkpoint.model
    if checkpoint.readable and not checkpoint.odd:
        truth = type(truth).from_pretrained(SOURCE, dtype=torch.float32).eval()
    found, config = weights.load(folder), truth.config
    features = torch.randn(2, config.num_mel_bins, 2 * config.max_source_positions)
    tokens = torch.randint(config.vocab_size, (2, 5))
    with torch.no_grad():
        expected = truth(input_features=features, decoder_input_ids=tokens).logits
        difference = (found(features, tokens) - expected).abs().max().item()
    if not difference <= CLOSE:
        return f"logits differ by {difference:.1g}"

    vocabulary = decoding.Vocabulary.read(folder, checkpoint.language or "en", "transcribe")
    limit = min(16, config.max_target_positions - (4 if checkpoint.language else 2))
    rows = decoding.greedy(found, features, vocabulary, limit)
    faults = [_tokens(checkpoint, truth, features, rows, limit, first) for first in checkpoint.first]
    if all(faults):
        return faults[0]
    for row in rows:
        text = vocabulary.tokenizer.decode([token for token in row if token in checkpoint.ordinary])
        if vocabulary.text(row) != text:
            return f"text is {vocabulary.text(row)!r} instead of {text!r}"
    return None


def _tokens(
    checkpoint: Checkpoint,
    truth: Any,
    features: torch.Tensor,
    rows: list[list[int]],
    limit: int,
    first: list[int] | None,
) -> str | None:
    """Say which of the rows, if any, is not what Transformers decodes, with these tokens suppressed at first."""
    truth.generation_config.begin_suppress_tokens = first
    language = None if checkpoint.language == "auto" else checkpoint.language
    generated = truth.generate(
        features,
        **({"language": language, "task": "transcribe"} if checkpoint.language else {}),
        max_new_tokens=limit,
        do_sample=False,
        output_scores=True,
        return_dict_in_generate=True,
        force_unique_generate_call=True,  # else it begins again where timestamps come out
    )
    end = checkpoint.tokens[END]
    for number, row in enumerate(rows):
        expected = generated.sequences[number, -len(generated.scores) :].tolist()
        for step, (token, best) in enumerate(zip([*row, end], expected, strict=False)):
            scores = generated.scores[step][number]
            if token != best and not scores[best] - scores[token] < CLOSE:
                return f"row {number} says {row}, but Transformers {expected}, whose end is {end}"
            if token != best or best == end:
                break  # after a tie, each may go on as it likes
        else:
            if len(row) != limit:
                return f"row {number} ends after {len(row)} tokens of {limit}"
    return None


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Make a project that takes drawn checkpoints, and stay in it."""
    folder = tmp_path_factory.mktemp("drawn")
    prepare(folder)
    with contextlib.chdir(folder):
        yield


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("seed", SEEDS)
def test_a_drawn_checkpoint_is_refused_or_equals_transformers(seed: int) -> None:
    """An odd checkpoint ends in a traceback, or is quietly transcribed otherwise than elsewhere."""
    outcome = judge(draw(seed))
    assert outcome.fault is None, f"{', '.join(outcome.odd)}: {outcome.fault}"


def test_sound_and_broken_checkpoints_are_drawn() -> None:
    """A check that refuses whatever is unusual, or nothing at all, passes where only one kind is tried."""
    verdicts = collections.Counter(draw(seed).verdict for seed in SEEDS)
    assert verdicts["works"] >= 12
    assert verdicts["refused"] >= 8
    assert verdicts["either"] >= 3


@pytest.mark.usefixtures("project")
def test_another_weight_and_another_start_are_found() -> None:
    """A comparison passes although the conversion has changed a weight, or the prompt."""
    checkpoint = next(one for seed in SEEDS if (one := draw(seed)).verdict == "works" and one.language == "de")
    assert judge(checkpoint).fault is None
    checkpoint.language = "en"
    checkpoint.model.generation_config.lang_to_id["<|en|>"] += 1
    checkpoint.readable = False
    assert "but Transformers" in str(compare(checkpoint, BASELINE))
    tensors = load_file(BASELINE / "model.safetensors")
    tensors["model.encoder.layers.0.fc1.bias"] += 0.1
    save_file(tensors, BASELINE / "model.safetensors", {"format": "pt"})
    assert "logits differ" in str(compare(checkpoint, BASELINE))
