from typing import Any

import pytest

from pipeline.results import changes
from pipeline.results.changes import Part


@pytest.mark.parametrize(
    ("before", "after", "parts"),
    [
        ("a b c", "a b c", [Part("a b c")]),
        ("a b c", "a x c", [Part("a"), Part("", "b", "x"), Part("c")]),
        ("a b c d", "a x d", [Part("a"), Part("", "b c", "x"), Part("d")]),  # replaced and removed: one change
        ("a c", "a b c", [Part("a"), Part("", "", "b"), Part("c")]),
        ("", "a b", [Part("", "", "a b")]),
        ("a b", "", [Part("", "a b", "")]),
    ],
)
def test_words_that_change(before: str, after: str, parts: list[Part]) -> None:
    found = changes.words(before, after)
    assert found == parts
    assert " ".join(" ".join(filter(None, (part.same, part.removed))) for part in found).split() == before.split()
    assert " ".join(" ".join(filter(None, (part.same, part.added))) for part in found).split() == after.split()


def utterance(name: str, hypothesis: str, errors: int) -> dict[str, Any]:
    """Return what `score` says of an utterance."""
    counts = {"substitutions": errors, "deletions": 0, "insertions": 0}
    return {"id": name, "split": "dev", "reference": "r", "hypothesis": hypothesis, **counts}


def test_the_greatest_losses_come_first_and_what_is_the_same_does_not() -> None:
    own = [utterance(name, "as fp32", 2) for name in "abcd"]
    other = [
        utterance("a", "better", 1),
        utterance("b", "as fp32", 2),
        utterance("c", "worse", 5),
        utterance("d", "else", 2),
    ]
    found = changes.changed({"utterances": own}, {"utterances": other})
    assert [(change.id, change.verdict) for change in found] == [("c", "regressed"), ("d", "other"), ("a", "improved")]
