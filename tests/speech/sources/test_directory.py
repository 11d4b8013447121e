import tarfile
from pathlib import Path

import pytest

from pipeline.core import files
from pipeline.core.errors import UserError
from pipeline.core.params import Corpus
from pipeline.speech.sources import directory


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A LibriSpeech tree of two utterances in two chapters, with files that are no part of it."""
    for name, data in {
        "test-clean/61/70968/61-70968-0000.flac": b"first",
        "test-clean/61/70968/61-70968.trans.txt": b"61-70968-0000 FIRST\n",
        "test-clean/121/123852/121-123852-0000.flac": b"second",
        "test-clean/121/123852/121-123852.trans.txt": b"121-123852-0000 SECOND\n",
        "test-clean/121/123852/notes.txt": b"no part of the corpus",
        "test-other/1688/142285/1688-142285-0000.flac": b"other",
    }.items():
        path = tmp_path / "LibriSpeech" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return tmp_path / "LibriSpeech"


def corpus(path: Path) -> Corpus:
    return Corpus(source="directory", splits=["test-clean"], path=str(path))


def test_a_split_becomes_one_tar_in_order_without_times_and_owners(tree: Path, tmp_path: Path) -> None:
    directory.download("mine", corpus(tree), ["test-clean"], tmp_path)
    with tarfile.open(tmp_path / "test-clean.tar") as tar:
        assert [(m.name, m.size, m.mtime, m.uid, m.gid, m.uname, m.mode) for m in tar.getmembers()] == [
            ("test-clean/121/123852/121-123852-0000.flac", 6, 0, 0, 0, "", 0o644),
            ("test-clean/121/123852/121-123852.trans.txt", 23, 0, 0, 0, "", 0o644),
            ("test-clean/61/70968/61-70968-0000.flac", 5, 0, 0, 0, "", 0o644),
            ("test-clean/61/70968/61-70968.trans.txt", 20, 0, 0, 0, "", 0o644),
        ]


def test_the_same_tree_gives_the_same_bytes(tree: Path, tmp_path: Path) -> None:
    directory.download("mine", corpus(tree), ["test-clean"], tmp_path)
    before = files.sha256(tmp_path / "test-clean.tar")
    (tree / "test-clean/61/70968/61-70968-0000.flac").touch()
    (tree / "test-clean/61/70968/61-70968-0000.flac").chmod(0o600)
    directory.download("mine", corpus(tree), ["test-clean"], tmp_path)
    assert files.sha256(tmp_path / "test-clean.tar") == before


@pytest.mark.parametrize("name", ["nowhere", "x" * 300])
def test_a_missing_folder_is_one_sentence(name: str, tmp_path: Path) -> None:
    """A text in the place of a path is too long for any file: the system's error is another than for a missing one."""
    with pytest.raises(UserError) as error:
        directory.download("mine", corpus(tmp_path / name), ["test-clean"], tmp_path)
    assert str(error.value) == f"corpus 'mine': the folder {tmp_path}/{name} does not exist; correct corpora.mine.path"


def test_a_missing_split_is_one_sentence(tree: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        directory.download("mine", corpus(tree), ["test-claen"], tmp_path)
    assert str(error.value) == f"corpus 'mine': {tree} has no split 'test-claen' (did you mean 'test-clean'?)"


def test_every_kind_of_audio_is_packed_and_nothing_hidden(tree: Path, tmp_path: Path) -> None:
    """Folders copied from a Mac or a recorder: .WAV beside .flac, ._files and .folders among them."""
    chapter = tree / "test-clean/61/70968"
    for name in (
        "61-70968-0001.WAV",
        "61-70968-0002.mp3",
        "61-70968-0003.Ogg",
        "61-70968-0004.opus",
        "61-70968.TRANS.TXT",
    ):
        (chapter / name).write_bytes(b"wanted")
    for name in ("._61-70968-0000.flac", "._61-70968.trans.txt", ".Trashes/a/61-70968-0009.wav", "cover.jpg"):
        (chapter / name).parent.mkdir(parents=True, exist_ok=True)
        (chapter / name).write_bytes(b"not wanted")
    directory.download("mine", corpus(tree), ["test-clean"], tmp_path)
    with tarfile.open(tmp_path / "test-clean.tar") as tar:
        assert [name.rpartition("/")[2] for name in tar.getnames() if "/61/" in name] == [
            "61-70968-0000.flac",
            "61-70968-0001.WAV",
            "61-70968-0002.mp3",
            "61-70968-0003.Ogg",
            "61-70968-0004.opus",
            "61-70968.TRANS.TXT",
            "61-70968.trans.txt",
        ]


@pytest.mark.parametrize("name", ["61-0009.flac", "61/61-0009.wav", "61/70968/more/61-70968-0009.mp3", "x.trans.txt"])
def test_audio_in_another_depth_is_refused(name: str, tree: Path, tmp_path: Path) -> None:
    """A folder for each speaker only, or one more for each day: half of the speech was left out without a word."""
    (tree / "test-clean" / name).parent.mkdir(parents=True, exist_ok=True)
    (tree / "test-clean" / name).write_bytes(b"astray")
    with pytest.raises(UserError) as error:
        directory.download("mine", corpus(tree), ["test-clean"], tmp_path / "raw")
    assert str(error.value) == (
        f"corpus 'mine': test-clean/{name} is not where it should be, in <split>/<speaker>/<chapter>/"
    )


def test_a_link_to_nothing_is_one_sentence(tree: Path, tmp_path: Path) -> None:
    """Links into a disk that is not mounted."""
    link = tree / "test-clean/61/70968/61-70968-0001.flac"
    link.symlink_to("gone.flac")
    with pytest.raises(UserError) as error:
        directory.download("mine", corpus(tree), ["test-clean"], tmp_path / "raw")
    assert str(error.value) == f"{link} cannot be read (No such file or directory)"


def test_a_folder_that_is_a_link_is_packed(tree: Path, tmp_path: Path) -> None:
    """A split made of links to the folders of another."""
    (tree / "test-mine").mkdir()
    (tree / "test-mine/61").symlink_to(tree / "test-clean/61")
    directory.download("mine", corpus(tree), ["test-mine"], tmp_path)
    with tarfile.open(tmp_path / "test-mine.tar") as tar:
        assert len(tar.getnames()) == 2


def test_a_link_out_of_the_tree_is_refused_and_nothing_is_left(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere.flac").write_bytes(b"elsewhere")
    link = tree / "test-clean/61/70968/61-70968-0001.flac"
    link.symlink_to(tmp_path / "elsewhere.flac")
    with pytest.raises(UserError) as error:
        directory.download("mine", corpus(tree), ["test-clean"], tmp_path / "raw")
    assert str(error.value) == (
        f"{link} is a link to {tmp_path}/elsewhere.flac, outside of {tree}; copy the file there instead"
    )
    assert list((tmp_path / "raw").iterdir()) == []


def test_a_link_within_the_tree_is_packed_as_a_file(tree: Path, tmp_path: Path) -> None:
    (tree / "test-clean/61/70968/61-70968-0001.flac").symlink_to("61-70968-0000.flac")
    directory.download("mine", corpus(tree), ["test-clean"], tmp_path)
    with tarfile.open(tmp_path / "test-clean.tar") as tar:
        member = tar.extractfile("test-clean/61/70968/61-70968-0001.flac")
        assert member is not None
        assert member.read() == b"first"
