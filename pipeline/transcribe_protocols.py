"""Transcribe the corpus with fp32 under other decoding protocols: with and without suppression, in fewer tokens.

Published error rates of one checkpoint differ by points (arXiv 2511.08093 reports 11.88 % on test-other for
Whisper-small, its model card 7.63 %). What protocols differ in, and papers leave out, is whether tokens for sounds that
are no speech may be written, and how many tokens a loop may go on for. `score_protocols` tells what moves the rate.
"""

import argparse
import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import errors, files, params
from pipeline.params import BASELINE, Decoding

if TYPE_CHECKING:
    from tqdm import tqdm

    from pipeline.decoding import Vocabulary
    from pipeline.whisper import Whisper

Line = dict[str, Any]

TRANSCRIPTS = Path("reports/protocols.jsonl")

TOKENS = (444, 225)
"""All positions that a prompt of four tokens leaves, and about half of them, which examples of Transformers set."""


def main() -> None:
    """Write reports/protocols.jsonl, sorted by split, id and protocol."""
    settings = params.read()

    from tqdm import tqdm

    from pipeline import checkpoint, corpus, decoding, machine, whisper
    from pipeline.pieces import Pieces, name

    folder = Path("models") / BASELINE
    device = machine.device(settings.device, "none")
    own = settings.decoding
    vocabularies = {
        suppress: decoding.Vocabulary.read(folder, own.language, own.task, suppress) for suppress in (True, False)
    }
    pieces = Pieces(TRANSCRIPTS, checkpoint.verify(folder), device, own)
    model = whisper.load(folder, device)
    names = {
        (suppress, shard): f"{name(shard)}-{suppress}"
        for suppress in vocabularies
        for shard in corpus.shards(corpus.CORPUS)
    }
    kept = corpus.count(shard for (_, shard), piece in names.items() if piece in pieces)
    table: list[Line] = []
    with tqdm(
        total=corpus.count(shard for _, shard in names), initial=kept, unit="utt", desc="protocols", disable=None
    ) as progress:
        for (suppress, shard), piece in names.items():
            found = partial(lines, shard, suppress, model, vocabularies[suppress], own, progress)
            table += pieces.once(piece, found)
    order = ("split", "id", "suppress_non_speech", "max_new_tokens")
    table.sort(key=lambda line: [line[key] for key in order])
    files.write_text(TRANSCRIPTS, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in table))
    pieces.remove()


def lines(
    shard: Path, suppress: bool, model: "Whisper", vocabulary: "Vocabulary", own: Decoding, progress: "tqdm[Any]"
) -> list[Line]:
    """Return a transcript line per utterance of a shard and limit of tokens, in no order.

    Greedy decoding to fewer tokens is the beginning of greedy decoding to more: one pass serves all limits.
    """
    from pipeline import corpus, decoding

    limits = sorted({own.max_new_tokens, *TOKENS})
    table = []
    for batch in decoding.batches(corpus.read_shard(shard), own.batch_size):
        found = decoding.tokens(model, batch, vocabulary, limits[-1])
        table += [
            {
                "id": utterance.id,
                "split": utterance.split,
                "speaker": utterance.speaker,
                "duration": utterance.duration,
                "suppress_non_speech": suppress,
                "max_new_tokens": limit,
                "text": utterance.text,
                "pred_text": decoding.joined((window[:limit] for window in windows), vocabulary),
            }
            for utterance, windows in zip(batch, found, strict=True)
            for limit in limits
        ]
        progress.update(len(batch))
    return table


if __name__ == "__main__":
    argparse.ArgumentParser(
        prog="python -m pipeline.transcribe_protocols", description=(__doc__ or "").splitlines()[0]
    ).parse_args()
    with errors.stage("transcribe_protocols"):
        main()
