"""A checkpoint's files from the Hugging Face Hub (or a mirror, by HF_ENDPOINT), at a pinned revision."""

import re
from pathlib import Path

from pipeline import files
from pipeline.errors import UserError
from pipeline.params import Model

ADVICE = "check the network, or name a mirror with HF_ENDPOINT"


def download(name: str, model: Model, folder: Path) -> Path:
    """Get the model's files into `folder` and return it; files that are there and verified are kept.

    Raises UserError when a file is not there, not reachable or not what its SHA-256 says, and when neither a digest nor
    a full commit hash pins it.
    """
    repo, revision = str(model.repo), str(model.revision)
    folder.mkdir(parents=True, exist_ok=True)
    for file, digest in model.files.items():
        if digest is None and not re.fullmatch(r"[0-9a-f]{40}", revision):
            raise UserError(
                f"model {name!r}: nothing pins {file}: revision {revision!r} can move, so give a commit's 40 digits "
                f"or the SHA-256 of {file}"
            )
        if digest and (folder / file).is_file() and files.sha256(folder / file) == digest:
            print(f"kept {folder / file}")
            continue
        path = _download(name, repo, revision, file, folder)
        if digest and (got := files.sha256(path)) != digest:
            path.unlink()
            raise UserError(
                f"model {name!r}: the SHA-256 of {file} is {got}, but {digest} was expected; the file was removed: "
                "run it again, or correct the digest in params.yaml if the publisher has changed the file"
            )
    return folder


def _download(name: str, repo: str, revision: str, file: str, folder: Path) -> Path:
    import huggingface_hub
    from huggingface_hub import errors

    where = f"model {name!r}: {file} of {repo}"
    try:
        return Path(huggingface_hub.hf_hub_download(repo, file, revision=revision, local_dir=folder))
    except errors.GatedRepoError:
        raise UserError(f"model {name!r}: {repo} asks for a login; accept its terms and set HF_TOKEN") from None
    except errors.RepositoryNotFoundError:
        raise UserError(
            f"model {name!r}: the hub has no repository {repo!r} (or it is private: set HF_TOKEN)"
        ) from None
    except errors.RevisionNotFoundError:
        raise UserError(f"model {name!r}: {repo} has no revision {revision!r}") from None
    except errors.LocalEntryNotFoundError:
        raise UserError(f"{where} cannot be downloaded: the hub is not reachable; {ADVICE}") from None
    except errors.EntryNotFoundError:
        raise UserError(f"{where} does not exist at revision {revision!r}; correct the model's files") from None
    except errors.HFValidationError as error:
        raise UserError(f"model {name!r}: {repo!r} is not a repository's name ({error})") from None
    except (errors.HfHubHTTPError, errors.OfflineModeIsEnabled) as error:
        raise UserError(f"{where} cannot be downloaded: {str(error).splitlines()[0]}; {ADVICE}") from None
