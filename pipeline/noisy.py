"""Mix noise into a split of speech in LibriSpeech's layout: a new split, with the same ids and transcripts.

Usage: python -m pipeline.noisy SPLIT NOISE OUT [--snr 10] [--seed 0]
"""

import argparse
import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray
from tqdm import tqdm

from pipeline.core import files, stage
from pipeline.core.errors import UserError
from pipeline.speech.sources import audio

SUFFIXES = (".flac", ".wav", ".mp3", ".ogg", ".opus")
FULL = 2**15
SILENT = 1e-12
"""Mean square, of full scale 1, below which there is no sound to set a level by: -120 dB."""

TRIES = 100

Samples = NDArray[np.float64]


def main(split: Path, noise: Path, out: Path, snr: float, seed: int) -> None:
    """Write `out` from the folder of a split and a folder of recordings of noise, `snr` dB below the speech.

    Each utterance gets a recording and a start in it, by seed, id and the number of recordings, and more of it from its
    beginning where it is too short. Raises UserError for folders that hold no audio or each other, for what cannot be
    read, and where all of the noise is silent.
    """
    for folder in (split, noise):
        if out.resolve().is_relative_to(folder.resolve()) or folder.resolve().is_relative_to(out.resolve()):
            raise UserError(f"{out} and {folder} are one inside the other; write to another folder")
    if seed < 0 or not math.isfinite(snr):
        raise UserError(f"a seed from 0 on and a finite number of dB are needed, not {seed} and {snr:g}")
    speech, sounds = recordings(split), recordings(noise)
    transcripts = sorted(split.rglob("*.trans.txt"))
    with files.aside(out) as partial:
        for path in tqdm(speech, desc=f"{out.name}", unit=" utterances", mininterval=0.5, disable=None):
            rng = np.random.default_rng([seed, *path.stem.encode()])
            mixed = mix(read(path), audible(sounds, rng), snr, rng)
            place = (partial / path.relative_to(split)).with_suffix(".flac")
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(audio.encode(mixed))
        for path in transcripts:
            place = partial / path.relative_to(split)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(path.read_bytes())
    print(f"{out}: {len(speech):,} utterances, noise of {len(sounds):,} recordings at {snr:g} dB")


def recordings(folder: Path) -> Sequence[Path]:
    """Return the audio files below a folder, in order; raise UserError where there are none."""
    found = sorted(
        path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file() and path.name[0] != "."
    )
    if not found:
        raise UserError(f"{folder} holds no audio")
    return found


def read(path: Path) -> Samples:
    """Return the samples, RATE a second, full scale 1, of any audio that `prepare` takes."""
    samples, _ = soundfile.read(io.BytesIO(audio.check(str(path), path.read_bytes()).flac), dtype="float64")
    return np.asarray(samples)


def audible(sounds: Sequence[Path], rng: np.random.Generator) -> Samples:
    """Draw a recording and return it without the silence at its ends; raise UserError where none of many sounds."""
    for _ in range(TRIES):
        path = sounds[int(rng.integers(len(sounds)))]
        samples = read(path)
        loud = np.flatnonzero(samples)
        if len(loud) and np.square(samples).mean() > SILENT:
            return samples[loud[0] : loud[-1] + 1]
    raise UserError(f"{path.parent} holds noise that is silent, such as {path.name}")


def mix(speech: Samples, noise: Samples, snr: float, rng: np.random.Generator) -> NDArray[np.int16]:
    """Return speech with noise of a power `snr` dB below its own, both as a mean over the utterance (pure).

    What would be too loud is made softer as a whole, so that nothing is clipped.
    """
    start = int(rng.integers(len(noise)))
    part = np.resize(np.roll(noise, -start), len(speech))
    part -= part.mean()  # nobody hears a constant
    powers = [float(np.square(samples).mean()) for samples in (speech, part)]
    gain = np.sqrt(powers[0] / powers[1] / 10 ** (snr / 10)) if min(powers) > SILENT else 0.0
    mixed = speech + gain * part
    mixed *= FULL * min(1.0, (1 - 1 / FULL) / np.abs(mixed).max(initial=SILENT))
    return np.rint(mixed).astype(np.int16)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m pipeline.noisy", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("split", type=Path, help="folder of a split: <speaker>/<chapter>/<id>.flac, and transcripts")
    parser.add_argument("noise", type=Path, help="folder of recordings of noise")
    parser.add_argument("out", type=Path, help="folder of the new split; one that is there is replaced")
    parser.add_argument("--snr", type=float, default=10.0, help="dB (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with stage.guarded("noisy"):
        main(**vars(arguments))
