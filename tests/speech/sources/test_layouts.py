import zipfile
from pathlib import Path

import pytest

from pipeline.core.errors import UserError
from pipeline.speech.sources import layouts
from pipeline.speech.sources.layouts import Recording
from tests.conftest import archive

LIBRISPEECH = {
    "LibriSpeech/README.TXT": b"about",
    "LibriSpeech/test-clean/61/70968/61-70968-0001.flac": b"second",
    "LibriSpeech/test-clean/61/70968/61-70968-0000.flac": b"first",
    "LibriSpeech/test-clean/61/70968/61-70968.trans.txt": b"61-70968-0000 HE BEGAN\n61-70968-0001 A COMPLAINT\n",
    "LibriSpeech/test-clean/121/1/121-1-0000.flac": b"third",
    "LibriSpeech/test-other/1688/2/1688-2-0000.flac": b"of another split",
}
SPHINX = {
    "pkg-1.0/setup.py": b"raise SystemExit",
    "pkg-1.0/test/data/cards/cards.fileids": b"002\n001\n",
    "pkg-1.0/test/data/cards/cards.transcription": b"<s> ten of clubs  </s> (001)\nfive five (002)\n",
    "pkg-1.0/test/data/cards/001.wav": b"one",
    "pkg-1.0/test/data/cards/002.wav": b"two",
    "pkg-1.0/test/data/librivox/fileids": b"austen_64kb-0870\n",
    "pkg-1.0/test/data/librivox/transcription": b"<s> he was </s> (austen_64kb-0870)\n",
    "pkg-1.0/test/data/librivox/austen_64kb-0870.wav": b"three",
    "pkg-1.0/test/data/librivox/unlisted.wav": b"no part of it",
}


def librispeech(tmp_path: Path, split: str = "test-clean", **changes: bytes) -> dict[str, Recording]:
    members = LIBRISPEECH | {name.replace("__", "/"): data for name, data in changes.items()}
    return layouts.librispeech("corpus 'x'", [archive(tmp_path / "x.tar.gz", members)], split)


def sphinx(tmp_path: Path, split: str, changes: dict[str, bytes] | None = None) -> dict[str, Recording]:
    path = archive(tmp_path / "pkg-1.0.tar.gz", SPHINX | (changes or {}))
    return layouts.sphinx("corpus 'x'", [path], "pkg-1.0/test/data", split)


def test_librispeech_is_listed_by_id(tmp_path: Path) -> None:
    folder = "LibriSpeech/test-clean"
    assert list(librispeech(tmp_path).values()) == [
        Recording("121-1-0000", "121", None, f"{folder}/121/1/121-1-0000.flac"),
        Recording("61-70968-0000", "61", "HE BEGAN", f"{folder}/61/70968/61-70968-0000.flac"),
        Recording("61-70968-0001", "61", "A COMPLAINT", f"{folder}/61/70968/61-70968-0001.flac"),
    ]


def test_sphinx_is_listed_by_id(tmp_path: Path) -> None:
    folder = "pkg-1.0/test/data"
    assert list(sphinx(tmp_path, "cards").values()) == [
        Recording("001", "cards", "ten of clubs", f"{folder}/cards/001.wav"),
        Recording("002", "cards", "five five", f"{folder}/cards/002.wav"),
    ]
    assert list(sphinx(tmp_path, "librivox").values()) == [
        Recording("austen_64kb-0870", "austen_64kb", "he was", f"{folder}/librivox/austen_64kb-0870.wav"),
    ]


def test_a_wheel_is_read_as_a_tar_is(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "pkg.whl", "w") as wheel:
        for name, data in SPHINX.items():
            wheel.writestr(name, data)
    found = layouts.sphinx("corpus 'x'", [tmp_path / "pkg.whl"], "pkg-1.0/test/data", "cards")
    assert found == sphinx(tmp_path, "cards")


def test_only_wanted_members_are_read_from_all_archives(tmp_path: Path) -> None:
    paths = [archive(tmp_path / "a.tar.gz", {"./a": b"1", "b": b"2"}), archive(tmp_path / "c.tar", {"c": b"3"}, "w")]
    assert list(layouts.members(paths, lambda name: name != "b")) == [("a", b"1"), ("b", None), ("c", b"3")]


