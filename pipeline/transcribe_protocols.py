"""Transcribe the corpus with fp32 under other decoding protocols: with and without suppression, in fewer tokens.

Published error rates of one checkpoint differ by points: 11.88 % for Whisper-small on test-other in arXiv 2511.08093,
7.63 % on its model card. Papers leave out whether non-speech tokens may be written, and how long a loop may go on.
"""

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.core import files, machine, manifest, pieces, stage
from pipeline.speech import corpus

if TYPE_CHECKING:
    from tqdm import tqdm

    from pipeline.core.params import Decoding
    from pipeline.whisper.inference.decoding import Vocabulary
    from pipeline.whisper.model.network import Whisper

Line = dict[str, Any]

TRANSCRIPTS = Path("reports/protocols.jsonl")

TOKENS = (444, 225)
"""All positions that a prompt of four tokens leaves, and about half of them, which examples of Transformers set."""


def main() -> None:
    """Write reports/protocols.jsonl, sorted by split, id and protocol."""
    from pipeline.core import params

    settings = params.read()
    own = settings.decoding

    from pipeline import backends
    from pipeline.whisper.inference import decoding
    from pipeline.whisper.model import weights

    folder = Path("models") / params.BASELINE
    decided = {"checkpoint": manifest.verify(folder), "decoding": vars(own)}
    device = machine.device(settings.device, "none", backends.get("none").DEVICES)
    vocabularies = {
        suppress: decoding.Vocabulary.read(folder, own.language, own.task, suppress) for suppress in (True, False)
    }
    shards = corpus.shards(corpus.CORPUS)
    kept = pieces.Pieces(TRANSCRIPTS, pieces.key("transcribe_protocols", "none", device, shards, **decided))
    model = weights.load(folder, device)
    passes = {f"{corpus.name(shard)}-{suppress}": (shard, suppress) for suppress in vocabularies for shard in shards}

    def make(piece: str, progress: "tqdm[Any]") -> list[Line]:
        shard, suppress = passes[piece]
        return lines(shard, suppress, model, vocabularies[suppress], own, progress)

    found = kept.each("protocols", {piece: corpus.count(shard) for piece, (shard, _) in passes.items()}, make)
    order = ("split", "id", "suppress_non_speech", "max_new_tokens")
    table = sorted(itertools.chain.from_iterable(found), key=lambda line: [line[key] for key in order])
    files.write_json_lines(TRANSCRIPTS, table)
    kept.finish()


def lines(
    shard: Path, suppress: bool, model: "Whisper", vocabulary: "Vocabulary", own: "Decoding", progress: "tqdm[Any]"
) -> list[Line]:
    """Return a transcript line per utterance of a shard and limit of tokens, in no order.

    Greedy decoding to fewer tokens is the beginning of greedy decoding to more: one pass serves all limits.
    """
    from pipeline.whisper.inference import decoding

    limits = sorted({own.max_new_tokens, *TOKENS})
    table = []
    for batch in decoding.batches(corpus.read_shard(shard), own.batch_size):
        found = decoding.transcribe(model, batch, vocabulary, limits[-1], own.batch_size)
        table += [
            {
                **utterance.identity(),
                "suppress_non_speech": suppress,
                "max_new_tokens": limit,
                "text": utterance.text,
                **heard.line(vocabulary, limit),
            }
            for utterance, heard in zip(batch, found, strict=True)
            for limit in limits
        ]
        progress.update(len(batch))
    return table


if __name__ == "__main__":
    stage.run(main)
