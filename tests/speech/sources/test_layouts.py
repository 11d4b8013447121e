import tarfile
import time
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


@pytest.mark.parametrize(
    ("transcript", "first", "second"),
    [
        pytest.param("\ufeff61-70968-0000 A\n61-70968-0001 B\n", "A", "B", id="byte-order-mark"),
        pytest.param("61-70968-0000\tA\n61-70968-0001  \t B\n", "A", "B", id="tab"),
        pytest.param("61-70968-0000\u00a0A\n61-70968-0001\u2003B\n", "A", "B", id="no-break-space"),
        pytest.param("61-70968-0000 A\u0085B\n61-70968-0001 C\u2028D\n", "A\u0085B", "C\u2028D", id="separators"),
        pytest.param("61-70968-0000 A\x0cB\n61-70968-0001 C\rD\n", "A\x0cB", "C\rD", id="form-feed"),
        pytest.param("\r\n61-70968-0000 A\r\n\r\n  61-70968-0001 B \r\n", "A", "B", id="windows"),
        pytest.param("61-70968-0000 A  \u00a0 B\n61-70968-0001 C\tD", "A  \u00a0 B", "C\tD", id="raw-inside"),
        pytest.param("61-70968-0000\n61-70968-0001 \n", "", "", id="no-text"),
    ],
)
def test_transcripts_are_read_as_editors_write_them(transcript: str, first: str, second: str, tmp_path: Path) -> None:
    """Transcripts made on Windows or copied from a web page: the first id is unknown, or a text is cut in two."""
    changes = {"LibriSpeech__test-clean__61__70968__61-70968.trans.txt": transcript.encode()}
    found = librispeech(tmp_path, "test-clean", **changes)
    assert (found["61-70968-0000"].text, found["61-70968-0001"].text) == (first, second)


def test_sphinx_files_are_read_as_editors_write_them(tmp_path: Path) -> None:
    """The same in CMU Sphinx's files."""
    changes = {
        "cards.fileids": "\ufeff001\r\n\r\n002\r\n",
        "cards.transcription": "\ufeff<s> ten\u2028of </s>\t(001)\r\nfive\u0085five (002)",
    }
    files = {f"pkg-1.0/test/data/cards/{name}": text.encode() for name, text in changes.items()}
    assert [recording.text for recording in sphinx(tmp_path, "cards", files).values()] == [
        "ten\u2028of",
        "five\u0085five",
    ]


def test_audio_may_have_any_of_the_endings_in_any_case(tmp_path: Path) -> None:
    """Recorders and Windows write .WAV; such files were left out without a word."""
    folder = "test/1/2"
    names = [f"{folder}/1-2-{n:04}{kind}" for n, kind in enumerate([".flac", ".FLAC", ".wav", ".Wav", ".mp3", ".ogg"])]
    members = dict.fromkeys(names, b"") | {f"{folder}/1-2.TRANS.TXT": b"1-2-0003 THREE\n"}
    found = layouts.librispeech("corpus 'x'", [archive(tmp_path / "x.tar", members, "w")], "test")
    assert [recording.member for recording in found.values()] == names
    assert [recording.text for recording in found.values()] == [None, None, None, "THREE", None, None]
    renamed = {name.replace("001.wav", "001.WAV"): data for name, data in SPHINX.items()}
    path = archive(tmp_path / "pkg.tar", renamed, "w")
    assert layouts.sphinx("corpus 'x'", [path], "pkg-1.0/test/data", "cards")["001"].member.endswith("001.WAV")


@pytest.mark.parametrize("packed", ["tar", "zip"])
def test_names_that_begin_with_a_dot_are_ignored(packed: str, tmp_path: Path) -> None:
    """macOS puts ._files and .folders into whatever it copies or packs; their names end as the real ones do."""
    hidden = {
        "LibriSpeech/test-clean/61/70968/._61-70968-0000.flac": b"Mac OS X",
        "LibriSpeech/test-clean/61/70968/._61-70968.trans.txt": b"\0\5\x16\7\xff",
        "LibriSpeech/test-clean/61/.Trash/61-70968-0009.flac": b"",
        "LibriSpeech/.test-clean/61/70968/61-70968-0009.flac": b"",
        "__MACOSX/test-clean/61/70968/._61-70968-0000.flac": b"",
    }
    members = hidden | {f"./{name}": data for name, data in LIBRISPEECH.items()}
    path = archive(tmp_path / "x.tar", members, "w")
    if packed == "zip":
        with zipfile.ZipFile(path, "w") as file:
            for name, data in members.items():
                file.writestr(name, data)
    assert layouts.librispeech("corpus 'x'", [path], "test-clean") == librispeech(tmp_path)


def test_an_id_matches_in_either_form_of_unicode(tmp_path: Path) -> None:
    """macOS names files with letters and accents apart; they look alike, but were not found."""
    apart, together = "1-2-cafe\u0301", "1-2-caf\u00e9"
    members = {f"test/1/2/{apart}.flac": b"", "test/1/2/1-2.trans.txt": f"{together} WORDS\n".encode()}
    found = layouts.librispeech("corpus 'x'", [archive(tmp_path / "x.tar", members, "w")], "test")
    assert found == {together: Recording(together, "1", "WORDS", f"test/1/2/{apart}.flac")}


