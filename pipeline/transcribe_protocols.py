"""Transcribe the corpus with fp32 under other decoding protocols: with and without suppression, in fewer tokens.

Published error rates of one checkpoint differ by points (arXiv 2511.08093 reports 11.88 % on test-other for
Whisper-small, its model card 7.63 %). What protocols differ in, and papers leave out, is whether tokens for sounds that
are no speech may be written, and how many tokens a loop may go on for. `score_protocols` tells what moves the rate.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline import errors, files, params
from pipeline.params import BASELINE

TRANSCRIPTS = Path("reports/protocols.jsonl")

TOKENS = (444, 225)
"""All positions that a prompt of four tokens leaves, and about half of them, which examples of Transformers set."""


def lines(settings: params.Params) -> Iterator[dict[str, Any]]:
    """Yield a transcript line per utterance and protocol, in no order.

    Greedy decoding to fewer tokens is the beginning of greedy decoding to more: one pass serves both limits.
    """
    from tqdm import tqdm

    from pipeline import checkpoint, corpus, decoding, machine, whisper

    folder = Path("models") / BASELINE
    checkpoint.verify(folder)
    model = whisper.load(folder, machine.device(settings.device, "none"))
    own = settings.decoding
    limits = sorted({own.max_new_tokens, *TOKENS})
    with tqdm(total=2 * corpus.count(corpus.CORPUS), unit="utt", desc="protocols", disable=None) as progress:
        for suppress in (True, False):
            vocabulary = decoding.Vocabulary.read(folder, own.language, own.task, suppress)
            for shard in corpus.shards(corpus.CORPUS):
                for batch in decoding.batches(corpus.read_shard(shard), own.batch_size):
                    found = decoding.tokens(model, batch, vocabulary, limits[-1])
                    for utterance, windows in zip(batch, found, strict=True):
                        for limit in limits:
                            yield {
                                "id": utterance.id,
                                "split": utterance.split,
                                "speaker": utterance.speaker,
                                "duration": utterance.duration,
                                "suppress_non_speech": suppress,
                                "max_new_tokens": limit,
                                "text": utterance.text,
                                "pred_text": decoding.joined((window[:limit] for window in windows), vocabulary),
                            }
                    progress.update(len(batch))


def main() -> None:
    """Write reports/protocols.jsonl, sorted by split, id and protocol."""
    order = ("split", "id", "suppress_non_speech", "max_new_tokens")
    table = sorted(lines(params.read()), key=lambda line: [line[key] for key in order])
    files.write_text(TRANSCRIPTS, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in table))


if __name__ == "__main__":
    argparse.ArgumentParser(
        prog="python -m pipeline.transcribe_protocols", description=(__doc__ or "").splitlines()[0]
    ).parse_args()
    with errors.stage("transcribe_protocols"):
        main()
