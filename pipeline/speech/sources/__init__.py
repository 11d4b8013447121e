"""Where bytes come from: every source verifies what it gets, goes on where it stopped, and fails with one sentence."""

import re
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from pipeline.core import http, hub, package
from pipeline.core.errors import UserError, suggestion
from pipeline.speech.sources import directory, layouts

if TYPE_CHECKING:
    from pipeline.core.params import Corpus

RAW = Path("data/raw")


def download(name: str, corpus: "Corpus", splits: list[str]) -> None:
    """Get the archives that hold `splits` of corpus `name` into data/raw/<name>/; raise UserError when that fails."""
    folder = RAW / name
    if corpus.source == "package":
        package.download(f"corpus {name!r}", corpus.files, folder)
    elif corpus.source == "openslr":
        for split in splits:
            _openslr(name, corpus, f"{split}.tar.gz", folder)
    elif corpus.source == "hub":
        for split in splits:
            hub.download(f"corpus {name!r}", "dataset", corpus, _parquet(name, corpus, split), folder)
    elif corpus.source == "generated":
        from pipeline.speech.sources import generated  # late: it takes numpy, which no other source does

        generated.download(name, corpus, splits, folder)
    else:
        directory.download(name, corpus, splits, folder)


def _openslr(name: str, corpus: "Corpus", file: str, folder: Path) -> None:
    """Get an archive as OpenSLR publishes it, from the first mirror that gives it."""
    mirrors = [corpus.url] if isinstance(corpus.url, str) else corpus.url or []
    if not (digest := corpus.files.get(file)):
        where = f"corpus {name!r}: the SHA-256 of {file} is missing"
        raise UserError(f"{where}; add it to corpora.{name}.files, so that the archive can be verified")
    http.download([f"{mirror.rstrip('/')}/{file}" for mirror in mirrors], folder / file, digest)


def archives(name: str, corpus: "Corpus", split: str) -> list[Path]:
    """Name the downloaded archives in which the utterances of `split` are found."""
    if corpus.source == "package":
        return [RAW / name / file for file in corpus.files]
    if corpus.source == "hub":
        return [RAW / name / file for file in _parquet(name, corpus, split)]
    return [RAW / name / (f"{split}.tar.gz" if corpus.source == "openslr" else f"{split}.tar")]


def recordings(name: str, corpus: "Corpus", split: str) -> dict[str, layouts.Recording]:
    """List the utterances of `split`, by id, without their audio.

    Raises UserError for a split that is not there, or has another number of utterances than the publisher tells.
    """
    where, files = f"corpus {name!r}", archives(name, corpus, split)
    if corpus.source == "package":
        found = layouts.sphinx(where, files, str(corpus.path), split)
    else:
        found = (layouts.parquet if corpus.source == "hub" else layouts.librispeech)(where, files, split)
    published = corpus.utterances.get(split, len(found))
    if len(found) != published:
        raise UserError(
            f"{where}: split {split!r} holds {len(found):,} utterances, but {published:,} were published; "
            f"correct corpora.{name}.utterances if that is not so"
        )
    return found


def split_of(file: str) -> str:
    """Return the split that a Parquet file of a corpus belongs to, with hyphens in the place of other signs.

    >>> split_of("all/test.clean/0000.parquet"), split_of("data/test.clean-00000-of-00002.parquet")
    ('test-clean', 'test-clean')
    """
    path = PurePosixPath(file)
    name = path.parent.name if path.stem.isdigit() else re.sub(r"-\d{5}-of-\d{5}$", "", path.stem)
    return re.sub(r"[^A-Za-z0-9]", "-", name)


def _parquet(name: str, corpus: "Corpus", split: str) -> list[str]:
    files = [file for file in corpus.files if split_of(file) == split]
    if not files:
        known = suggestion(split, map(split_of, corpus.files))
        raise UserError(f"corpus {name!r}: its files hold no split {split!r}{known}")
    folders = sorted({file.rpartition("/")[0] for file in files})
    if len(folders) > 1:
        both = f"{folders[0]!r} and in {folders[1]!r}"
        raise UserError(f"corpus {name!r}: split {split!r} is in {both}; name files of one")
    return files
