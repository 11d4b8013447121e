"""Write down what one variant's checkpoint heard, and time it, loaded from disk, on some of the corpus."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.core import files, machine, manifest, stage
from pipeline.core.errors import UserError, naming
from pipeline.speech import corpus

if TYPE_CHECKING:
    from pipeline.core import params
    from pipeline.whisper.inference.decoding import Engine, Vocabulary
    from pipeline.whisper.model.network import Whisper

PERCENTILES = (50, 90, 95)

Texts = dict[tuple[str, str], str]
"""The transcript's, by split and id."""


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

    folder = Path("models") / variant
    checkpoint = manifest.verify(folder)
    name = checkpoint["variant"]["backend"]
    device = machine.device(settings.device, name, backends.get(name).DEVICES)
    vocabulary = decoding.Vocabulary.read(folder, how.language, how.task, how.suppress_non_speech)
    rows = lines(decoding.HEARD / f"{variant}.jsonl", decoding.source(checkpoint, how), vocabulary)
    texts = {(str(row["split"]), str(row["id"])): str(row["pred_text"]) for row in rows}
    torch.manual_seed(how.seed)
    started = time.perf_counter()
    model = backends.load(name, folder, device)
    loaded = time.perf_counter() - started
    transcriber = Transcriber(variant, model, vocabulary, how, device)
    transcriber.warm_up(*corpus.some(corpus.CORPUS, 1))
    alone = latency(transcriber, settings.latency, texts)
    before = machine.peak_memory(device)  # batches need more
    number = alone["utterances"]
    if number == settings.latency.utterances:  # in time, so that there is time for whole batches
        number += -number % how.batch_size
    together = throughput(transcriber, number, texts)
    after = {f"pass_{key}": value for key, value in machine.peak_memory(device).items()}
    files.write_json_lines(Path(f"reports/transcripts/{variant}.jsonl"), rows)
    files.write_json(
        Path(f"reports/timings/{variant}.json"),
        {
            "device": device,
            "batch_size": how.batch_size,
            "split_utterances": corpus.split_utterances(corpus.CORPUS),
            "conversions": corpus.conversions(corpus.CORPUS),
            "load_s": round(loaded, 3),
            "latency": alone,
            **together,
            **before,
            **after,
            "kernels": getattr(model, "kernels", torch.backends.cpu.get_cpu_capability() if device == "cpu" else None),
            **machine.describe(device),
            "checkpoint": {key: checkpoint[key] for key in ("variant", "calibration", "bytes", "bits_per_weight")},
        },
    )
    speed = f"{alone['p50_ms']:.0f} ms one at a time, RTFx {together['rtfx']:.1f} in batches"
    print(f"{variant}: {len(rows):,} utterances; {speed} on {device}")


def lines(path: Path, source: Mapping[str, Any], vocabulary: "Vocabulary") -> list[dict[str, str | float]]:
    """Return the transcript of what `agree` has heard, sorted by split and id; raise UserError where it is none.

    `source` is its first line: of the checkpoint that is here, and how it is decoded now.
    """
    from pipeline.whisper.inference import decoding

    again = f"run 'python -m pipeline.agree {path.stem}'"
    try:
        first, *others = map(json.loads, path.read_text(encoding="utf-8").strip().split("\n"))
        heard = {(row["split"], row["id"]): decoding.Heard(row["windows"], row["language"]) for row in others}
    except FileNotFoundError:
        raise UserError(f"{path} is not here; {again} first") from None
    except (LookupError, TypeError, ValueError):
        raise UserError(f"{path} is not what 'agree' writes; {again} again") from None
    if first != source:
        raise UserError(f"{path} is of another checkpoint, or was decoded in another way; {again} again")
    rows = []
    for utterance in corpus.read(corpus.CORPUS):
        found = heard.pop((utterance.split, utterance.id), None)
        if found is None:
            raise UserError(f"{path} lacks utterance {utterance.id!r} of split {utterance.split!r}; {again} again")
        rows.append({**utterance.identity(), "text": utterance.text, **found.line(vocabulary)})
    if heard:
        split, name = next(iter(heard))
        raise UserError(f"{path} has utterance {name!r} of split {split!r}, which is not in the corpus; {again} again")
    return sorted(rows, key=lambda row: (row["split"], row["id"]))


def latency(transcriber: Transcriber, settings: "params.Latency", texts: Texts) -> dict[str, Any]:
    """Transcribe utterances one at a time; return percentiles of the time in ms, features included.

    And of how many utterances, how many of them have another text than in `texts`, and with how many threads. At least
    one, and none that would end after `seconds` if it took as long as the one before. Where it changes the number of
    threads, a warm-up utterance runs first: that may repack kernels.
    """
    import numpy as np
    import torch
    from tqdm import tqdm

    utterances = corpus.some(corpus.CORPUS, settings.utterances)
    seconds: list[float] = []
    others = 0
    threads = torch.get_num_threads()
    try:
        if settings.threads != threads:
            torch.set_num_threads(settings.threads)
            transcriber.warm_up(utterances[-1])
        end, spent = time.perf_counter() + settings.seconds, 0.0
        for utterance in tqdm(utterances, unit="utt", desc=f"{transcriber.variant}, one at a time", disable=None):
            if seconds and time.perf_counter() + spent > end:
                break
            (line,), spent = transcriber.timed([utterance])
            seconds.append(spent)
            others += line["pred_text"] != texts[utterance.split, utterance.id]
    finally:
        torch.set_num_threads(threads)
    percentiles = {f"p{p}_ms": round(1000 * float(np.percentile(seconds, p)), 1) for p in PERCENTILES}
    return percentiles | {"utterances": len(seconds), "other_texts": others, "threads": settings.threads}


def throughput(transcriber: Transcriber, number: int, texts: Texts) -> dict[str, Any]:
    """Transcribe so many utterances in batches; return seconds of audio and of work, and their ratio.

    And of how many utterances, and how many of them have another text than in `texts`.
    """
    from tqdm import tqdm

    from pipeline.whisper.inference import decoding

    utterances = corpus.some(corpus.CORPUS, number)
    audio = spent = 0.0
    others = 0
    with tqdm(total=len(utterances), unit="utt", desc=f"{transcriber.variant}, in batches", disable=None) as progress:
        for batch in decoding.batches(utterances, transcriber.settings.batch_size):
            lines, seconds = transcriber.timed(batch)
            spent += seconds
            audio += sum(utterance.duration for utterance in batch)
            for utterance, line in zip(batch, lines, strict=True):
                others += line["pred_text"] != texts[utterance.split, utterance.id]
            progress.update(len(batch))
    return {
        "audio_s": round(audio, 3),
        "transcribe_s": round(spent, 3),
        "rtfx": round(audio / spent, 2),
        "pass_utterances": len(utterances),
        "pass_other_texts": others,
    }


if __name__ == "__main__":
    stage.run(main)
