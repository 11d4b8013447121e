import io
import json
import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from pipeline import agree, compare, download, plot, prepare, score
from pipeline.core import files, params
from pipeline.core.errors import UserError
from pipeline.core.params import Corpus
from pipeline.results import __main__ as results
from pipeline.results import tables
from pipeline.speech import corpus, sources
from pipeline.speech.sources import generated
from tests import made
from tests.conftest import Project, encode, noise
from tests.results.test_comparison import agreements

MADE = Corpus(source="generated", splits=["silence", "noise"], limit=12)


def flacs(split: str, count: int, seed: int = 0) -> dict[str, bytes]:
    """Return the audio of a split by id."""
    made = generated.members(split, count, seed)
    return {Path(name).stem: data for name, data in made if name.endswith(".flac")}


def decoded(split: str, count: int) -> dict[str, NDArray[np.int16]]:
    """Return the samples of a split's utterances by id, after checking their format."""
    sounds = {}
    for name, data in flacs(split, count).items():
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            assert (file.format, file.subtype, file.samplerate, file.channels) == ("FLAC", "PCM_16", 16_000, 1)
            sounds[name] = file.read(dtype="int16")
    return sounds


def root_mean_square(samples: NDArray[np.int16]) -> float:
    return math.sqrt(np.mean(samples.astype(np.float64) ** 2))


def spectrum(kind: str) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """Return frequencies in Hz and the power at each, of a sound of ten seconds or more."""
    seeds = (np.random.default_rng(seed) for seed in range(100))
    samples = next(made for rng in seeds if len(made := generated.sound(kind, 25.0, rng)) > 160_000)
    return np.fft.rfftfreq(len(samples), 1 / 16_000), np.abs(np.fft.rfft(samples)) ** 2


def test_every_run_writes_the_same_bytes_whatever_numpy_was_seeded_with(tmp_path: Path) -> None:
    digests = []
    for seed, folder in enumerate((tmp_path / "a", tmp_path / "b")):
        np.random.seed(seed)
        generated.download("made", MADE, ["silence", "noise"], folder)
        digests.append([files.sha256(folder / f"{split}.tar") for split in ("silence", "noise")])
    assert digests[0] == digests[1]


def test_another_seed_gives_other_sound() -> None:
    first, second = flacs("noise", 12, seed=0), flacs("noise", 12, seed=1)
    assert first.keys() == second.keys()
    assert [name for name in first if first[name] == second[name]] == []


def test_splits_share_no_sound_and_utterances_none_with_each_other() -> None:
    lengths = {len(samples) for split in MADE.splits for samples in decoded(split, 12).values()}
    assert len(lengths) == 24


def test_a_larger_limit_only_adds() -> None:
    few, many = flacs("silence", 8), flacs("silence", 12)
    assert few.items() < many.items()
    assert (len(few), len(many)) == (8, 12)


