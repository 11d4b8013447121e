"""Transcribe the corpus with one variant's checkpoint, loaded from disk.

Usage: python -m pipeline.transcribe VARIANT
"""

import argparse
import json
import time
from pathlib import Path

from pipeline import errors, files, params
from pipeline.corpus import Utterance


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
    vocabulary = decoding.Vocabulary.read(folder, settings.decoding.language, settings.decoding.task)
    limit = settings.decoding.max_new_tokens

    shards = corpus.shards(corpus.CORPUS)
    rows: list[dict[str, str | float]] = []
    audio = spent = 0.0
    progress = tqdm(total=corpus.count(corpus.CORPUS), unit="utt", desc=name, disable=None)
    for number, shard in enumerate(shards):
        for batch in decoding.batches(corpus.read_shard(shard), settings.decoding.batch_size):
            if number == 0 and not rows:
                decoding.texts(
                    model, batch[:1], vocabulary, limit
                )  # warm up: kernels are chosen and packed at first use
            machine.synchronize(device)
            started = time.perf_counter()
            texts = decoding.texts(model, batch, vocabulary, limit)
            machine.synchronize(device)
            spent += time.perf_counter() - started
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
            **machine.describe(device),
            "checkpoint": {key: manifest[key] for key in ("variant", "calibration", "bytes", "bits_per_weight")},
        },
    )
    print(f"{name}: {len(rows)} utterances, RTFx {audio / spent:.1f} on {device}")


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
