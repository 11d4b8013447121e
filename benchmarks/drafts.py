"""Check the texts of `agree`, for which fp32's text is the draft, against decoding from scratch, and time both.

Every variant hears the prepared utterances (data/corpus) one at a time, both ways in turns: by one pass over fp32's
tokens and decoding from the first that flips, and token by token from the prompt. Weights are the library's own, or
dequantized as `kernels` in params.yaml says. Prints the utterances whose tokens differ, of how many, and the draft's
time as a share.

Usage: python -m benchmarks.drafts [--utterances 140] [--variants mixed-50 hqq-int4 ...]
Needs `dvc repro reference` and the variants' quantize stages.
"""

import argparse
import itertools
import time
from collections.abc import Iterator
from operator import attrgetter
from pathlib import Path

import torch
from torch import Tensor

from pipeline import agree, backends
from pipeline.core import manifest, params
from pipeline.core.params import BASELINE
from pipeline.speech import corpus
from pipeline.speech.corpus import Utterance
from pipeline.whisper import agreement
from pipeline.whisper.agreement import Window
from pipeline.whisper.inference import decoding


def said(head: Tensor) -> Iterator[tuple[Utterance, list[Window], Tensor]]:
    """Yield the utterances, in the order of the corpus, with what fp32 wrote and the tokens that may not come."""
    for shard in corpus.shards(corpus.CORPUS):
        reference = agreement.file(corpus.name(shard))
        barred = agreement.barred(reference, len(head), "cpu")
        windows = itertools.groupby(agreement.read(reference, head.shape[1], "cpu"), key=attrgetter("id"))
        for utterance, (_, of) in zip(corpus.read_shard(shard), windows, strict=True):
            yield utterance, list(of), barred


def compare(name: str, settings: params.Params, number: int, head: Tensor) -> None:
    """Print the line of a variant."""
    folder, how = Path("models") / name, settings.decoding
    made = manifest.verify(folder)["variant"]
    plain = agree.dequantizes(settings.kernels, made["backend"], made["activations"])
    listener = agree.listen(folder, made, how, plain, head)
    others = total = 0
    spent = [0.0, 0.0]
    for utterance, windows, barred in itertools.islice(said(head), number):
        started = time.perf_counter()
        _, drafted = listener.hear(utterance, windows, barred)
        middle = time.perf_counter()
        (scratch,) = decoding.transcribe(listener.model, [utterance], listener.vocabulary, how.max_new_tokens, 1)
        spent = [spent[0] + middle - started, spent[1] + time.perf_counter() - middle]
        others += drafted != scratch
        total += 1
    print(f"{name:26} {others:3} of {total} differ   time {spent[0] / spent[1]:.2f} of decoding's", flush=True)


def main() -> None:
    """Print a line for each variant."""
    settings = params.read()
    named = [name for name, of in settings.variants.items() if not backends.runtime(backends.get(of.backend))]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.drafts", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--utterances", type=int, default=140)
    parser.add_argument("--variants", nargs="+", default=named, help="default: all but those of other runtimes")
    arguments = parser.parse_args()
    torch.set_grad_enabled(False)
    head = agreement.head(Path("models") / BASELINE, "cpu")
    for name in arguments.variants:
        compare(name, settings, arguments.utterances, head)


if __name__ == "__main__":
    main()
