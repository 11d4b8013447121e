import io
import itertools
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import soundfile

from pipeline import prepare
from pipeline.core import params
from pipeline.core.errors import UserError
from pipeline.speech import corpus
from tests.conftest import ROOT, Packages, Project, archive, encode, noise

IDS = [f"{speaker}-1-{number:04}" for speaker in ("a", "b", "c") for number in range(4)]
SPEAKERS = {utterance: utterance[0] for utterance in IDS} | {"d-1-0000": "d"}


def make(project: Project, members: dict[str, bytes], **changes: object) -> None:
    """Set up a corpus whose archive holds `members`, and a calibration split of two silent-text utterances."""
    archive(Path("data/raw/librispeech/test-clean.tar.gz"), members)
    archive(
        Path("data/raw/librispeech/train.tar.gz"),
        {f"LibriSpeech/train/9/1/9-1-000{n}.flac": encode(noise(0.5, n)) for n in range(2)},
    )
    project.set(
        corpus="librispeech",
        corpora__librispeech__splits=["test-clean"],
        corpora__librispeech__utterances={},
        calibration__corpus="librispeech",
        calibration__split="train",
        calibration__utterances=2,
    )
    project.set(**changes)


def utterances(*lengths: float) -> dict[str, bytes]:
    """Make an archive's members: utterances of these seconds in the reverse order of their ids, transcripts last."""
    folder = "LibriSpeech/test-clean/1/2"
    ids = [f"1-2-{n:04}" for n in range(len(lengths))]
    audio = {f"{folder}/{name}.flac": encode(noise(s, n)) for n, (name, s) in enumerate(zip(ids, lengths, strict=True))}
    texts = "".join(f"{name} THE WORDS OF {name}\n" for name in ids)
    return dict(reversed(audio.items())) | {f"{folder}/1-2.trans.txt": texts.encode()}


def test_select_takes_all_without_a_limit() -> None:
    assert prepare.select(SPEAKERS, None, seed=0) == [*IDS, "d-1-0000"]
    assert prepare.select(SPEAKERS, 99, seed=0) == [*IDS, "d-1-0000"]
    assert prepare.select({}, 3, seed=0) == []


@pytest.mark.parametrize(
    ("limit", "share"),
    [(1, [1]), (4, [1, 1, 1, 1]), (7, [1, 2, 2, 2]), (10, [1, 3, 3, 3]), (12, [1, 3, 4, 4]), (13, [1, 4, 4, 4])],
)
def test_select_gives_each_speaker_the_same_share(limit: int, share: list[int]) -> None:
    chosen = prepare.select(SPEAKERS, limit, seed=0)
    assert chosen == sorted(set(chosen))
    assert (
        sorted(sum(SPEAKERS[name] == speaker for name in chosen) for speaker in {SPEAKERS[n] for n in chosen}) == share
    )


def test_select_is_the_same_everywhere_and_differs_by_seed() -> None:
    assert prepare.select(SPEAKERS, 4, seed=0) == ["a-1-0001", "b-1-0002", "c-1-0001", "d-1-0000"]
    assert prepare.select(dict(reversed(SPEAKERS.items())), 4, seed=0) == prepare.select(SPEAKERS, 4, seed=0)
    assert len({tuple(prepare.select(SPEAKERS, 4, seed)) for seed in range(20)}) > 5


def test_a_larger_limit_only_adds() -> None:
    samples = [set(prepare.select(SPEAKERS, limit, seed=3)) for limit in range(1, 14)]
    assert all(small < large for small, large in itertools.pairwise(samples))


def test_utterances_come_out_sorted_with_their_audio_and_text(tmp_project: Project) -> None:
    members = utterances(1.5, 1, 2.25)
    make(tmp_project, members)
    prepare.main()
    assert list(corpus.read(corpus.CORPUS)) == [
        corpus.Utterance(
            id=f"1-2-000{n}",
            split="test-clean",
            speaker="1",
            duration=seconds,
            text=f"THE WORDS OF 1-2-000{n}",
            flac=members[f"LibriSpeech/test-clean/1/2/1-2-000{n}.flac"],
        )
        for n, seconds in enumerate((1.5, 1.0, 2.25))
    ]
    calibration = list(corpus.read(corpus.CALIBRATION))
    assert [(u.id, u.split, u.text, u.duration) for u in calibration] == [
        ("9-1-0000", "train", "", 0.5),
        ("9-1-0001", "train", "", 0.5),
    ]
    left = sorted(path.as_posix() for path in Path("data").rglob("*") if path.is_file() and "raw" not in path.parts)
    assert left == ["data/calibration/00000.parquet", "data/corpus/test-clean/00000.parquet"]


