"""Recordings of any kind, films too, by FFmpeg (PyAV): for people's own files, which come without a checksum."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.core.errors import UserError
from pipeline.speech.corpus import Utterance
from pipeline.speech.sources import audio

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def read(path: Path) -> Utterance:
    """Return the first audio track of a file, as corpora are prepared: 16 kHz, mono, its channels averaged.

    Raises UserError where there is none, where it cannot be decoded, or is empty.
    """
    import av

    name = str(path)
    try:
        if path.is_file() and not path.stat().st_size:
            raise UserError(f"{name}: it is empty")
        # A playlist names other files and addresses: none is opened.
        with path.open("rb") as file, av.open(file, options={"protocol_whitelist": "none"}) as container:
            if not container.streams.audio:
                raise UserError(f"{name}: it has no audio track")
            stream = container.streams.audio[0]
            flac, samples = audio.converted(name, _blocks(container, stream), stream.rate)
    except av.error.FFmpegError as error:
        raise UserError(f"{name}: it cannot be decoded as audio ({error.strerror})") from None
    except OSError as error:
        raise UserError(f"{name} cannot be read ({error.strerror})") from None
    if not samples:
        raise UserError(f"{name}: the audio holds no samples")
    return Utterance(name, "", "", samples / audio.RATE, "", flac)


def _blocks(container: Any, stream: Any) -> "Iterator[NDArray[np.float32]]":
    import av
    import numpy as np

    as_floats = av.AudioResampler(format="fltp")  # planes of channels, full scale 1; the rate stays
    for frame in container.decode(stream):
        for part in as_floats.resample(frame):
            yield part.to_ndarray().T.astype(np.float32, copy=False)
