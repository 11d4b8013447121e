"""Files that a package index ships as packages: downloaded and verified as data, never installed, built or imported.

Not by `pip download`: it runs an sdist's own build code.
"""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from pipeline.core import http
from pipeline.core.errors import UserError

if TYPE_CHECKING:
    from pipeline.core.params import Files


def download(where: str, wanted: "Files", folder: Path) -> list[Path]:
    """Get the files `wanted` (sdists or wheels) from the package index into `folder`; raise UserError on failure."""
    for file, digest in wanted.items():
        if not digest:
            raise UserError(f"{where}: the SHA-256 of {file} is missing; only what can be verified is used")
        project = _project(where, file)  # also refuses a name that would leave the folder
        if not http.kept(folder / file, digest):
            http.download([_address(where, project, file)], folder / file, digest)
    return [folder / file for file in wanted]


def _project(where: str, file: str) -> str:
    from packaging.utils import InvalidSdistFilename, InvalidWheelFilename, parse_sdist_filename, parse_wheel_filename

    try:
        if "/" in file or "\\" in file:
            raise InvalidSdistFilename
        return parse_wheel_filename(file)[0] if file.endswith(".whl") else parse_sdist_filename(file)[0]
    except (InvalidSdistFilename, InvalidWheelFilename):
        like = "it looks like 'name-1.0.tar.gz' or 'name-1.0-py3-none-any.whl'"
        raise UserError(f"{where}: {file!r} is not the name of a package's file; {like}") from None


def _address(where: str, project: str, file: str) -> str:
    """Look up a file's address in the index that the user has set for pip."""
    import pypi_simple
    import requests

    index = _pip_setting("index-url") or pypi_simple.PYPI_SIMPLE_ENDPOINT
    shown = http.shown(index)
    with pypi_simple.PyPISimple(index) as client:
        client.s.verify = _pip_setting("cert") or True
        try:
            packages = client.get_project_page(project, timeout=30).packages
        except pypi_simple.NoSuchProjectError:
            raise UserError(f"{where}: the package index {shown} has no project {project!r}") from None
        except (pypi_simple.UnsupportedContentTypeError, pypi_simple.UnsupportedRepoVersionError, ValueError):
            raise UserError(f"{where}: {shown} does not answer as a package index does") from None
        except requests.HTTPError as error:
            status = error.response.status_code if error.response is not None else "an error"
            raise UserError(f"{where}: the package index {shown} answers {status}") from None
        except requests.RequestException:
            way_out = "check the network, or set the index with PIP_INDEX_URL"
            raise UserError(f"{where}: the package index {shown} cannot be reached; {way_out}") from None
    found = [package.url for package in packages if package.filename == file]
    if not found:
        raise UserError(f"{where}: the package index {shown} has no file {file!r} of project {project!r}")
    return _with_credentials(found[0], index)


def _with_credentials(url: str, index: str) -> str:
    """Carry user and password of the index over to its files, but to no other host."""
    credentials, _, host = urlsplit(index).netloc.rpartition("@")
    parts = urlsplit(url)
    return parts._replace(netloc=f"{credentials}@{host}").geturl() if credentials and parts.netloc == host else url


def _pip_setting(key: str) -> str:
    """Return what the environment or pip's configuration says about `key`, or nothing."""
    if told := os.environ.get(f"PIP_{key.replace('-', '_').upper()}"):
        return told
    # Not `pip config get`: it overlooks the file that PIP_CONFIG_FILE names.
    command = [sys.executable, "-m", "pip", "config", "list"]
    settings = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    match = re.search(rf"^global\.{key}='(.*)'$", settings, re.MULTILINE)
    return match[1] if match else ""