@pytest.mark.parametrize("split", ["silence", "noise"])
def test_sounds_last_2_to_30_seconds_in_all_and_take_turns(split: str) -> None:
    sounds = decoded(split, 36)
    lengths = [len(samples) / 16_000 for samples in sounds.values()]
    assert min(lengths) >= 2
    assert max(lengths) <= 30
    assert sum(lengths) == pytest.approx(36 * 16, rel=0.2)
    chapters = [name.rsplit("-", 1)[0] for name in sounds]
    counts = {chapter: chapters.count(chapter) for chapter in chapters}
    assert set(counts.values()) == {36 // len(generated.SOUNDS[split])}


def test_levels_are_those_of_the_ids() -> None:
    for name, samples in (decoded("silence", 12) | decoded("noise", 12)).items():
        kind, level, _ = name.split("-")
        if kind == "digital":
            assert level == "inf"
            assert not samples.any()
        elif kind == "dither":
            # The power of triangular noise of one bit, 1/6, and of rounding, 1/12: 1/4 (in bits).
            assert set(np.unique(samples)) == {-1, 0, 1}
            assert root_mean_square(samples) == pytest.approx(0.5, rel=0.02)
        else:
            assert 20 * math.log10(root_mean_square(samples) / 2**15) == pytest.approx(-float(level), abs=0.15)
            assert np.abs(samples.astype(int)).max() < 2**15 - 1  # nothing is clipped


@pytest.mark.parametrize(("kind", "fall"), [("white", 0), ("pink", 3), ("brown", 6), ("hiss", 0)])
def test_noise_falls_by_its_colour_an_octave(kind: str, fall: float) -> None:
    frequencies, power = spectrum(kind)
    octaves = [100 * 2**n for n in range(6)]
    means = [power[(frequencies >= low) & (frequencies < 2 * low)].mean() for low in octaves]
    for low, high in pairwise(means):
        assert 10 * math.log10(low / high) == pytest.approx(10 * math.log10(2) * fall / 3, abs=0.8)


def test_hum_is_the_mains_and_its_harmonics() -> None:
    frequencies, power = spectrum("hum")
    mains = frequencies[power.argmax()]
    assert min(abs(mains - 50), abs(mains - 60)) < 0.2
    near = np.abs(frequencies / mains - np.round(frequencies / mains)) < 0.05
    assert power[near & (frequencies > 40) & (frequencies < 650)].sum() > 0.99 * power.sum()


def test_it_is_read_as_librispeech_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    sources.download("made", MADE, ["noise"])
    recordings = sources.recordings("made", MADE, "noise")
    assert len(recordings) == 12
    assert {recording.text for recording in recordings.values()} == {""}
    assert {recording.speaker for recording in recordings.values()} == {"white", "pink", "brown", "hum"}
    assert recordings["pink-45-0001"].member == "noise/pink/45/pink-45-0001.flac"


def test_another_split_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        generated.download("made", MADE, ["silense"], tmp_path)
    assert str(error.value) == "corpus 'made': no split 'silense' can be generated (did you mean 'silence'?)"
    assert list(tmp_path.iterdir()) == []


def test_the_way_to_metrics_table_and_figures(tmp_project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    """All stages but those that need a model: fp32 writes nothing, hqq a word in each hiss, the candidate nothing."""
    speech = tmp_project.root / "speech"
    (speech / "dev/1/2").mkdir(parents=True)
    (speech / "dev/1/2/1-2-0000.flac").write_bytes(encode(noise(1)))
    tmp_project.set(
        corpus="silence",
        variants={"fp32": {"backend": "none"}, "hqq-int4": {"backend": "hqq", "bits": 4}},
        corpora__speech={"source": "directory", "path": str(speech), "splits": ["test"]},
        calibration={"corpus": "speech", "split": "dev", "utterances": 1},
    )
    download.main()
    prepare.main()
    utterances = list(corpus.read(corpus.CORPUS))
    assert len(utterances) == 72
    for name in ("fp32", "hqq-int4", "candidate"):
        lines = [
            {key: getattr(utterance, key) for key in ("id", "split", "speaker", "duration", "text")}
            | {"pred_text": "Thank you." if (name, utterance.speaker) == ("hqq-int4", "hiss") else ""}
            for utterance in utterances
        ]
        files.write_text(Path(f"reports/transcripts/{name}.jsonl"), "".join(f"{json.dumps(line)}\n" for line in lines))
        score.main(name)
        scored = json.loads(Path(f"reports/scores/{name}.json").read_text())
        files.write_json(agree.file(name), agreements(scored))
        timed = made.timings(params.read().variant(name), 1_000_000, corpus.split_utterances(corpus.CORPUS))
        files.write_json(Path(f"reports/timings/{name}.json"), timed)
    compare.main()
    plot.main()
    capsys.readouterr()
    results.main()

    minutes = sum(utterance.duration for utterance in utterances if utterance.split == "silence") / 60
    metrics = json.loads(compare.METRICS.read_text())
    assert list(metrics["hqq-int4"]) == ["size_mb", "size_reduction", "noise", "silence"]
    assert list(metrics["hqq-int4"]["noise"].values()) == [0.0] * 8
    silence = metrics["hqq-int4"]["silence"]
    assert silence["insertions_per_minute"] == silence["insertions_per_minute_delta"]
    assert silence["insertions_per_minute"] == pytest.approx(2 * 24 / minutes, abs=0.001)  # 24 of 36 are hisses
    assert 0 < silence["insertions_per_minute_delta_low"] < silence["insertions_per_minute"]
    assert metrics["candidate"]["silence"]["insertions_per_minute_delta"] == 0.0
    shown = capsys.readouterr().out
    assert f"silence: 36 recordings without speech, {minutes:.1f} minutes; intervals by utterance\n" in shown
    verdicts = {row.variant: row.verdict for row in tables.read(tables.RESULTS).itertuples() if row.split == "silence"}
    assert verdicts == {"fp32": "baseline", "hqq-int4": "worse", "candidate": "no worse"}