def test_what_was_converted_stands_in_every_shard_and_is_told(
    tmp_project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rates measured on telephone speech, reported as those of studio recordings: nobody saw the conversion."""
    folder, sound = "LibriSpeech/test-clean/1/2", noise(1)
    stereo = np.stack([sound, sound], axis=1)
    members = {
        f"{folder}/1-2-0000.flac": encode(sound),
        f"{folder}/1-2-0001.WAV": encode(sound, "WAV", 8_000),
        f"{folder}/1-2-0002.mp3": encode(stereo, "MP3", 44_100, "MPEG_LAYER_III"),
        f"{folder}/1-2-0003.wav": encode(stereo, "WAV"),
        f"{folder}/._1-2-0003.wav": b"Mac OS X",
        f"{folder}/1-2.trans.txt": "\ufeff1-2-0000\tA\r\n1-2-0001 B\r\n1-2-0002 C\u2028D\r\n1-2-0003 E".encode(),
    }
    monkeypatch.setattr(prepare, "SHARD_SECONDS", 3)
    make(tmp_project, members)
    prepare.main()
    found = list(corpus.read(corpus.CORPUS))
    assert [(u.id, u.duration, u.text) for u in found] == [
        ("1-2-0000", 1.0, "A"),
        ("1-2-0001", 2.0, "B"),
        ("1-2-0002", 5805 / 16000, "C\u2028D"),
        ("1-2-0003", 1.0, "E"),
    ]
    assert found[0].flac == members[f"{folder}/1-2-0000.flac"]
    assert len(corpus.shards(corpus.CORPUS)) == 2
    assert corpus.conversions(corpus.CORPUS) == {"test-clean": {"resampled": 2, "mixed_down": 2}}
    assert corpus.conversions(corpus.CALIBRATION) == {"calibration": {"resampled": 0, "mixed_down": 0}}
    assert corpus.split_utterances(corpus.CORPUS) == {"test-clean": 4}
    assert capsys.readouterr().out == (
        "data/corpus/test-clean: 4 utterances, 2 resampled to 16 kHz, 2 mixed down\ndata/calibration: 2 utterances\n"
    )


def test_converted_calibration_is_told(tmp_project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    """The same, of the speech that calibrates."""
    make(tmp_project, utterances(1), calibration__utterances=1)
    loud = {"LibriSpeech/train/9/1/9-1-0000.wav": encode(noise(1), "WAV", 48_000)}
    archive(Path("data/raw/librispeech/train.tar.gz"), loud)
    prepare.main()
    assert capsys.readouterr().out.splitlines()[-1] == "data/calibration: 1 utterances, 1 resampled to 16 kHz"


def test_speech_that_needs_no_conversion_imports_no_converter(tmp_project: Project) -> None:
    """A stage that starts slowly for what it does not use."""
    make(tmp_project, utterances(1))
    said = "import sys; from pipeline import prepare; prepare.main(); print('soxr' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", said], capture_output=True, text=True, env={"PYTHONPATH": str(ROOT)})
    assert ended.stdout.splitlines()[-1] == "False"


def test_a_shard_holds_about_15_minutes(tmp_project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "SHARD_SECONDS", 2)
    make(tmp_project, utterances(1, 1, 0.5, 3, 1))
    prepare.main()
    shards = corpus.shards(corpus.CORPUS)
    assert [path.name for path in shards] == ["00000.parquet", "00001.parquet", "00002.parquet", "00003.parquet"]
    assert [[u.id[-1] for u in corpus.read_shard(path)] for path in shards] == [["0", "1"], ["2"], ["3"], ["4"]]


def test_two_runs_write_the_same_bytes_and_replace_what_was_there(tmp_project: Project) -> None:
    make(tmp_project, utterances(1, 1))
    Path("data/corpus/test-other").mkdir(parents=True)
    Path("data/corpus/test-other/00000.parquet").write_bytes(b"of the last parameters")
    prepare.main()
    first = {path: path.read_bytes() for path in Path("data").rglob("*.parquet")}
    prepare.main()
    assert {path: path.read_bytes() for path in Path("data").rglob("*.parquet")} == first
    assert sorted(map(str, first)) == ["data/calibration/00000.parquet", "data/corpus/test-clean/00000.parquet"]


def test_the_limit_and_the_calibration_choose(tmp_project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    make(tmp_project, utterances(1, 1, 1), corpora__librispeech__limit=2, calibration__utterances=1)
    prepare.main()
    assert [sum(map(corpus.count, corpus.shards(folder))) for folder in (corpus.CORPUS, corpus.CALIBRATION)] == [2, 1]
    assert corpus.split_utterances(corpus.CORPUS) == {"test-clean": 3}
    assert capsys.readouterr().out == (
        "data/corpus/test-clean: 2 utterances of 3, evenly by speaker\ndata/calibration: 1 utterances\n"
    )


def test_a_split_has_as_many_utterances_as_were_published(tmp_project: Project) -> None:
    make(tmp_project, utterances(0.5, 0.5), corpora__librispeech__utterances={"test-clean": 2, "train": 3})
    tmp_project.set(corpora__librispeech__files={"test-clean.tar.gz": "0" * 64, "train.tar.gz": "0" * 64})
    with pytest.raises(UserError) as error:
        prepare.main()
    assert str(error.value) == (
        "corpus 'librispeech': split 'train' holds 2 utterances, but 3 were published; "
        "correct corpora.librispeech.utterances if that is not so"
    )
    tmp_project.set(corpora__librispeech__utterances={"test-clean": 2, "train": 2})
    prepare.main()
    tmp_project.set(corpora__librispeech__utterances={"test-clean": 2620})
    with pytest.raises(UserError, match="split 'test-clean' holds 2 utterances, but 2,620 were published"):
        prepare.main()


def test_datasets_opens_the_shards_with_audio(tmp_project: Project, tmp_path: Path) -> None:
    import datasets

    make(tmp_project, utterances(1, 2))
    prepare.main()
    table = datasets.load_dataset(
        "parquet", data_files="data/corpus/test-clean/*.parquet", split="train", cache_dir=str(tmp_path / "cache")
    )
    assert table.features == datasets.Features(
        {
            "id": datasets.Value("string"),
            "split": datasets.Value("string"),
            "speaker": datasets.Value("string"),
            "duration": datasets.Value("float64"),
            "text": datasets.Value("string"),
            "audio": datasets.Audio(sampling_rate=16000),
        }
    )
    row = table.cast_column("audio", datasets.Audio(decode=False))[1]
    assert row["audio"]["path"] == "1-2-0001.flac"
    assert soundfile.info(io.BytesIO(row["audio"]["bytes"])).frames == 32000


def test_row_groups_are_small(tmp_project: Project) -> None:
    make(tmp_project, utterances(*[0.1] * 20))
    prepare.main()
    assert pyarrow.parquet.read_metadata("data/corpus/test-clean/00000.parquet").num_row_groups == 2


@pytest.mark.parametrize(
    ("audio", "sentence"),
    [
        (
            encode(noise(1))[:-100],
            "utterance '1-2-0001' (LibriSpeech/test-clean/1/2/1-2-0001.flac): the audio cannot be decoded, "
            "it is damaged or cut short (Error : flac decoder lost sync)",
        ),
        (
            b"<html>sign in to go on</html>",
            "utterance '1-2-0001' (LibriSpeech/test-clean/1/2/1-2-0001.flac): the audio cannot be decoded, "
            "it is damaged or cut short (Format not recognised)",
        ),
    ],
    ids=["cut-short", "no-audio"],
)
def test_a_broken_utterance_is_named_and_nothing_is_replaced(audio: bytes, sentence: str, tmp_project: Project) -> None:
    members = utterances(1, 1)
    make(tmp_project, members)
    prepare.main()
    before = {path: path.read_bytes() for path in Path("data").rglob("*") if path.is_file() and path.suffix != ".gz"}
    make(tmp_project, members | {"LibriSpeech/test-clean/1/2/1-2-0001.flac": audio})
    with pytest.raises(UserError) as error:
        prepare.main()
    assert str(error.value) == sentence
    after = {path: path.read_bytes() for path in Path("data").rglob("*") if path.is_file() and path.suffix != ".gz"}
    assert after == before


def test_audio_without_a_transcript_cannot_be_scored(tmp_project: Project) -> None:
    members = utterances(1, 1)
    make(tmp_project, members | {"LibriSpeech/test-clean/1/2/1-2.trans.txt": b"1-2-0000 WORDS\n1-2-0001\n"})
    with pytest.raises(UserError) as error:
        prepare.main()
    assert str(error.value) == (
        "corpus 'librispeech': utterance '1-2-0001' of split 'test-clean' has audio, but no transcript "
        "(1 of 2 have none); a split without transcripts cannot be scored"
    )


def test_an_empty_split_is_one_sentence(tmp_project: Project) -> None:
    make(tmp_project, {"LibriSpeech/test-clean/1/2/1-2.trans.txt": b""})
    with pytest.raises(UserError) as error:
        prepare.main()
    assert str(error.value) == "corpus 'librispeech': split 'test-clean' holds no utterances"


def test_more_calibration_than_there_is_is_one_sentence(tmp_project: Project) -> None:
    make(tmp_project, utterances(1), calibration__utterances=3)
    with pytest.raises(UserError) as error:
        prepare.main()
    assert str(error.value) == (
        "calibration: 3 utterances are asked for, but split 'train' of corpus 'librispeech' has 2; "
        "lower calibration.utterances"
    )


def test_scored_speech_does_not_calibrate_by_another_name(tmp_project: Project) -> None:
    make(tmp_project, utterances(1), calibration__utterances=1)
    archive(
        Path("data/raw/librispeech/train.tar.gz"),
        {name.replace("test-clean", "train"): data for name, data in utterances(1).items()},
    )
    with pytest.raises(UserError) as error:
        prepare.main()
    assert str(error.value) == (
        "calibration: utterance '1-2-0000' is one that is scored; calibrate on another split, "
        "or the scores would be tuned on their own audio"
    )


@pytest.mark.usefixtures("tmp_project")
def test_without_a_download_the_command_ends_with_one_sentence() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "pipeline.prepare"], capture_output=True, text=True, env={"PYTHONPATH": str(ROOT)}
    )
    assert (ended.returncode, ended.stderr) == (
        1,
        "prepare: data/raw/sample/pocketsphinx-5.1.1.tar.gz is not here; run 'python -m pipeline.download' first\n",
    )


def test_memory_does_not_grow_with_the_corpus(tmp_project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    import tracemalloc

    def peak(count: int) -> int:
        make(tmp_project, utterances(*[5] * count))
        tracemalloc.start()
        prepare.main()
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    monkeypatch.setattr(prepare, "SHARD_SECONDS", 20)
    peak(2)  # imports
    assert peak(64) < peak(8) + 1_000_000  # the audio of 56 more utterances is over 7 MB


@pytest.mark.usefixtures("tmp_project")
def test_the_default_sample_is_prepared_from_its_package(packages: Packages) -> None:
    (sdist,) = packages("sample", params.read().corpora["sample"].files)
    Path("data/raw/sample").mkdir(parents=True)
    Path("data/raw/sample", sdist.name).symlink_to(sdist)
    prepare.main()
    prefix = "sense_and_sensibility_01_austen_64kb"
    assert [(u.id, u.speaker, u.duration, u.text) for u in corpus.read(corpus.CORPUS)] == [
        (
            f"{prefix}-0870",
            prefix,
            7.1,
            "and mister john dashwood had then leisure to consider how much there might be prudently in his power to "
            "do for them",
        ),
        (f"{prefix}-0880", prefix, 2.99, "he was not an ill disposed young man"),
        (
            f"{prefix}-0890",
            prefix,
            5.3,
            "unless to be rather cold hearted and rather selfish is to be ill disposed",
        ),
        (
            f"{prefix}-0920",
            prefix,
            6.05,
            "had he married a more a amiable woman he might have been made still more respectable than he was",
        ),
        (f"{prefix}-0930", prefix, 3.29, "he might even have been made amiable himself"),
    ]
    assert [(u.id, u.text) for u in corpus.read(corpus.CALIBRATION)] == [
        ("001", "ten of clubs"),
        ("002", "four queen of clubs"),
        ("003", "seven of clubs"),
        ("004", "five five"),
        ("005", "eight of spades four of clubs seven of hearts"),
    ]
    with tarfile.open(sdist) as tar:
        wave = tar.extractfile(f"pocketsphinx-5.1.1/test/data/librivox/{prefix}-0880.wav")
        assert wave is not None
        original, _ = soundfile.read(io.BytesIO(wave.read()), dtype="int16")
    flac = next(u.flac for u in corpus.read(corpus.CORPUS) if u.id.endswith("0880"))
    np.testing.assert_array_equal(soundfile.read(io.BytesIO(flac), dtype="int16")[0], original)
