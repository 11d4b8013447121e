"""One error for the mistakes a user can mend."""

import contextlib
import difflib
import errno
from collections.abc import Iterable, Iterator

LONGEST = 2000
"""Characters of a message: a file of another kind may be one line of a megabyte."""


class UserError(Exception):
    """A mistake the user can mend: the message is one sentence naming the thing, the value and the way out.

    Names and values may come from anywhere: what would break the line or command the terminal is shown escaped, and of
    what is very long the middle is left out.
    """

    def __init__(self, sentence: str) -> None:
        if len(sentence) > LONGEST:
            sentence = f"{sentence[: LONGEST // 2]} ... {sentence[-LONGEST // 2 :]}"
        super().__init__("".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in sentence))


@contextlib.contextmanager
def naming(name: str, kind: str = "variant") -> Iterator[None]:
    """Put the name of a variant, or of what else it is about, before what a UserError says."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{kind} {name!r}: {error}") from None


def suggestion(word: object, known: Iterable[str]) -> str:
    """Return " (did you mean 'x'?)" for the closest known word, else " (known: a, b)"."""
    known = sorted(known)
    close = difflib.get_close_matches(str(word), known, n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else f" (known: {', '.join(known)})"


def is_disk_full(error: BaseException) -> bool:
    """Tell whether `error` means a full disk; safetensors and pyarrow wrap the errno in text."""
    code = getattr(error, "errno", None)
    return code in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in str(error)
