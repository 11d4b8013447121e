"""Files from the Hugging Face Hub (or a mirror, by HF_ENDPOINT), at a pinned revision: checkpoints and corpora."""

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Literal

from pipeline.core import files
from pipeline.core.errors import UserError, is_disk_full

if TYPE_CHECKING:
    from pipeline.core.params import Corpus, Model

ADVICE = "check the network, or name a mirror with HF_ENDPOINT"


def download(
    where: str, kind: Literal["model", "dataset"], entry: "Model | Corpus", wanted: list[str], folder: Path
) -> Path:
    """Get the files `wanted` of a repository of this kind into `folder` and return it; verified ones there are kept.

    `where` names the entry of catalog.yaml in errors, such as "model 'small'". Raises UserError when a file is not
    there, not reachable or not what its digest says (the SHA-256 in catalog.yaml, else what the hub tells), and when
    neither a SHA-256 nor a full commit hash pins it.
    """
    repo, revision = str(entry.repo), str(entry.revision)
    folder.mkdir(parents=True, exist_ok=True)
    for file in wanted:
        if PurePosixPath(file).is_absolute() or ".." in PurePosixPath(file).parts:
            raise UserError(f"{where}: {file!r} is not a file inside the repository; correct its files in catalog.yaml")
        if entry.files[file] is None and not re.fullmatch(r"[0-9a-f]{40}", revision):
            way_out = f"give a commit's 40 digits or the SHA-256 of {file}"
            raise UserError(f"{where}: nothing pins {file}: revision {revision!r} can move, so {way_out}")
        with _explained(where, kind, repo, revision, file):
            _get(where, kind, repo, revision, file, folder, entry.files[file])
    return folder


def _get(where: str, kind: str, repo: str, revision: str, file: str, folder: Path, pinned: str | None) -> None:
    import huggingface_hub

    path = folder / file
    url = huggingface_hub.hf_hub_url(repo, file, repo_type=kind, revision=revision)
    digest = pinned or str(huggingface_hub.get_hf_file_metadata(url).etag)
    if not re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", digest):
        raise UserError(f"{where}: the hub tells no digest of {file}; give its SHA-256 in catalog.yaml")
    if path.is_file() and _digest(path, digest) == digest:
        print(f"kept {path}")
        return
    huggingface_hub.hf_hub_download(
        repo, file, repo_type=kind, revision=revision, local_dir=folder, force_download=path.is_file()
    )
    if (got := _digest(path, digest)) != digest:  # the library itself looks at the size alone
        path.unlink()
        what = "SHA-256" if len(digest) == 64 else "git object name"
        other = ", or correct the digest in catalog.yaml if the publisher has changed the file" if pinned else ""
        found = f"{where}: the {what} of {file} is {got}, but {digest} was expected"
        raise UserError(f"{found}; the file was removed: run it again{other}")


def _digest(path: Path, like: str) -> str:
    """Return a file's SHA-256, which the hub tells of large files, or the SHA-1 by which git calls a small one."""
    if len(like) == 64:
        return files.sha256(path)
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


@contextmanager
def _explained(where: str, kind: str, repo: str, revision: str, file: str) -> Iterator[None]:
    """Turn the library's errors into sentences."""
    from huggingface_hub import errors

    what = f"{where}: {file} of {repo}"
    try:
        yield
    except Exception as error:  # of many kinds: the library passes on those of what it is built on
        if isinstance(error, UserError) or is_disk_full(error):
            raise
        reason = (str(error).splitlines() or [""])[0].rstrip(".")
        sentences = {  # the first that fits
            errors.GatedRepoError: f"{where}: {repo} asks for a login; accept its terms and set HF_TOKEN",
            errors.RepositoryNotFoundError: f"{where}: the hub has no {kind} {repo!r} (or it is private: set HF_TOKEN)",
            errors.RevisionNotFoundError: f"{where}: {repo} has no revision {revision!r}",
            errors.LocalEntryNotFoundError: f"{what} cannot be downloaded: the hub is not reachable; {ADVICE}",
            errors.EntryNotFoundError: f"{what} is not in revision {revision!r}; correct its files in catalog.yaml",
            errors.HFValidationError: f"{where}: {repo!r} is not a repository's name ({error})",
            Exception: f"{what} cannot be downloaded: {type(error).__name__}: {reason}; run it again; {ADVICE}",
        }
        raise UserError(next(text for each, text in sentences.items() if isinstance(error, each))) from error
