"""Download one file over HTTP: verified by its SHA-256, and resumed where an earlier try stopped."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pipeline.core import files
from pipeline.core.errors import UserError

WAITS = (0.5, 1, 2, 4)  # seconds between tries that bring nothing new; after so many it is the user's turn
CHUNK = 1 << 18

REASONS = {  # what stands in an error of urllib3, and what that means
    "NameResolution": "the host's name is not known (no network?)",
    "SSL": "its certificate is not trusted",
    "Proxy": "the proxy refuses",
    "Timeout": "no answer in time",
    "NewConnection": "no connection",
}


class RetryError(Exception):
    """The server or the network failed in a way that may pass."""


class RefusedError(Exception):
    """The server's answer will be the same next time."""


def kept(target: Path, digest: str) -> bool:
    """Tell whether `target` is already here with the right bytes."""
    found = target.exists() and files.sha256(target) == digest
    if found:
        print(f"kept {target}")
    return found


def download(urls: Sequence[str], target: Path, digest: str) -> None:
    """Get `target` from the first of `urls` (mirrors of one file) that gives it.

    The bytes gather in `.<name>.partial` beside it, which stays after a failure so that the next run goes on from
    there. Raises UserError, naming the file or the address and the way out, when no mirror works or the bytes are
    not those of `digest` (a SHA-256 in hexadecimal).
    """
    if kept(target, digest):
        return
    partial = target.with_name(f".{target.name}.partial")
    partial.parent.mkdir(parents=True, exist_ok=True)
    failures: list[Exception] = []
    for url in urls:
        try:
            _get_verified(url, partial, target, digest)
            partial.replace(target)  # whatever other bytes were there are kept until now
            return
        except (RefusedError, RetryError) as failure:
            failures.append(failure)
    reasons = "; ".join(map(str, failures))
    if size := _size(partial):
        reasons += f" ({size:,} bytes are kept in {partial}: the next run goes on from there, unless you delete it)"
    raise UserError(reasons)


def _get_verified(url: str, partial: Path, target: Path, digest: str) -> None:
    resumed = _size(partial) > 0
    _get_patiently(url, partial, target.name)
    got = files.sha256(partial)
    if got == digest:
        return
    partial.unlink()
    if resumed:  # what was left may have been the start of another file: that is no reason to give up
        return _get_verified(url, partial, target, digest)
    raise RefusedError(
        f"{target}: the SHA-256 of what {shown(url)} sends is {got}, but {digest} was expected; run it again, "
        "or correct the digest in catalog.yaml if the publisher has changed the file"
    )


def _get_patiently(url: str, partial: Path, name: str) -> None:
    most, waits = _size(partial), iter(WAITS)
    while True:
        try:
            return _get(url, partial, name)
        except RetryError:
            if _size(partial) > most:  # one that ignores ranges starts over: only what was never here is progress
                most, waits = _size(partial), iter(WAITS)
            if (wait := next(waits, None)) is None:
                raise
            time.sleep(wait)


def _get(url: str, partial: Path, name: str) -> None:
    """Append to `partial` what is missing of it."""
    import requests
    import urllib3

    have = _size(partial)
    # Without identity a server may hand out the archive as gzip content, and its bytes would change on the way.
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    try:
        with requests.get(url, headers=headers, stream=True, timeout=(10, 60)) as answer:
            if answer.status_code == 416 and have:
                return  # nothing follows: the partial is whole, or it is of another file, which the digest will tell
            _check(answer, url)
            if answer.status_code == 200:
                if _length(answer) in range(have) or answer.headers.get("Content-Type", "").startswith("text/html"):
                    raise RefusedError(f"{shown(url)}: another file is sent, such as a page that asks to log in")
                have = 0  # the server ignores ranges and starts over, so do we
            elif not answer.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
                raise RefusedError(f"{shown(url)}: the server sends another part of the file than the one asked for")
            _store(answer, partial, have, name)
    except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
        # requests raises ValueError for an invalid URL, and for an invalid proxy address.
        if isinstance(error, ValueError) and not isinstance(error, requests.exceptions.InvalidProxyURL):
            raise RefusedError(f"{shown(url)} is not an address that can be downloaded from") from None
        raise RetryError(f"{shown(url)}: {_reason(error)}; check the network and run it again") from None


def _store(answer: Any, partial: Path, have: int, name: str) -> None:
    from tqdm import tqdm

    whole = answer.headers.get("Content-Range", "").rpartition("/")[2]  # a server may send less at once than asked for
    length = _length(answer)
    total = int(whole) if whole.isdigit() else None if length is None else have + length
    with (
        files.naming(partial),
        partial.open("ab" if have else "wb") as file,
        tqdm(total=total, initial=have, unit="B", unit_scale=True, desc=name, mininterval=0.5, disable=None) as bar,
    ):
        for chunk in answer.raw.stream(CHUNK, decode_content=False):
            file.write(chunk)
            bar.update(len(chunk))
    if total is not None and _size(partial) < total:
        raise RetryError(f"{shown(answer.url)}: the connection was lost; run it again")


def _length(answer: Any) -> int | None:
    """Return the Content-Length, if there is one that means something (proxies have been seen to repeat it)."""
    told = {length.strip() for length in answer.headers.get("Content-Length", "").split(",")}
    length = told.pop()
    return int(length) if length.isdecimal() and not told else None


def _check(answer: Any, url: str) -> None:
    status = f"{shown(url)}: the server answers {answer.status_code} {answer.reason}".rstrip()
    if answer.status_code == 429 or answer.status_code >= 500:
        raise RetryError(f"{status}; run it again later")
    if answer.status_code not in (200, 206):
        raise RefusedError(f"{status}; check the address in catalog.yaml")


def _reason(error: Exception) -> str:
    return next((reason for sign, reason in REASONS.items() if sign in repr(error)), "the connection was lost")


def shown(url: str) -> str:
    """Leave out what may be secret in an address: user, password and query."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="").geturl()


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