@pytest.mark.parametrize("number", ["0000.take 2", "0000.v1", "x'y\"z", "#%&+,;=@[]{}~", "\u4e00", "0000"])
def test_ids_may_hold_what_file_names_may(number: str, tmp_path: Path) -> None:
    """File names of real recordings are not numbers only."""
    members = {f"test/1/2/1-2-{number}.wav": b""}
    found = layouts.librispeech("corpus 'x'", [archive(tmp_path / "x.tar", members, "w")], "test")
    assert list(found) == [f"1-2-{number}"]


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
            "corpus 'x': utterance '61-70968-0000' is there twice, in "
            "LibriSpeech/test-clean/61/70968/61-70968.trans.txt:1 and in "
            "LibriSpeech/test-clean/61/70969/61-70969.trans.txt:1",
        ),
        (
            {"test-clean__61__70968__61-70968-0000.flac": b"the same, elsewhere"},
            "test-clean",
            "corpus 'x': utterance '61-70968-0000' is there twice, in "
            "LibriSpeech/test-clean/61/70968/61-70968-0000.flac and in test-clean/61/70968/61-70968-0000.flac",
        ),
        (
            {"LibriSpeech__test-clean__61__70968__61-70968-0000.wav": b"the same, converted"},
            "test-clean",
            "corpus 'x': utterance '61-70968-0000' is there twice, in "
            "LibriSpeech/test-clean/61/70968/61-70968-0000.flac and in "
            "LibriSpeech/test-clean/61/70968/61-70968-0000.wav",
        ),
        (
            {"LibriSpeech__test-clean__61__61-70968-0009.WAV": b"without a chapter"},
            "test-clean",
            "corpus 'x': LibriSpeech/test-clean/61/61-70968-0009.WAV is not where it should be, "
            "in <split>/<speaker>/<chapter>/",
        ),
        (
            {"LibriSpeech__test-clean__61__70968__more__61-70968.trans.txt": b""},
            "test-clean",
            "corpus 'x': LibriSpeech/test-clean/61/70968/more/61-70968.trans.txt is not where it should be, "
            "in <split>/<speaker>/<chapter>/",
        ),
        (
            {"LibriSpeech__test-clean__61__70968__61-70968-\udce9.flac": b"named in Latin-1"},
            "test-clean",
            "corpus 'x': the id '61-70968-\\udce9' in 'LibriSpeech/test-clean/61/70968/61-70968-\\udce9.flac' has a "
            "character that is not printable",
        ),
        (
            {"LibriSpeech__test-clean__61__70968__61-70968.trans.txt": b"61-70968-0000 A\n\xef\xbb\xbf61-70968-0001 B"},
            "test-clean",
            "corpus 'x': the id '\\ufeff61-70968-0001' in 'LibriSpeech/test-clean/61/70968/61-70968.trans.txt:2' has a "
            "character that is not printable",
        ),
        (
            {"LibriSpeech__test-clean__61__70968__61-70968.trans.txt": "61-70968-0000 A".encode("utf-16")},
            "test-clean",
            "corpus 'x': LibriSpeech/test-clean/61/70968/61-70968.trans.txt is not UTF-8 text",
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
            {"001.flac": b"one again"},
            "cards",
            "corpus 'x': utterance '001' is there twice, in pkg-1.0/test/data/cards/001.wav and in "
            "pkg-1.0/test/data/cards/001.flac",
        ),
        (
            {"cards.fileids": b"001\n002\n001\n"},
            "cards",
            "corpus 'x': utterance '001' is there twice, in pkg-1.0/test/data/cards/cards.fileids:1 and in "
            "pkg-1.0/test/data/cards/cards.fileids:3",
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


@pytest.mark.parametrize("data", [b"<html>sign in to go on</html>" * 100, b"", b"\x1f\x8b", b"\x1f\x8b\x08"])
def test_what_is_no_archive_is_one_sentence(data: bytes, tmp_path: Path) -> None:
    """The page of a hotel's network, or a download cut in its first bytes, of which Python's tarfile is no judge."""
    (tmp_path / "x.tar.gz").write_bytes(data)
    with pytest.raises(UserError, match=r"x.tar.gz cannot be read \(.+\); delete it and run"):
        layouts.librispeech("corpus 'x'", [tmp_path / "x.tar.gz"], "test-clean")


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, b"?", tarfile.GNUTYPE_SPARSE])
def test_a_member_that_announces_more_than_there_is_is_one_sentence(kind: bytes, tmp_path: Path) -> None:
    """A damaged header says 2^62 bytes: tarfile seeks for them beyond the end, and the program hangs."""
    member = tarfile.TarInfo("test-clean/1/2/1-2-0000.flac")
    member.size, member.type = 2**62, kind
    (tmp_path / "x.tar").write_bytes(member.tobuf(tarfile.GNU_FORMAT) + bytes(10_240))
    with pytest.raises(UserError, match=r"x.tar cannot be read \(.+\); delete it and run"):
        layouts.librispeech("corpus 'x'", [tmp_path / "x.tar"], "test-clean")


def test_a_long_line_takes_no_longer_than_it_must(tmp_path: Path) -> None:
    """A table padded with spaces, or another file, in the place of a transcription: a pattern tries for minutes."""
    text = f"<s> ten {' ' * 200_000} of clubs </s> (001)\n{' x' * 100_000} (002"
    started = time.perf_counter()
    with pytest.raises(UserError, match=r"has the line 'x x .*', but lines look like '<s> text </s> \(id\)'"):
        sphinx(tmp_path, "cards", {"pkg-1.0/test/data/cards/cards.transcription": text.encode()})
    assert time.perf_counter() - started < 5
