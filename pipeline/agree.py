"""Force fp32's tokens through one variant's checkpoint: how far its distributions are from fp32's."""

import itertools
from collections.abc import Sequence
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.core import files, machine, manifest, pieces, stage
from pipeline.core.errors import naming
from pipeline.speech import corpus

if TYPE_CHECKING:
    from torch import Tensor
    from tqdm import tqdm

    from pipeline.whisper import agreement
    from pipeline.whisper.inference.decoding import Engine
    from pipeline.whisper.inference.mel import Samples
    from pipeline.whisper.model.network import Whisper

Row = dict[str, Any]


def main(variant: str) -> None:
    """Write reports/agreement/<variant>.json, the same on every run."""
    from pipeline.core import params

    settings = params.read()
    settings.variant(variant)

    from pipeline import backends
    from pipeline.whisper import agreement

    folder, fp32, output = Path("models") / variant, Path("models") / params.BASELINE, file(variant)
    shards = {corpus.name(shard): shard for shard in corpus.shards(corpus.CORPUS)}
    references = {name: agreement.file(name) for name in shards}
    decided = {"checkpoint": manifest.verify(folder), "fp32": manifest.verify(fp32)}
    for shard, path in shards.items():
        agreement.check(references[shard], decided["fp32"]["files"]["model.safetensors"], path)
    name = decided["checkpoint"]["variant"]["backend"]
    device = machine.device(settings.device, name, backends.get(name).DEVICES)
    kept = pieces.Pieces(output, pieces.key("agree", name, device, [*shards.values(), *references.values()], **decided))
    model, head = backends.load(name, folder, device), agreement.head(fp32, device)
    # A scale of dynamic activations may span a call: of a token, as decoding makes it, or of a whole text.
    stepwise = decided["checkpoint"]["variant"]["activations"] == "dynamic"

    def make(shard: str, progress: "tqdm[Any]") -> Row:
        return agree(variant, model, head, shards[shard], references[shard], stepwise, progress)

    done = kept.each(variant, {shard: corpus.count(path) for shard, path in shards.items()}, make)
    rows = sorted((row for piece in done for row in piece["rows"]), key=lambda row: (row["split"], row["id"]))
    splits = {
        split: summary(list(of), [kl for piece in done if piece["split"] == split for kl in piece["kl"]])
        for split, of in itertools.groupby(rows, key=lambda row: row["split"])
    }
    found = {"variant": variant, "splits": splits, "utterances": [rounded(row) for row in rows]}
    files.write_json(output, found)
    kept.finish()
    for split, rates in splits.items():
        flips = f"{rates['flips']:.2f} % of {rates['tokens']:,} tokens flip"
        print(f"{variant}, {split}: KL {rates['kl']:.6f} a token, {flips}")


def file(variant: str) -> Path:
    """Return where the agreement of a variant with fp32 is kept."""
    return Path(f"reports/agreement/{variant}.json")


def agree(
    variant: str,
    model: "Whisper | Engine",
    head: "Tensor",
    shard: Path,
    reference: Path,
    stepwise: bool,
    progress: "tqdm[Any]",
) -> Row:
    """Return the split of a shard, the sums of each of its utterances, and the KL divergence of each token.

    Raises UserError where the model's logits are not numbers.
    """
    import torch

    from pipeline.whisper import agreement
    from pipeline.whisper.inference import decoding
    from pipeline.whisper.model.network import Whisper

    def compare(sound: "Samples", window: "agreement.Window") -> "Tensor":
        if isinstance(model, Whisper):
            return agreement.compare(model, decoding.features(model, [sound]), window, head, barred, stepwise)
        return agreement.compare_engine(model, sound, window, head, barred)

    device = str(head.device)
    barred = agreement.barred(reference, len(head), device)
    windows = itertools.groupby(agreement.read(reference, head.shape[1], device), key=attrgetter("id"))
    rows: list[Row] = []
    kls: list[float] = []
    for utterance, (_, said) in zip(corpus.read_shard(shard), windows, strict=True):
        with naming(variant):
            each = torch.cat(
                [compare(sound, window) for sound, window in zip(decoding.sounds(model, utterance), said, strict=True)]
            )
        kl, flips, log_likelihood = each.sum(dim=0).tolist()
        row = {"id": utterance.id, "split": utterance.split, "speaker": utterance.speaker, "tokens": len(each)}
        rows.append(row | {"kl": kl, "flips": int(flips), "log_likelihood": log_likelihood})
        kls += each[:, 0].tolist()
        progress.update()
    return {"split": rows[0]["split"], "rows": rows, "kl": kls}


def summary(rows: Sequence[Row], kls: Sequence[float]) -> Row:
    """Return a split's tokens, the mean of their KL divergences and the 99th percentile, flips in per cent (pure).

    And the mean change of log-likelihood, as `tables` describes the columns.
    """
    import numpy as np

    tokens, kl, flips, change = (sum(row[key] for row in rows) for key in ("tokens", "kl", "flips", "log_likelihood"))
    p99 = float(np.percentile(kls, 99))
    rates = {"kl": kl / tokens, "kl_p99": p99, "flips": 100 * flips / tokens, "log_likelihood": change / tokens}
    return {"tokens": tokens, **rounded(rates)}


def rounded(row: Row) -> Row:
    """Round every float to the digits that two processes agree on."""
    return {key: round(value, 6) + 0.0 if isinstance(value, float) else value for key, value in row.items()}


if __name__ == "__main__":
    stage.run(main)
