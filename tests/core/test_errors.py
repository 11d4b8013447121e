import errno

import pytest

from pipeline.core import errors


def test_a_suggestion_is_the_closest_word_or_the_list() -> None:
    assert errors.suggestion("grup_size", ["bits", "group_size"]) == " (did you mean 'group_size'?)"
    assert errors.suggestion("tiny", ["small", "base"]) == " (known: base, small)"
    assert errors.suggestion(3, ["bits"]) == " (known: bits)"


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), True),
        (RuntimeError("I/O error: No space left on device (os error 28)"), True),
        (OSError(errno.ENOENT, "No such file"), False),
        (ValueError("wrong"), False),
    ],
)
def test_a_full_disk_is_told_from_other_errors(error: Exception, full: bool) -> None:
    assert errors.is_disk_full(error) is full
