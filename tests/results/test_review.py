from typing import Any

import pandas as pd
import pytest

from pipeline.core.params import Review
from pipeline.results import review
from pipeline.results.review import Results
from tests.made import FP32, frame, line

SPLITS = ("dev", "test")
LIMITS = Review(0.3, 2.0)
SPEAKERS = [f"s{n % 12:02}" for n in range(60)]


def results(*variants: str, worse: dict[str, int] | None = None, **changes: Any) -> Results:
    """Return a run in which every utterance of ten words has one error, and of a variant some more."""
    more = worse or {}
    lines = [
        (FP32 if name == "fp32" else line(name, 0.1, -0.1, 0.3, size_mb=50.0, kl=0.01)) | {"split": split} | changes
        for name in ("fp32", *variants)
        for split in SPLITS
    ]
    table = [
        {"split": split, "id": f"u{n}", "speaker": speaker, "words": 10}
        | {name: 1 + (more.get(name, 0) if split == "test" and n % 2 else 0) for name in ("fp32", *variants)}
        for split in SPLITS
        for n, speaker in enumerate(SPEAKERS)
    ]
    return Results(frame(*lines), pd.DataFrame(table))


def changes(before: Results, after: Results) -> dict[tuple[str, str], review.Change]:
    return {(one.variant, one.split): one for one in review.changes(before, after, 1000, 0)}


def test_what_is_as_it_was_is_quiet() -> None:
    found = changes(results("a"), results("a"))
    assert len(found) == 4
    assert all(one.quiet for one in found.values())


def test_a_loss_grows_by_the_difference_of_the_differences() -> None:
    found = changes(results("a", "b"), results("a", "b", worse={"a": 2}))
    one = found["a", "test"]
    assert one.loss == pytest.approx(10.0)  # two errors more in every other ten words
    assert one.low < 10 < one.high
    assert (one.more, one.fewer) == (30, 0)
    assert [key for key, one in found.items() if not one.quiet] == [("a", "test")]


def test_what_befalls_fp32_as_well_is_no_loss_of_a_variant() -> None:
    found = changes(results("a"), results("a", worse={"fp32": 1, "a": 1}))
    assert found["fp32", "test"].loss == pytest.approx(5.0)
    assert found["a", "test"].loss == 0
    assert not found["a", "test"].quiet  # its errors are others


def test_other_speech_does_not_compare() -> None:
    after = results("a")
    after.errors.loc[0, "id"] = "another"
    assert [one.loss == one.loss for one in changes(results("a"), after).values()] == [False, True, False, True]


def test_another_processor_is_marked() -> None:
    assert all(one.elsewhere for one in changes(results("a"), results("a", machine="Another")).values())


def test_the_gate() -> None:
    shipped = {"a": "small"}
    before = results("a", "b")

    def refused(after: Results) -> list[str]:
        return review.refusals([*changes(before, after).values()], review.vanished(before, after), shipped, LIMITS)

    assert refused(results("a", "b")) == []
    assert refused(results("a", "b", worse={"b": 2})) == []  # nobody ships it
    (worse,) = refused(results("a", "b", worse={"a": 2}))
    assert worse.startswith("the loss of a (small) on test has grown by +10.00 [")
    (farther,) = refused(results("a", "b", kl=0.021))[:1]
    assert farther.startswith(
        "KL of a (small) on dev has grown from 0.0100 to 0.0210 nats a token, more than the 2 times"
    )
    assert refused(results("a", "b", kl=0.019)) == []
    assert refused(results("b")) == ["a (small) has vanished from dev", "a (small) has vanished from test"]
    assert refused(results("a")) == []


def test_a_loss_that_may_be_chance_passes() -> None:
    after = results("a")
    after.errors.loc[3, "a"] += 4  # one utterance of one speaker
    (one,) = [one for one in changes(results("a"), after).values() if not one.quiet]
    assert one.loss > 0.3
    assert review.refusals([one], [], {"a": "small"}, LIMITS) == []
    (doubt,) = review.doubts([one], {"a": "small"}, LIMITS)
    assert doubt == f"of a (small) on dev this speech cannot exclude a loss of {one.high:.2f} points"


def test_a_variant_that_stands_still_while_fp32_improves_is_shown_and_passes() -> None:
    after = results("a")
    after.errors["fp32"] = 0
    (one,) = [one for key, one in changes(results("a"), after).items() if key == ("a", "test")]
    assert (one.quiet, one.loss > 0.3, one.more) == (False, True, 0)
    assert review.refusals([one], [], {"a": "small"}, LIMITS) == []


def test_silence_is_counted_and_not_rated() -> None:
    before, after = results("a"), results("a")
    for run in (before, after):
        run.errors["words"] = 0
    assert all(one.quiet for one in changes(before, after).values())
    after.errors["a"] += 1
    found = [one for key, one in changes(before, after).items() if key[0] == "a"]
    assert [(one.more, one.quiet) for one in found] == [(60, False)] * 2
    assert len(review.doubts(found, {"a": "small"}, LIMITS)) == 2
