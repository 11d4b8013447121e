"""Transcribe the corpus with fp32 for agree: its tokens, and the states that give their probabilities."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.core import files, machine, manifest, pieces, stage
from pipeline.speech import corpus

if TYPE_CHECKING:
    from tqdm import tqdm

    from pipeline.core.params import Decoding
    from pipeline.whisper.agreement import Window
    from pipeline.whisper.inference.decoding import Vocabulary
    from pipeline.whisper.model.network import Whisper

Sequences = dict[str, list[list[int]]]
"""By utterance, of each of its windows: the prompt, the tokens and, unless there were too many, the end."""


def main() -> None:
    """Write data/reference/, a file for each shard of the corpus."""
    from tqdm import tqdm

    from pipeline.core import params

    settings = params.read()
    how = settings.decoding

    from pipeline import backends
    from pipeline.whisper import agreement
    from pipeline.whisper.inference import decoding
    from pipeline.whisper.model import weights

    folder = Path("models") / params.BASELINE
    decided = {"checkpoint": manifest.verify(folder), "decoding": vars(how)}
    device = machine.device(settings.device, "none", backends.get("none").DEVICES)
    vocabulary = decoding.Vocabulary.read(folder, how.language, how.task, how.suppress_non_speech)
    shards = {corpus.name(shard): shard for shard in corpus.shards(corpus.CORPUS)}
    key = pieces.key("reference", "none", device, shards.values(), **decided)
    kept = pieces.Pieces(agreement.REFERENCE, key)
    model = weights.load(folder, device)
    sizes = {shard: corpus.count(path) for shard, path in shards.items()}
    heard = kept.each("reference", sizes, lambda shard, progress: hear(shards[shard], model, vocabulary, how, progress))
    total = sum(sizes.values())
    with (
        files.aside(agreement.REFERENCE) as partial,
        tqdm(total=total, unit="utt", desc="reference's states", disable=None) as progress,
    ):
        partial.mkdir()
        places = sum(
            agreement.write(
                partial / file.name,
                decided["checkpoint"]["files"]["model.safetensors"],
                shard,
                vocabulary,
                windows(shard, model, said, len(vocabulary.prompt), progress),
            )
            for file, shard, said in zip(map(agreement.file, shards), shards.values(), heard, strict=True)
        )
    kept.finish()
    print(f"{agreement.REFERENCE}: {places:,} tokens of {total:,} utterances")


def hear(shard: Path, model: "Whisper", vocabulary: "Vocabulary", how: "Decoding", progress: "tqdm[Any]") -> Sequences:
    """Return what the model writes of a shard's utterances."""
    from pipeline.whisper.inference import decoding

    found: Sequences = {}
    most = decoding.most(model, vocabulary, how.max_new_tokens)
    for batch in decoding.batches(corpus.read_shard(shard), how.batch_size):
        heard = decoding.transcribe(model, batch, vocabulary, how.max_new_tokens, how.batch_size)
        for utterance, each in zip(batch, heard, strict=True):
            (prompt,) = vocabulary.prompts(1, [] if each.language is None else [each.language])
            found[utterance.id] = [
                [*prompt, *tokens, *[vocabulary.end] * (len(tokens) < most)] for tokens in each.windows
            ]
        progress.update(len(batch))
    return found


def windows(shard: Path, model: "Whisper", said: Sequences, prompt: int, progress: "tqdm[Any]") -> "Iterator[Window]":
    """Yield what the model wrote in each window of a shard, and its states: of one pass over all tokens, as `agree`'s.

    Those of decoding, token by token and in a batch, differ in their last digits.
    """
    from pipeline.whisper import agreement
    from pipeline.whisper.inference import decoding

    for utterance in corpus.read_shard(shard):
        for features, tokens in zip(decoding.windows(model, utterance), said[utterance.id], strict=True):
            states = agreement.states(model, features, tokens, len(tokens) - prompt)
            yield agreement.Window(utterance.id, tokens, states)
        progress.update()


if __name__ == "__main__":
    stage.run(main)
