"""Show that a long recording loses nothing: utterances joined to minutes, transcribed whole, beside each alone.

Prints the WER of utterances alone, of the joinings in plain windows (as the study decodes what is over 30 s), and of
`whisper-ptq transcribe`, with its deletions, and how many bounds of utterances have a bound of a segment within a
second. `--peer` adds faster-whisper, where that is installed, on the same weights with its own windows.

Usage: python -m benchmarks.longform SPLIT [--corpus NAME] [--variant fp32] [--joinings 4] [--seconds 300]
Needs `dvc repro` of the variants' quantize stages.
"""

import argparse
import functools
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.foretell import MODELS, speech
from pipeline import backends
from pipeline.core import manifest, params, stage
from pipeline.scoring import normalizers, wer
from pipeline.speech import corpus
from pipeline.speech.corpus import Utterance
from pipeline.speech.sources import audio
from pipeline.whisper import longform
from pipeline.whisper.inference import decoding, mel

_ALL = 10**6
CLOSE = 1.0
"""Seconds within which a bound counts as found."""


def join(utterances: Sequence[Utterance], seconds: float) -> tuple[Utterance, list[Utterance]]:
    """Return a recording of utterances one after the other, of about so many seconds, and those."""
    used: list[Utterance] = []
    parts: list[NDArray[np.int16]] = []
    for utterance in utterances:
        if sum(len(part) for part in parts) > seconds * mel.SAMPLE_RATE:
            break
        used.append(utterance)
        parts.append((corpus.samples(utterance) * 2**15).round().astype(np.int16))
    sound = np.concatenate(parts)
    text = " ".join(utterance.text for utterance in used)
    return Utterance("joined", "", "", len(sound) / mel.SAMPLE_RATE, text, audio.encode(sound)), used


def near(utterances: Sequence[Utterance], segments: Sequence[longform.Segment]) -> list[bool]:
    """Tell of each start and end of an utterance whether one of a segment is close."""
    ends = np.cumsum([utterance.duration for utterance in utterances])
    starts = ends - [utterance.duration for utterance in utterances]
    pairs = (starts, [segment.start for segment in segments]), (ends, [segment.end for segment in segments])
    return [bool(np.abs(np.subtract(found, bound)).min() <= CLOSE) for bounds, found in pairs for bound in bounds]


def rate(recordings: Sequence[Utterance], texts: Sequence[str], normalize: normalizers.Normalizer) -> str:
    """Return the WER of joinings in words, with the words that were left out and put in."""
    lines = [
        recording.identity() | {"text": recording.text, "pred_text": text}
        for recording, text in zip(recordings, texts, strict=True)
    ]
    found = wer.score(lines, normalize)
    words, deleted, inserted = (sum(getattr(u, key) for u in found) for key in ("words", "deletions", "insertions"))
    errors = sum(u.errors for u in found)
    return f"WER {100 * errors / words:5.2f} %, {deleted:3} left out and {inserted:3} put in, of {words:,} words"


def peer(folder: Path, recordings: Sequence[Utterance], language: str) -> list[str]:
    """Return what faster-whisper writes: its windows, timestamps and fallbacks, greedy as ours."""
    from faster_whisper import WhisperModel  # type: ignore[import-not-found]  # not of the project's packages

    model = WhisperModel(str(folder), device="cpu", compute_type="float32", cpu_threads=torch.get_num_threads())
    texts = []
    for recording in recordings:
        segments, _ = model.transcribe(
            corpus.samples(recording), beam_size=1, language=language, condition_on_previous_text=False
        )
        texts.append(" ".join(segment.text.strip() for segment in segments))
    return texts


def main(name: str, split: str, variants: Sequence[str], joinings: int, seconds: float, beside: bool) -> None:
    """Print a line for each variant and way."""
    settings = params.read()
    how = settings.decoding
    normalize = normalizers.get(settings.scoring.normalizer)
    with tempfile.TemporaryDirectory() as temporary:
        speech(Path(temporary), settings, name, split, _ALL)
        utterances = sorted(corpus.read(Path(temporary)), key=lambda utterance: utterance.id)
        drawn = [
            join([utterances[n] for n in np.random.default_rng(seed).permutation(len(utterances))], seconds)
            for seed in range(joinings)
        ]
        recordings = [recording for recording, _ in drawn]
        for variant in variants:
            folder = MODELS / variant
            backend = manifest.verify(folder)["variant"]["backend"]
            model = backends.load(backend, folder, "cpu")
            plain, timed = (
                decoding.Vocabulary.read(folder, how.language, how.task, how.suppress_non_speech, timestamps)
                for timestamps in (False, True)
            )
            windows = functools.partial(
                decoding.transcribe,
                model,
                vocabulary=plain,
                max_new_tokens=how.max_new_tokens,
                size=how.batch_size,
            )
            alone = [" ".join(h.line(plain)["pred_text"] for u in used for h in windows([u])) for _, used in drawn]
            whole = [h.line(plain)["pred_text"] for recording in recordings for h in windows([recording])]
            heard = [
                longform.transcribe(model, each, timed, how.language, how.max_new_tokens, how.batch_size)
                for each in recordings
            ]
            texts = {"alone": alone, "plain windows": whole, "transcribe": [each.text for each in heard]}
            if beside and backend == "ct2":
                texts["faster-whisper"] = peer(folder, recordings, how.language)
            for way, said in texts.items():
                print(f"{variant:18} {way:15} {rate(recordings, said, normalize)}", flush=True)
            found = [close for (_, used), each in zip(drawn, heard, strict=True) for close in near(used, each.segments)]
            print(f"{variant:18} {sum(found)} of {len(found)} bounds within {CLOSE:g} s", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.longform", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("split", help="a split that is not scored, such as train-clean-100-texts")
    parser.add_argument("--corpus", help="a key of `corpora` in catalog.yaml; default: that of the calibration")
    parser.add_argument("--variant", action="append", help="default: fp32; may be repeated")
    parser.add_argument("--joinings", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=300, help="of a joining; default: %(default)s")
    parser.add_argument("--peer", action="store_true", help="faster-whisper, too, of variants of ct2")
    given = parser.parse_args()
    with stage.guarded("longform"):
        main(
            given.corpus or params.read().calibration.corpus,
            given.split,
            given.variant or [params.BASELINE],
            given.joinings,
            given.seconds,
            given.peer,
        )
