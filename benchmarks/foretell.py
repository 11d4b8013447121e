"""Measure how far variants are from fp32 on speech that is not scored: does it foretell what the WER will lose?

fp32 writes the text of a split of a corpus in catalog.yaml, and its tokens are forced through every checkpoint, as
`agree` does on what is scored. Writes a line for each variant, which `make study` keeps and its page holds against the
losses. Choose speech that no variant learned from.

Usage: python -m benchmarks.foretell SPLIT [--corpus NAME] [--utterances 45] [--out reports/foretold.csv]
Needs `dvc repro` of all variants' quantize stages.
"""

import argparse
import tempfile
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from pipeline import agree, prepare, reference
from pipeline.core import files, manifest, params, stage
from pipeline.core.errors import UserError, suggestion
from pipeline.core.params import BASELINE
from pipeline.results import tables
from pipeline.speech import corpus, sources
from pipeline.whisper import agreement
from pipeline.whisper.inference import decoding
from pipeline.whisper.model import weights

MODELS = Path("models")


def speech(folder: Path, settings: params.Params, name: str, split: str, number: int) -> None:
    """Prepare up to `number` utterances of a split in `folder`; leave data/raw as it was.

    Raises UserError where one of them is scored, or calibrates.
    """
    entry = settings.corpora[name]
    new = [path for path in sources.archives(name, entry, split) if not path.exists()]
    try:
        sources.download(name, entry, [split])
        chosen = prepare.choose(sources.recordings(name, entry, split), number, seed=0)
        used = [shard for heard in (corpus.CORPUS, corpus.CALIBRATION) for shard in corpus.shards(heard)]
        known = {row["id"] for shard in used for row in corpus.rows(shard, ["id"])}
        if both := sorted({recording.id for recording in chosen.recordings} & known):
            raise UserError(
                f"split {split!r} of corpus {name!r}: {both[0]!r} is scored or calibrates; name another split"
            )
        prepare.write(folder / split, name, entry, split, chosen)
    finally:
        for path in new:  # or DVC would find its folder changed
            path.unlink(missing_ok=True)


def said(folder: Path, settings: params.Params) -> list[tuple[Path, Path]]:
    """Write what fp32 says of the prepared speech in `folder`; return its shards, each with its reference."""
    how = settings.decoding
    model = weights.load(MODELS / BASELINE, "cpu")
    vocabulary = decoding.Vocabulary.read(MODELS / BASELINE, how.language, how.task, how.suppress_non_speech)
    digest = manifest.verify(MODELS / BASELINE)["files"]["model.safetensors"]
    found = []
    shards = corpus.shards(folder)
    with tqdm(total=2 * sum(map(corpus.count, shards)), unit="utt", desc="fp32", disable=None) as progress:
        for shard in shards:
            heard = reference.hear(shard, model, vocabulary, how, progress)
            windows = reference.windows(shard, model, heard, len(vocabulary.prompt), progress)
            found.append((shard, folder / f"{shard.stem}.reference"))
            agreement.write(found[-1][1], digest, shard, vocabulary, windows)
    return found


def measure(variant: str, settings: params.Params, shards: list[tuple[Path, Path]], head: Tensor) -> tables.Row:
    """Return the number of utterances and tokens, and the mean KL divergence a token, of a variant."""
    made = manifest.verify(MODELS / variant)["variant"]
    plain = agree.dequantizes(settings.kernels, made["backend"], made["activations"])
    listener = agree.listen(MODELS / variant, made, settings.decoding, plain, head)
    total = sum(corpus.count(shard) for shard, _ in shards)
    with tqdm(total=total, unit="utt", desc=variant, disable=None) as progress:
        pieces = [agree.agree(variant, listener, *each, progress) for each in shards]
    kl = [value for piece in pieces for value in piece["kl"]]
    return {"utterances": total, "tokens": len(kl), "kl": sum(kl) / len(kl)}


def main(name: str, split: str, number: int, out: Path) -> None:
    """Write the table of all variants."""
    settings = params.read()
    if name not in settings.corpora:
        raise UserError(f"{params.CATALOG} has no corpus {name!r}{suggestion(name, settings.corpora)}")
    torch.set_grad_enabled(False)
    head = agreement.head(MODELS / BASELINE, "cpu")
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        speech(Path(temporary), settings, name, split, number)
        shards = said(Path(temporary), settings)
        for variant in settings.names:
            found = measure(variant, settings, shards, head)
            rows.append({"variant": variant, "model": settings.model, "corpus": name, "split": split, **found})
            print(f"{variant:26} KL {found['kl']:.6f} a token, of {found['tokens']:,}", flush=True)
    files.write_text(out, tables.to_csv([tables.rounded(row) for row in rows]))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.foretell", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("split", help="a split that is not scored, such as train-clean-100-texts")
    parser.add_argument("--corpus", help="a key of `corpora` in catalog.yaml; default: that of the calibration")
    parser.add_argument("--utterances", type=int, default=45, help="at most so many, evenly by speaker")
    parser.add_argument("--out", type=Path, default=tables.FORETOLD, help="default: %(default)s")
    arguments = parser.parse_args()
    with stage.guarded("foretell"):
        main(arguments.corpus or params.read().calibration.corpus, arguments.split, arguments.utterances, arguments.out)