@pytest.mark.parametrize(
    ("changes", "split", "sentence"),
    [
        ({}, "test-claen", "corpus 'x': no split 'test-claen' in TMP/x.tar.gz (did you mean 'test-clean'?)"),
        (
            {"LibriSpeech__test-clean__61__70968__61-70968.trans.txt": b"61-70968-0009 GONE\n"},
            "test-clean",
            "corpus 'x': utterance '61-70968-0009' of split 'test-clean' has a transcript, but no audio",
        ),
        (
            {"LibriSpeech__test-clean__61__70969__61-70969.trans.txt": b"61-70968-0000 AGAIN\n"},
            "test-clean",
            "corpus 'x': utterance '61-70968-0000' is there twice, the second time in "
            "LibriSpeech/test-clean/61/70969/61-70969.trans.txt",
        ),
        (
            {"test-clean__61__70968__61-70968-0000.flac": b"the same, elsewhere"},
            "test-clean",
            "corpus 'x': utterance '61-70968-0000' is there twice, the second time in "
            "test-clean/61/70968/61-70968-0000.flac",
        ),
        (
            {"LibriSpeech__test-clean__61__70968__62-70968-0000.flac": b"astray"},
            "test-clean",
            "corpus 'x': LibriSpeech/test-clean/61/70968/62-70968-0000.flac is not named "
            "<speaker>-<chapter>-<number>.flac as its folder asks for",
        ),
        (
            {"LibriSpeech__test-clean__61__70968__61-70968.trans.txt": b"61-70968-0000 CAF\xc9\n"},
            "test-clean",
            "corpus 'x': LibriSpeech/test-clean/61/70968/61-70968.trans.txt is not UTF-8 text",
        ),
    ],
)
def test_broken_librispeech_is_one_sentence(
    changes: dict[str, bytes], split: str, sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as error:
        librispeech(tmp_path, split, **changes)
    assert str(error.value) == sentence.replace("TMP", str(tmp_path))


@pytest.mark.parametrize(
    ("changes", "split", "sentence"),
    [
        ({}, "card", "corpus 'x': no split 'card' in TMP/pkg-1.0.tar.gz (did you mean 'cards'?)"),
        (
            {"cards.fileids": b"001\n002\n003\n"},
            "cards",
            "corpus 'x': utterance '003' of split 'cards' is listed, but its .wav is not there",
        ),
        (
            {"cards.fileids": b"001\n002\n001\n"},
            "cards",
            "corpus 'x': utterance '001' is there twice, the second time in the fileids of cards",
        ),
        (
            {"cards.fileids": b"001\n"},
            "cards",
            "corpus 'x': utterance '002' of split 'cards' has a transcript, but no audio",
        ),
        (
            {"cards.transcription": b"ten of clubs\n"},
            "cards",
            "corpus 'x': pkg-1.0/test/data/cards/cards.transcription has the line 'ten of clubs', "
            "but lines look like '<s> text </s> (id)'",
        ),
    ],
)
def test_broken_sphinx_is_one_sentence(changes: dict[str, bytes], split: str, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        sphinx(tmp_path, split, {f"pkg-1.0/test/data/cards/{name}": data for name, data in changes.items()})
    assert str(error.value) == sentence.replace("TMP", str(tmp_path))


def test_a_path_that_is_not_in_the_package_is_one_sentence(tmp_path: Path) -> None:
    path = archive(tmp_path / "pkg-1.0.tar.gz", SPHINX)
    with pytest.raises(UserError) as error:
        layouts.sphinx("corpus 'x'", [path], "pkg-2.0/test/data", "cards")
    assert str(error.value) == (
        f"corpus 'x': no utterances are where they should be in {path}; correct the corpus's path"
    )


def test_a_missing_archive_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        layouts.librispeech("corpus 'x'", [tmp_path / "gone.tar.gz"], "test-clean")
    assert str(error.value) == f"{tmp_path}/gone.tar.gz is not here; run 'python -m pipeline.download' first"


def test_a_cut_archive_is_one_sentence(tmp_path: Path) -> None:
    path = archive(tmp_path / "x.tar.gz", LIBRISPEECH)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(
        UserError, match=r"x.tar.gz cannot be read \(.+\); delete it and run 'python -m pipeline.download' again"
    ):
        layouts.librispeech("corpus 'x'", [path], "test-clean")


def test_what_is_no_archive_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "x.tar.gz").write_bytes(b"<html>sign in to go on</html>" * 100)
    with pytest.raises(UserError, match=r"x.tar.gz cannot be read \(.+\); delete it and run"):
        layouts.librispeech("corpus 'x'", [tmp_path / "x.tar.gz"], "test-clean")
