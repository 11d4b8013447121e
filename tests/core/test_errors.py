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


def test_a_message_is_one_line_that_commands_no_terminal() -> None:
    """A file's name with a line feed or an escape sequence breaks the log, or recolours the terminal."""
    assert str(errors.UserError("a\nb: \x1b[31m, é, 語, \u2028, \ud800")) == r"a\nb: \x1b[31m, é, 語, \u2028, \ud800"


def test_of_a_long_message_the_ends_are_shown() -> None:
    """A data file in place of a text: its one line of a megabyte fills the terminal."""
    sentence = str(errors.UserError(f"the value {'x' * 10**6} is wrong; correct it"))
    assert len(sentence) < 2010
    assert sentence.startswith("the value xxx")
    assert sentence.endswith("xxx is wrong; correct it")
