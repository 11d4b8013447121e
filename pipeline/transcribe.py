"""Transcribe the corpus with one variant's checkpoint, loaded from disk.

Usage: python -m pipeline.transcribe VARIANT
"""

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline import errors, files, params
from pipeline.corpus import Utterance

if TYPE_CHECKING:
    from pipeline.decoding import Vocabulary
    from pipeline.whisper import Whisper

PERCENTILES = (50, 90, 95)


def main(name: str) -> None:
    """Write reports/transcripts/<name>.jsonl, the same on every run, and reports/timings/<name>.json, which is not."""
    settings = params.read()
    settings.variant(name)

    import torch
    from tqdm import tqdm

    from pipeline import backends, checkpoint, corpus, decoding, machine

    folder = Path("models") / name
    manifest = checkpoint.verify(folder)
    backend = manifest["variant"]["backend"]
    device = machine.device(settings.device, backend)
    torch.manual_seed(settings.decoding.seed)
    started = time.perf_counter()
    model = backends.get(backend).load(folder, device)
    loaded = time.perf_counter() - started
    vocabulary = decoding.Vocabulary.read(
        folder, settings.decoding.language, settings.decoding.task, settings.decoding.suppress_non_speech
    )
    limit = settings.decoding.max_new_tokens

    single = latency(name, model, vocabulary, limit, device, settings.latency)
    memory = machine.peak_memory(device)  # before batches need more

    rows: list[dict[str, str | float]] = []
    audio = spent = 0.0
    progress = tqdm(total=corpus.count(corpus.CORPUS), unit="utt", desc=name, disable=None)
    for shard in corpus.shards(corpus.CORPUS):
        for batch in decoding.batches(corpus.read_shard(shard), settings.decoding.batch_size):
            with stopwatch(device) as seconds:
                texts = decoding.texts(model, batch, vocabulary, limit)
            spent += seconds[0]
            audio += sum(utterance.duration for utterance in batch)
            rows += [_row(utterance, text) for utterance, text in zip(batch, texts, strict=True)]
            progress.update(len(batch))
            progress.set_postfix_str(f"RTFx {audio / spent:.1f}")
    progress.close()
    rows.sort(key=lambda row: (row["split"], row["id"]))
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    files.write_text(Path(f"reports/transcripts/{name}.jsonl"), lines)
    files.write_json(
        Path(f"reports/timings/{name}.json"),
        {
            "device": device,
            "batch_size": settings.decoding.batch_size,
            "audio_s": round(audio, 3),
            "load_s": round(loaded, 3),
            "transcribe_s": round(spent, 3),
            "rtfx": round(audio / spent, 2),
            "latency": summary(single, {str(row["id"]): str(row["pred_text"]) for row in rows})
            | {"threads": settings.latency.threads},
            **memory,
            **{f"pass_{key}": value for key, value in machine.peak_memory(device).items()},
            **machine.describe(device),
            "checkpoint": {key: manifest[key] for key in ("variant", "calibration", "bytes", "bits_per_weight")},
        },
    )
    print(f"{name}: {len(rows)} utterances, RTFx {audio / spent:.1f} on {device}")


def latency(
    name: str, model: "Whisper", vocabulary: "Vocabulary", limit: int, device: str, settings: params.Latency
) -> list[tuple[str, str, float]]:
    """Transcribe utterances one at a time; return id, text and seconds of each, features included.

    One more comes first and is not counted: kernels are chosen and packed at first use.
    """
    import torch
    from tqdm import tqdm

    from pipeline import corpus, decoding

    utterances = corpus.some(corpus.CORPUS, settings.utterances)
    single = []
    threads = torch.get_num_threads()
    torch.set_num_threads(settings.threads)
    try:
        decoding.texts(model, utterances[-1:], vocabulary, limit)
        end = time.perf_counter() + settings.seconds
        for utterance in tqdm(utterances, unit="utt", desc=f"{name}, one at a time", disable=None):
            if time.perf_counter() > end:
                break
            with stopwatch(device) as seconds:
                (text,) = decoding.texts(model, [utterance], vocabulary, limit)
            single.append((utterance.id, text, seconds[0]))
    finally:
        torch.set_num_threads(threads)
    return single


def summary(single: Sequence[tuple[str, str, float]], texts: dict[str, str]) -> dict[str, Any]:
    """Return the percentiles in ms, of how many utterances, and how many of them have another text in a batch."""
    seconds = [spent for _, _, spent in single]
    return {
        **{f"p{p}_ms": round(1000 * float(np.percentile(seconds, p)), 1) for p in PERCENTILES},
        "utterances": len(single),
        "other_texts": sum(text != texts[utterance] for utterance, text, _ in single),
    }


@contextmanager
def stopwatch(device: str) -> Iterator[list[float]]:
    """Time the block, on a GPU until it has done its work; the list given holds the seconds afterwards."""
    from pipeline import machine

    machine.synchronize(device)
    seconds: list[float] = []
    started = time.perf_counter()
    yield seconds
    machine.synchronize(device)
    seconds.append(time.perf_counter() - started)


def _row(utterance: Utterance, text: str) -> dict[str, str | float]:
    return {
        "id": utterance.id,
        "split": utterance.split,
        "speaker": utterance.speaker,
        "duration": utterance.duration,
        "text": utterance.text,
        "pred_text": text,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("variant", help="a key of `variants` in params.yaml, or 'candidate'")
    arguments = parser.parse_args()
    with errors.stage("transcribe"):
        main(arguments.variant)
