"""Files from the Hugging Face Hub (or a mirror, by HF_ENDPOINT), at a pinned revision: checkpoints and corpora."""

import re
from pathlib import Path, PurePosixPath

from pipeline import files
from pipeline.errors import UserError
from pipeline.params import Corpus, Model

ADVICE = "check the network, or name a mirror with HF_ENDPOINT"


def split_of(file: str) -> str:
    """Return the split that a Parquet file of a corpus belongs to, with hyphens in the place of other signs.

    >>> split_of("all/test.clean/0000.parquet"), split_of("data/test.clean-00000-of-00002.parquet")
    ('test-clean', 'test-clean')
    """
    path = PurePosixPath(file)
    name = path.parent.name if path.stem.isdigit() else re.sub(r"-\d{5}-of-\d{5}$", "", path.stem)
    return re.sub(r"[^A-Za-z0-9]", "-", name)


def download(where: str, entry: Model | Corpus, wanted: list[str], folder: Path) -> Path:
    """Get the files `wanted` of a model or corpus into `folder` and return it; verified ones that are there are kept.

    `where` names the entry of params.yaml in errors, such as "model 'small'". Raises UserError when a file is not
    there, not reachable or not what its SHA-256 says (that of params.yaml, else the hub's own), and when neither a
    digest nor a full commit hash pins it.
    """
    repo, revision = str(entry.repo), str(entry.revision)
    kind = "model" if isinstance(entry, Model) else "dataset"
    folder.mkdir(parents=True, exist_ok=True)
    for file in wanted:
        if PurePosixPath(file).is_absolute() or ".." in PurePosixPath(file).parts:
            raise UserError(f"{where}: {file!r} is not a file inside the repository; correct its files in params.yaml")
        digest = entry.files[file]
        if digest is None and not re.fullmatch(r"[0-9a-f]{40}", revision):
            raise UserError(
                f"{where}: nothing pins {file}: revision {revision!r} can move, so give a commit's 40 digits "
                f"or the SHA-256 of {file}"
            )
        if digest and (folder / file).is_file() and files.sha256(folder / file) == digest:
            print(f"kept {folder / file}")
            continue
        path, published = _download(where, kind, repo, revision, file, folder)
        digest = digest or published
        if digest and (got := files.sha256(path)) != digest:
            path.unlink()
            raise UserError(
                f"{where}: the SHA-256 of {file} is {got}, but {digest} was expected; the file was removed: "
                "run it again, or correct the digest in params.yaml if the publisher has changed the file"
            )
    return folder


def _download(where: str, kind: str, repo: str, revision: str, file: str, folder: Path) -> tuple[Path, str | None]:
    """Return the file's place, and its SHA-256 if it comes from the hub just now and the hub tells (of large files)."""
    import huggingface_hub
    from huggingface_hub import errors

    what = f"{where}: {file} of {repo}"
    try:
        there = (folder / file).is_file()  # which the library compares with the hub's digest
        path = Path(huggingface_hub.hf_hub_download(repo, file, repo_type=kind, revision=revision, local_dir=folder))
        url = huggingface_hub.hf_hub_url(repo, file, repo_type=kind, revision=revision)
        etag = None if there else huggingface_hub.get_hf_file_metadata(url).etag
        return path, etag if etag and re.fullmatch(r"[0-9a-f]{64}", etag) else None
    except errors.GatedRepoError:
        raise UserError(f"{where}: {repo} asks for a login; accept its terms and set HF_TOKEN") from None
    except errors.RepositoryNotFoundError:
        raise UserError(f"{where}: the hub has no {kind} {repo!r} (or it is private: set HF_TOKEN)") from None
    except errors.RevisionNotFoundError:
        raise UserError(f"{where}: {repo} has no revision {revision!r}") from None
    except errors.LocalEntryNotFoundError:
        raise UserError(f"{what} cannot be downloaded: the hub is not reachable; {ADVICE}") from None
    except errors.EntryNotFoundError:
        raise UserError(f"{what} does not exist at revision {revision!r}; correct its files in params.yaml") from None
    except errors.HFValidationError as error:
        raise UserError(f"{where}: {repo!r} is not a repository's name ({error})") from None
    except (errors.HfHubHTTPError, errors.OfflineModeIsEnabled) as error:
        raise UserError(f"{what} cannot be downloaded: {str(error).splitlines()[0]}; {ADVICE}") from None
