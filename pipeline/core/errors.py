"""One error for the mistakes a user can mend."""

import difflib
import errno
from collections.abc import Iterable


class UserError(Exception):
    """A mistake the user can mend: the message is one sentence naming the thing, the value and the way out."""


def suggestion(word: object, known: Iterable[str]) -> str:
    """Return " (did you mean 'x'?)" for the closest known word, else " (known: a, b)"."""
    known = sorted(known)
    close = difflib.get_close_matches(str(word), known, n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else f" (known: {', '.join(known)})"


def is_disk_full(error: BaseException) -> bool:
    """Tell whether `error` means a full disk; safetensors and pyarrow wrap the errno in text."""
    code = getattr(error, "errno", None)
    return code in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in str(error)
