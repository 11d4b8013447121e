from pathlib import Path

import pytest

from pipeline.core import files


def test_a_file_appears_whole(tmp_path: Path) -> None:
    target = tmp_path / "new" / "file.txt"
    with files.aside(target) as partial:
        partial.write_text("whole")
        assert not target.exists()
    assert target.read_text() == "whole"
    assert list(target.parent.iterdir()) == [target]


def test_a_folder_replaces_the_old_one_whole(tmp_path: Path) -> None:
    target = tmp_path / "model"
    target.mkdir()
    (target / "old.txt").write_text("old")
    with files.aside(target) as partial:
        partial.mkdir()
        (partial / "new.txt").write_text("new")
    assert {path.name: path.read_text() for path in target.iterdir()} == {"new.txt": "new"}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failure_leaves_the_old_one_and_no_partial(error: type[BaseException], tmp_path: Path) -> None:
    target = tmp_path / "file.txt"
    target.write_text("old")

    def fail() -> None:
        with files.aside(target) as partial:
            partial.write_text("half")
            raise error

    with pytest.raises(error):
        fail()
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"file.txt": "old"}


def test_what_a_killed_run_left_is_removed(tmp_path: Path) -> None:
    left = tmp_path / ".model.partial"
    left.mkdir()
    (left / "half.bin").write_bytes(b"half")
    with files.aside(tmp_path / "model") as partial:
        assert not partial.exists()
        partial.mkdir()
    assert list((tmp_path / "model").iterdir()) == []


def test_removing_follows_no_link_and_minds_no_absence(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").write_text("kept")
    (tmp_path / "link").symlink_to(tmp_path / "kept")
    files.remove(tmp_path / "link")
    files.remove(tmp_path / "absent")
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert (tmp_path / "kept" / "file").read_text() == "kept"


def test_text_and_json_are_utf8(tmp_path: Path) -> None:
    files.write_text(tmp_path / "text", "café\n")
    files.write_json(tmp_path / "json", {"word": "café", "counts": [1, 2]})
    assert (tmp_path / "text").read_bytes() == b"caf\xc3\xa9\n"
    assert (tmp_path / "json").read_bytes() == (b'{\n  "word": "caf\xc3\xa9",\n  "counts": [\n    1,\n    2\n  ]\n}\n')


def test_the_digest_is_sha256(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    assert files.sha256(tmp_path / "file") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "Expecting property name"),
        ("[" * 10_000, "it is nested too deeply"),
        ('["\\ud800"]', "surrogates not allowed"),
        (b"\xff", "invalid start byte"),
        ("9" * 5_000, "Exceeds the limit"),
    ],
)
def test_what_is_no_json_is_a_value_error(text: str | bytes, reason: str) -> None:
    """Half an emoji, cut by another program, or 10,000 brackets: another error than for bad JSON."""
    with pytest.raises(ValueError, match=reason):
        files.parse_json(text)


def test_json_is_parsed_in_either_form() -> None:
    assert files.parse_json('{"a": ["\\ud83d\\ude00", 1.5]}') == files.parse_json('{"a": ["😀", 1.5]}'.encode())
