"""Transcribe the corpus with one variant's checkpoint, loaded from disk."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.core import files, machine, manifest, pieces, stage
from pipeline.core.errors import naming
from pipeline.speech import corpus

if TYPE_CHECKING:
    from tqdm import tqdm

    from pipeline.core import params
    from pipeline.whisper.inference.decoding import Engine, Vocabulary
    from pipeline.whisper.model.network import Whisper

PERCENTILES = (50, 90, 95)


@dataclass(frozen=True)
class Transcriber:
    """A loaded checkpoint, and how it decodes."""

    variant: str
    model: "Whisper | Engine"
    vocabulary: "Vocabulary"
    settings: "params.Decoding"
    device: str

    def warm_up(self, utterance: corpus.Utterance) -> None:
        """Begin to transcribe: kernels are chosen and packed at first use."""
        from pipeline.whisper.inference import decoding

        with naming(self.variant):
            decoding.warm_up(self.model, utterance, self.vocabulary)

    def timed(self, batch: Sequence[corpus.Utterance]) -> tuple[list[dict[str, str]], float]:
        """Return what a transcript says of each utterance, and the seconds for all: with features and the GPU's work.

        Raises UserError where the model's logits are not numbers.
        """
        from pipeline.whisper.inference import decoding

        how = self.settings
        machine.synchronize(self.device)
        started = time.perf_counter()
        with naming(self.variant):
            heard = decoding.transcribe(self.model, batch, self.vocabulary, how.max_new_tokens, how.batch_size)
        lines = [each.line(self.vocabulary) for each in heard]
        machine.synchronize(self.device)
        return lines, time.perf_counter() - started


def main(variant: str) -> None:
    """Write reports/transcripts/<variant>.jsonl, the same on every run, and reports/timings/<variant>.json."""
    from pipeline.core import params

    settings = params.read()
    settings.variant(variant)
    how = settings.decoding

    import torch

    from pipeline import backends
    from pipeline.whisper.inference import decoding

    folder, output = Path("models") / variant, Path(f"reports/transcripts/{variant}.jsonl")
    checkpoint = manifest.verify(folder)
    name = checkpoint["variant"]["backend"]
    device = machine.device(settings.device, name, backends.get(name).DEVICES)
    vocabulary = decoding.Vocabulary.read(folder, how.language, how.task, how.suppress_non_speech)
    shards = {corpus.name(shard): shard for shard in corpus.shards(corpus.CORPUS)}
    decided = {"checkpoint": checkpoint, "decoding": vars(how), "latency": vars(settings.latency)}
    kept = pieces.Pieces(output, pieces.key("transcribe", name, device, shards.values(), **decided))
    torch.manual_seed(how.seed)
    started = time.perf_counter()
    model = backends.load(name, folder, device)
    loaded = time.perf_counter() - started
    transcriber = Transcriber(variant, model, vocabulary, how, device)

    transcriber.warm_up(*corpus.some(corpus.CORPUS, 1))
    alone: dict[str, Any] = kept.once(
        "alone",
        lambda: {
            "load_s": round(loaded, 3),
            "latency": latency(transcriber, settings.latency),
            "memory": machine.peak_memory(device),  # before batches need more
        },
    )
    sizes = {shard: corpus.count(path) for shard, path in shards.items()}
    done = kept.each(variant, sizes, lambda shard, progress: transcribe(shards[shard], transcriber, progress))

    rows = sorted((row for piece in done for row in piece["rows"]), key=lambda row: (row["split"], row["id"]))
    audio, spent = (sum(piece[key] for piece in done) for key in ("audio_s", "transcribe_s"))
    files.write_json_lines(output, rows)
    files.write_json(
        Path(f"reports/timings/{variant}.json"),
        {
            "device": device,
            "batch_size": how.batch_size,
            "split_utterances": corpus.split_utterances(corpus.CORPUS),
            "conversions": corpus.conversions(corpus.CORPUS),
            "audio_s": round(audio, 3),
            "load_s": alone["load_s"],
            "transcribe_s": round(spent, 3),
            "rtfx": round(audio / spent, 2),
            "latency": summary(alone["latency"], {str(row["id"]): str(row["pred_text"]) for row in rows})
            | {"threads": settings.latency.threads},
            **alone["memory"],
            **{
                f"pass_{key}": None if value is None else max(piece["memory"][key] for piece in done)
                for key, value in alone["memory"].items()
            },
            "kernels": getattr(model, "kernels", torch.backends.cpu.get_cpu_capability() if device == "cpu" else None),
            **machine.describe(device),
            "checkpoint": {key: checkpoint[key] for key in ("variant", "calibration", "bytes", "bits_per_weight")},
        },
    )
    kept.finish()
    print(f"{variant}: {len(rows):,} utterances, RTFx {audio / spent:.1f} on {device}")


def latency(transcriber: Transcriber, settings: "params.Latency") -> list[dict[str, Any]]:
    """Transcribe utterances one at a time; return id, text and seconds of each, features included.

    At least one, and none that would end after `seconds` if it took as long as the one before.
    Where it changes the number of threads, a warm-up utterance runs first: that may repack kernels.
    """
    import torch
    from tqdm import tqdm

    utterances = corpus.some(corpus.CORPUS, settings.utterances)
    single: list[dict[str, Any]] = []
    threads = torch.get_num_threads()
    try:
        if settings.threads != threads:
            torch.set_num_threads(settings.threads)
            transcriber.warm_up(utterances[-1])
        end, spent = time.perf_counter() + settings.seconds, 0.0
        for utterance in tqdm(utterances, unit="utt", desc=f"{transcriber.variant}, one at a time", disable=None):
            if single and time.perf_counter() + spent > end:
                break
            (line,), spent = transcriber.timed([utterance])
            single.append({"id": utterance.id, "text": line["pred_text"], "seconds": spent})
    finally:
        torch.set_num_threads(threads)
    return single


def summary(single: Sequence[dict[str, Any]], texts: dict[str, str]) -> dict[str, Any]:
    """Return the percentiles in ms, of how many utterances, and how many of them have another text in a batch."""
    import numpy as np

    seconds = [one["seconds"] for one in single]
    return {
        **{f"p{p}_ms": round(1000 * float(np.percentile(seconds, p)), 1) for p in PERCENTILES},
        "utterances": len(single),
        "other_texts": sum(one["text"] != texts[one["id"]] for one in single),
    }


def transcribe(shard: Path, transcriber: Transcriber, progress: "tqdm[Any]") -> dict[str, Any]:
    """Return a shard's transcript lines, seconds of audio and of work, and the process's peak memory so far."""
    from pipeline.whisper.inference import decoding

    rows: list[dict[str, str | float]] = []
    audio = spent = 0.0
    for batch in decoding.batches(corpus.read_shard(shard), transcriber.settings.batch_size):
        lines, seconds = transcriber.timed(batch)
        spent += seconds
        audio += sum(utterance.duration for utterance in batch)
        rows += [
            {**utterance.identity(), "text": utterance.text, **line}
            for utterance, line in zip(batch, lines, strict=True)
        ]
        progress.update(len(batch))
        progress.set_postfix_str(f"RTFx {audio / spent:.1f}")
    return {"rows": rows, "audio_s": audio, "transcribe_s": spent, "memory": machine.peak_memory(transcriber.device)}


if __name__ == "__main__":
    stage.run(main)
