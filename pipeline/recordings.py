"""Transcribe recordings of one's own with a variant: as text, JSON or subtitles (`whisper-ptq transcribe`)."""

import html
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.core import artifacts, languages, machine, manifest, params
from pipeline.core.errors import UserError

if TYPE_CHECKING:
    from pipeline.whisper.longform import Transcript


def text(heard: "Transcript") -> str:
    """Return a line for each segment."""
    return "".join(f"{segment.text}\n" for segment in heard.segments)


def to_json(heard: "Transcript") -> str:
    """Return one object in a line: name, language, duration and text, and the segments, times in seconds."""
    segments = [
        {"start": round(segment.start, 2), "end": round(segment.end, 2), "text": segment.text}
        for segment in heard.segments
    ]
    told = {"file": heard.name, "language": heard.language, "duration": round(heard.duration, 2)}
    return json.dumps(told | {"text": heard.text, "segments": segments}, ensure_ascii=False) + "\n"


def srt(heard: "Transcript") -> str:
    """Return subtitles as SubRip has them."""
    return "\n".join(
        f"{number}\n{_clock(segment.start, ',')} --> {_clock(segment.end, ',')}\n{segment.text}\n"
        for number, segment in enumerate(heard.segments, start=1)
    )


def vtt(heard: "Transcript") -> str:
    """Return subtitles as a browser's <track> reads them (W3C, WebVTT)."""
    cues = (
        f"\n{_clock(segment.start, '.')} --> {_clock(segment.end, '.')}\n{html.escape(segment.text, quote=False)}\n"
        for segment in heard.segments
    )
    return "WEBVTT\n" + "".join(cues)


FORMATS: dict[str, Callable[["Transcript"], str]] = {"text": text, "json": to_json, "srt": srt, "vtt": vtt}


def _clock(seconds: float, point: str) -> str:
    whole, thousandths = divmod(round(1000 * seconds), 1000)
    return f"{whole // 3600:02}:{whole // 60 % 60:02}:{whole % 60:02}{point}{thousandths:03}"


def outputs(recordings: Iterable[Path], folder: Path, kind: str) -> dict[Path, Path]:
    """Return where each recording's transcript goes; raise UserError where two of them would go to one file."""
    suffix = "txt" if kind == "text" else kind
    found: dict[Path, Path] = {}
    for recording in recordings:
        target = folder / f"{recording.stem}.{suffix}"
        if target in found.values():
            other = next(path for path, taken in found.items() if taken == target)
            raise UserError(f"{other} and {recording} would both be {target}; give one another name or folder")
        found[recording] = target
    return found


def shipped() -> str:
    """Return the variant that dvc.yaml marks as recommended; raise UserError where it marks none."""
    found = artifacts.recommended(Path("dvc.yaml").read_text(encoding="utf-8"))
    if not found:
        raise UserError("dvc.yaml marks no artifact as recommended; name a variant")
    return next(iter(found))


def transcribe(recordings: Iterable[Path], variant: str, language: str) -> "Iterator[Transcript | UserError]":
    """Yield what a variant of the last run hears in each recording, or why it cannot be read.

    Raises UserError before the first where the checkpoint is not there, or does not know the language.
    """
    settings = params.read()
    settings.variant(variant)
    folder = Path("models") / variant
    name = manifest.verify(folder)["variant"]["backend"]
    how = settings.decoding
    if (
        language == languages.AUTO
        and not json.loads((folder / "generation_config.json").read_bytes())["is_multilingual"]
    ):
        language = "en"

    from tqdm import tqdm

    from pipeline import backends
    from pipeline.speech.sources import media
    from pipeline.whisper import longform
    from pipeline.whisper.inference import decoding

    vocabulary = decoding.Vocabulary.read(folder, language, "transcribe", how.suppress_non_speech, timestamps=True)
    model = backends.load(name, folder, machine.device(settings.device, name, backends.get(name).DEVICES))
    for path in recordings:
        try:
            recording = media.read(path)
        except UserError as error:
            yield error
            continue
        with tqdm(total=round(recording.duration), unit="s", desc=path.name, disable=None, leave=False) as progress:
            yield longform.transcribe(
                model, recording, vocabulary, language, how.max_new_tokens, how.batch_size, progress.update
            )
