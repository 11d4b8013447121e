"""LibriSpeech as published: one archive a split, from the address in catalog.yaml or its mirrors."""

from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.core import http
from pipeline.core.errors import UserError

if TYPE_CHECKING:
    from pipeline.core.params import Corpus


def download(name: str, corpus: "Corpus", splits: list[str], folder: Path) -> None:
    """Get `<split>.tar.gz` of each split into `folder`, trying the mirrors in order; raise UserError on failure."""
    mirrors = [corpus.url] if isinstance(corpus.url, str) else list(corpus.url or [])
    for split in splits:
        file = f"{split}.tar.gz"
        digest = corpus.files.get(file)
        if not digest:
            raise UserError(
                f"corpus {name!r}: the SHA-256 of {file} is missing; add it to corpora.{name}.files, "
                "so that the archive can be verified"
            )
        http.download([f"{mirror.rstrip('/')}/{file}" for mirror in mirrors], folder / file, digest)
