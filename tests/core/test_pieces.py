"""Pieces in a long stage are tested with the stages that keep them: test_transcribe, test_transcribe_protocols."""

import contextlib
from pathlib import Path

from pipeline.core import pieces
from tests.conftest import ROOT


def names(stage: str, backend: str) -> list[str]:
    return [path.relative_to(ROOT).as_posix() for path in pieces.code(stage, backend)]


def test_the_code_that_counts_is_what_dvc_yaml_lists() -> None:
    assert names("transcribe", "hqq") == [
        "pipeline/backends/hqq.py",
        "pipeline/speech/corpus.py",
        "pipeline/transcribe.py",
        "pipeline/whisper/inference/__init__.py",
        "pipeline/whisper/inference/decoding.py",
        "pipeline/whisper/inference/mel.py",
        "pipeline/whisper/inference/timestamps.py",
        "pipeline/whisper/model/__init__.py",
        "pipeline/whisper/model/filters.py",
        "pipeline/whisper/model/integers.py",
        "pipeline/whisper/model/network.py",
        "pipeline/whisper/model/packing.py",
        "pipeline/whisper/model/weights.py",
    ]
    assert "pipeline/transcribe_protocols.py" in names("transcribe_protocols", "none")
    assert "pipeline/speech/sources/layouts.py" in names("prepare", "none")  # folders with all that is in them


def test_a_key_is_equal_while_nothing_changes(tmp_path: Path) -> None:
    shard = tmp_path / "0.parquet"
    shard.write_bytes(b"speech")

    def key(**facts: object) -> dict[str, object]:
        return pieces.key("transcribe", "hqq", "cpu", [shard.relative_to(tmp_path)], **facts)

    with contextlib.chdir(tmp_path):
        first = key(decoding={"seed": 0})
        assert key(decoding={"seed": 0}) == first
        assert key(decoding={"seed": 1}) != first
        shard.write_bytes(b"other speech")
        assert key(decoding={"seed": 0})["inputs"] != first["inputs"]


def test_only_pieces_of_written_outputs_are_removed(tmp_path: Path) -> None:
    for name in ("done", "begun"):
        kept = pieces.Pieces(tmp_path / "reports" / name, {"name": name})
        kept.once("a", lambda: 1)
        if name == "done":
            kept.finish()
    pieces.remove_finished(tmp_path)
    assert [path.name for path in (tmp_path / "reports").iterdir()] == [".begun.pieces"]
