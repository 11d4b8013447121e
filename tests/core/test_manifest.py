import json
from pathlib import Path

import pytest

from pipeline.core import files, manifest
from pipeline.core.errors import UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder of two files with its list."""
    made = tmp_path / "models/fp32"
    made.mkdir(parents=True)
    (made / "model.safetensors").write_bytes(b"weights")
    (made / "config.json").write_text("{}")
    manifest.write(made, {"variant": {"backend": "none"}})
    return made


def refusal(folder: Path) -> str:
    with pytest.raises(UserError) as error:
        manifest.verify(folder)
    return str(error.value)


def test_the_list_tells_what_is_known_and_each_files_digest(folder: Path) -> None:
    digests = {name: files.sha256(folder / name) for name in ("config.json", "model.safetensors")}
    assert manifest.verify(folder) == {"variant": {"backend": "none"}, "files": digests}


def test_a_file_cut_short(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert refusal(folder) == (
        f"{folder}/model.safetensors is not the file that was saved: it is cut short or edited; "
        f"run 'dvc repro' to restore it"
    )


def test_an_edited_file(folder: Path) -> None:
    weights = folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert refusal(folder).startswith(f"{folder}/model.safetensors is not the file that was saved: ")
    (folder / "config.json").write_text("[]")
    assert refusal(folder).startswith(f"{folder}/config.json is not the file that was saved: ")


def test_a_missing_file(folder: Path) -> None:
    (folder / "config.json").unlink()
    assert refusal(folder) == f"{folder} lacks config.json; run 'dvc repro' to restore it"


@pytest.mark.parametrize(
    "text", [None, "", "{", "{}", '{"files"', "[]", '{"files": ["a"]}', '{"files": {}, "variant": {}}', "[" * 10_000]
)
def test_no_manifest(folder: Path, text: str | None) -> None:
    """A checkpoint.json of another tool, or cut short by a full disk: a KeyError says nothing of the file."""
    (folder / "checkpoint.json").unlink()
    if text is not None:
        (folder / "checkpoint.json").write_text(text)
    assert refusal(folder) == (
        f"{folder} has no readable checkpoint.json, so it is no checkpoint of this project; "
        f"run 'dvc repro' to restore it"
    )


def test_no_folder(tmp_path: Path) -> None:
    assert refusal(tmp_path / "none").startswith(f"{tmp_path}/none has no readable checkpoint.json, ")


@pytest.mark.parametrize("name", ["../baseline", "x" * 300, "."])
def test_only_files_of_the_folder_are_listed(folder: Path, name: str) -> None:
    """Names in a downloaded list that lead out of the folder, or that no system can open."""
    (folder / "checkpoint.json").write_text(json.dumps({"variant": {"backend": "none"}, "files": {name: "0"}}))
    assert refusal(folder) == f"{folder} lacks {name}; run 'dvc repro' to restore it"
