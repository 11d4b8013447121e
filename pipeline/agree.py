"""Hear the corpus with one variant's checkpoint: what it writes, and how far its distributions are from fp32's.

fp32's tokens are forced through it, which tells both but for what it writes after a token that is not fp32's.
"""

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

    from pipeline.core.params import Decoding
    from pipeline.whisper.agreement import Listener
    from pipeline.whisper.model.network import Whisper

Row = dict[str, Any]


def main(variant: str) -> None:
    """Write data/heard/<variant>.jsonl and reports/agreement/<variant>.json, the same on every run."""
    from pipeline.core import params

    settings = params.read()
    settings.variant(variant)
    how = settings.decoding

    from pipeline import backends
    from pipeline.whisper import agreement
    from pipeline.whisper.inference import decoding

    folder, fp32, output = Path("models") / variant, Path("models") / params.BASELINE, file(variant)
    shards = {corpus.name(shard): shard for shard in corpus.shards(corpus.CORPUS)}
    references = {name: agreement.file(name) for name in shards}
    decided: Row = {"checkpoint": manifest.verify(folder), "fp32": manifest.verify(fp32)}
    for shard, path in shards.items():
        agreement.check(references[shard], decided["fp32"]["files"]["model.safetensors"], path)
    made = decided["checkpoint"]["variant"]
    name = made["backend"]
    device = machine.device(settings.device, name, backends.get(name).DEVICES)
    plain = dequantizes(settings.kernels, name, made["activations"])
    decided |= {"decoding": decoding.rules(how), "dequantized": plain}
    kept = pieces.Pieces(output, pieces.key("agree", name, device, [*shards.values(), *references.values()], **decided))
    listener = listen(folder, made, how, plain, agreement.head(fp32, device))

    def make(shard: str, progress: "tqdm[Any]") -> Row:
        return agree(variant, listener, shards[shard], references[shard], progress)

    done = kept.each(variant, {shard: corpus.count(path) for shard, path in shards.items()}, make)
    rows = sorted((row for piece in done for row in piece["rows"]), key=lambda row: (row["split"], row["id"]))
    splits = {
        split: summary(list(of), [kl for piece in done if piece["split"] == split for kl in piece["kl"]])
        for split, of in itertools.groupby(rows, key=lambda row: row["split"])
    }
    heard = [{key: row[key] for key in ("split", "id", "windows", "language")} for row in rows]
    files.write_json_lines(decoding.HEARD / f"{variant}.jsonl", [decoding.source(decided["checkpoint"], how), *heard])
    found = {"variant": variant, "dequantized": plain, "splits": splits}
    sums = [{key: row[key] for key in row if key not in ("windows", "language")} for row in rows]
    files.write_json(output, found | {"utterances": [rounded(row) for row in sums]})
    kept.finish()
    for split, rates in splits.items():
        flips = f"{rates['flips']:.2f} % of {rates['tokens']:,} tokens flip"
        print(f"{variant}, {split}: KL {rates['kl']:.6f} a token, {flips}")


def listen(folder: Path, made: Row, how: "Decoding", plain: bool, head: "Tensor") -> "Listener":
    """Load a checkpoint, `made` as its variant says, to be held against fp32, whose output head is given.

    On the head's device; `plain`: as its weights' values, in float32.
    """
    from pipeline import backends
    from pipeline.whisper import agreement
    from pipeline.whisper.inference import decoding

    model = (dequantized if plain else backends.load)(made["backend"], folder, str(head.device))
    vocabulary = decoding.Vocabulary.read(folder, how.language, how.task, how.suppress_non_speech)
    limit = decoding.most(model, vocabulary, how.max_new_tokens)
    # As decoding does it: a scale of dynamic activations may span a call, and what kernels for one row and for many
    # round otherwise tips an activation to its next code.
    return agreement.Listener(model, head, vocabulary, limit, stepwise=made["activations"] != "none")


def dequantizes(kernels: str, name: str, activations: str) -> bool:
    """Tell whether a variant of this backend is heard as its weights' values: where it quantizes nothing else."""
    from pipeline import backends

    return kernels == "dequantized" and activations == "none" and not backends.runtime(backends.get(name))


def dequantized(name: str, folder: Path, device: str) -> "Whisper":
    """Read a checkpoint of a backend, which quantizes weights alone, as what its weights stand for: in float32."""
    import torch

    from pipeline import backends
    from pipeline.whisper.model import weights

    library = backends.get(name)
    model = library.load(folder, device)
    tensors = {}
    for key in weights.skeleton(folder).state_dict():
        place, _, leaf = key.rpartition(".")
        module = model.get_submodule(place)
        value = getattr(module, leaf, None)
        if type(value) not in (torch.Tensor, torch.nn.Parameter):
            assert isinstance(library, backends.Dequantizing)
            value = library.dequantize(module)
        assert isinstance(value, torch.Tensor)
        tensors[key] = value.detach().float()
    return weights.filled(folder, tensors)


def file(variant: str) -> Path:
    """Return where the agreement of a variant with fp32 is kept."""
    return Path(f"reports/agreement/{variant}.json")


def agree(variant: str, listener: "Listener", shard: Path, reference: Path, progress: "tqdm[Any]") -> Row:
    """Return the split of a shard, of each utterance sums and what was heard, and the KL divergence of each token.

    Raises UserError where the model's logits are not numbers.
    """
    from pipeline.whisper import agreement

    head = listener.head
    device = str(head.device)
    barred = agreement.barred(reference, len(head), device)
    windows = itertools.groupby(agreement.read(reference, head.shape[1], device), key=attrgetter("id"))
    rows: list[Row] = []
    kls: list[float] = []
    for utterance, (_, said) in zip(corpus.read_shard(shard), windows, strict=True):
        with naming(variant):
            each, heard = listener.hear(utterance, said, barred)
        kl, flips, log_likelihood = each.sum(dim=0).tolist()
        row = {"id": utterance.id, "split": utterance.split, "speaker": utterance.speaker, "tokens": len(each)}
        rows.append(row | {"kl": kl, "flips": int(flips), "log_likelihood": log_likelihood, **vars(heard)})
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
