"""Time checkpoints on the engines that compute them, ours, CTranslate2 and whisper.cpp, and Transformers' pipeline.

All get the same prepared utterances (data/corpus) in the same batches, and give text: features and tokens are inside
the clock. They decode greedily with the same suppressed tokens, and take turns within one run, so that a drift of the
machine's speed hits all of them. Ours encodes one utterance after the other, and so does whisper.cpp; the others whole
batches, as they do when left alone. Utterances over 30 s, which each would cut in its own way, are left out.
Prints RTFx (seconds of audio a second), the time as a ratio to our fp32's, and the utterances with another text.

Usage: python -m benchmarks.engines [--rounds 3] [--utterances 48] [--batch-size 16] [--variants fp32 ct2-int8 ...]
Needs `dvc repro` of the variants' quantize stages, and data/corpus.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from pipeline import backends
from pipeline.core import files, machine, manifest, params
from pipeline.core.params import BASELINE
from pipeline.results import tables
from pipeline.speech import corpus
from pipeline.speech.corpus import Utterance
from pipeline.whisper.inference import decoding, mel

OURS = (BASELINE, "mixed-50-dynamic", "torch-int8-dynamic", "torchao-int8")
VARIANTS = (*OURS, "ct2-float32", "ct2-int8", "ggml-q8-0", "ggml-q5-1")

Engine = Callable[[Sequence[Utterance]], list[str]]


def checkpoint(variant: str, how: params.Decoding) -> Engine:
    """Load a variant, to be transcribed with as the pipeline does."""
    folder = Path("models") / variant
    model = backends.load(manifest.verify(folder)["variant"]["backend"], folder, "cpu")
    vocabulary = decoding.Vocabulary.read(folder, how.language, how.task, how.suppress_non_speech)

    def run(batch: Sequence[Utterance]) -> list[str]:
        heard = decoding.transcribe(model, batch, vocabulary, how.max_new_tokens, len(batch))
        return [each.line(vocabulary)["pred_text"] for each in heard]

    return run


def transformers(multilingual: bool) -> Engine:
    """Transformers' pipeline "automatic-speech-recognition", on fp32's checkpoint."""
    from transformers import (
        AutomaticSpeechRecognitionPipeline,
        WhisperFeatureExtractor,
        WhisperForConditionalGeneration,
        WhisperTokenizer,
    )
    from transformers.utils import logging

    logging.set_verbosity_error()
    folder = Path("models") / BASELINE
    pipe = AutomaticSpeechRecognitionPipeline(
        model=WhisperForConditionalGeneration.from_pretrained(folder).eval(),
        tokenizer=WhisperTokenizer.from_pretrained(folder),
        feature_extractor=WhisperFeatureExtractor.from_pretrained(folder),
        device=torch.device("cpu"),
    )
    forced = {"language": "en", "task": "transcribe"} if multilingual else {}

    def run(batch: Sequence[Utterance]) -> list[str]:
        sounds: Any = [{"raw": corpus.samples(one), "sampling_rate": mel.SAMPLE_RATE} for one in batch]  # typed for one
        options = {"do_sample": False, "num_beams": 1, **forced}
        return [found["text"].strip() for found in pipe(sounds, batch_size=len(batch), generate_kwargs=options)]

    return run


def main() -> None:
    """Run the engines in turns and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--utterances",
        type=int,
        default=48,
        help="drawn at random, the same ones each time; those over 30 s are dropped",
    )
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--variants", nargs="+", default=VARIANTS, help="fp32 comes first in any case")
    parser.add_argument("--out", type=Path, help="write the table as CSV too; `make study` takes reports/engines.csv")
    arguments = parser.parse_args()

    settings = params.read()
    how = settings.decoding
    drawn = corpus.some(corpus.CORPUS, arguments.utterances)
    utterances = [utterance for utterance in drawn if utterance.duration <= mel.WINDOW / mel.SAMPLE_RATE]
    seconds = sum(utterance.duration for utterance in utterances)
    batches = list(decoding.batches(utterances, arguments.batch_size))
    names = [BASELINE, *(name for name in arguments.variants if name != BASELINE)]
    engines = {name: checkpoint(name, how) for name in names}
    prompt = decoding.Vocabulary.read(Path("models") / BASELINE, how.language, how.task).prompt
    engines["transformers fp32"] = transformers(multilingual=len(prompt) > 2)
    spent: dict[str, list[float]] = {name: [] for name in engines}
    texts: dict[str, list[str]] = {}
    for engine in engines.values():
        engine(batches[-1][-1:])  # warm up
    for _ in range(arguments.rounds):
        for name, engine in engines.items():
            started = time.perf_counter()
            texts[name] = [text for batch in batches for text in engine(batch)]
            spent[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(times) for name, times in spent.items()}
    threads = torch.get_num_threads()
    print(f"{len(utterances)} utterances, {seconds:.0f} s, {threads} threads, {arguments.rounds} rounds")
    table = [
        {
            "engine": name,
            "rtfx": round(seconds / medians[name], 2),
            "time_ratio": round(medians[name] / medians[BASELINE], 3),
            "texts_differ": sum(a != b for a, b in zip(texts[name], texts[BASELINE], strict=True)),
            "utterances": len(utterances),
            "audio_s": round(seconds, 1),
            "batch_size": arguments.batch_size,
            "threads": threads,
            "rounds": arguments.rounds,
            "machine": machine.describe("cpu")["machine"],
            "model": settings.model,
        }
        for name in engines
    ]
    for row in table:
        print(
            f"{row['engine']:26}  RTFx {row['rtfx']:6.1f}  time {row['time_ratio']:5.2f} of fp32's"
            f"  {row['texts_differ']} texts differ"
        )
    if arguments.out:
        files.write_text(arguments.out, tables.to_csv(table))


if __name__ == "__main__":
    main()
