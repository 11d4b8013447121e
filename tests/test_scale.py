"""tests/scale.py, small: a corpus behind a bad server, a bound on memory, and stages that are killed."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import scale
from tests.study import Study

UTTERANCES = 40

# Of LibriSpeech's whole size it is 2 GB with tiny.en; a toy needs a third of that, and libraries are most of it.
BOUND = 900


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Study, scale.Watch]]:
    """Run the study once, from a server that does everything wrong."""
    published = scale.publish(None, UTTERANCES)
    with scale.served(published) as server:
        made = scale.make(tmp_path_factory.mktemp("scale"), published, server)
        said, watch = scale.run(made)
        assert "test-other.tar.gz: the SHA-256 of what " in said  # the flipped byte: one rerun
        assert said.count("Running stage 'download'") == 2
        assert (server.drops, server.ignored_ranges, server.wrong) == (0, 0, {})
        expected = {split: known for split, known in published.utterances.items() if split != "dev-clean"}
        assert scale.prepared(made) == expected
        assert sum(map(len, expected.values())) == UTTERANCES
        yield made, watch


@pytest.mark.slow
def test_memory_stays_small(whole: tuple[Study, scale.Watch]) -> None:
    peaks = whole[1].peaks()
    assert set(scale.STAGES[1:5]) <= set(peaks)
    assert max(peaks.values()) < BOUND


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "victim", "shell"),
    [
        ("download", scale.kill, "bash"),
        ("prepare", scale.only_dvc, "sh"),
        ("quantize@fp32", scale.only_stage, "bash"),
        ("agree@fp32", scale.kill, "sh"),
        ("agree@fp32", scale.only_dvc, "sh"),
        ("agree@fp32", scale.interrupt, "sh"),
        ("reference", scale.kill, "sh"),
        ("transcribe@fp32", scale.only_stage, "bash"),
    ],
)
def test_a_stage_that_is_killed_costs_nothing_else(
    stage: str, victim: Callable[[int], None], shell: str, whole: tuple[Study, scale.Watch], tmp_path: Path
) -> None:
    """The next `dvc repro` finishes, every file is the same, and nothing is left over."""
    made, watch = whole
    after = watch.seconds().get(stage, 0.2) * random.Random(stage).random()
    scale.survives(made.copy(tmp_path / "study"), stage, after, victim, scale.state(made), shell)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shell", "stage", "share"),
    [
        ("bash", "quantize@fp32", 0.2),
        ("sh", "quantize@fp32", 0.6),
        ("bash", "agree@fp32", 0.6),
        ("sh", "agree@fp32", 0.2),
    ],
)
def test_ctrl_c_ends_at_once_with_one_line(
    shell: str, stage: str, share: float, whole: tuple[Study, scale.Watch], tmp_path: Path
) -> None:
    """DVC adds a line of its own, with the status of its shell: dash dies of Ctrl-C, too, bash has become the stage."""
    made, watch = whole
    made = made.copy(tmp_path / "study")
    made.unwatch()  # no other stage runs before it
    at_work, said, seconds = scale.cut_short(made, stage, share * watch.seconds()[stage], scale.interrupt, shell)
    if at_work and "MB" not in said and "flip" not in said:  # which is how these two tell that they are done
        lines = said[said.index("> python -m") :].splitlines()[1:]
        name, _, variant = stage.partition("@")
        command = f"python -m pipeline.{name} {variant}".strip()
        failed = f"ERROR: failed to reproduce '{stage}': failed to run: {command}, exited with"
        assert list(filter(None, lines)) in [
            [f"{name}: interrupted; run it again to go on", f"{failed} {status}"] for status in (130, -2)
        ]
        assert seconds < 5
