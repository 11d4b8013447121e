"""What libsndfile leaves unchecked: whether a WAV, MP3 or OGG file is all there, and the checksums of OGG's pages.

It takes what is left of a cut file for the whole, fills damaged pages, and guesses the length of some MP3 files.
"""

import zlib

from pipeline.core.errors import UserError

_MIRRORED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))

_KBITS = {  # a second, by MPEG version (the bits of the header) and index, of layer III
    3: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 0),
    2: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160, 0),
}
_KBITS[0] = _KBITS[2]
_RATES = {3: (44_100, 48_000, 32_000, 0), 2: (22_050, 24_000, 16_000, 0), 0: (11_025, 12_000, 8_000, 0)}


def announced(name: str, kind: str, data: bytes, frames: int) -> int:
    """Return how many samples of each channel a file should hold, of which libsndfile says it holds `frames`.

    `kind` is what libsndfile calls the container; `name` stands for the utterance in errors. Raises UserError for a
    file that is cut short or damaged, or does not say how long it is.
    """
    if kind in ("WAV", "WAVEX"):
        _check_wav(name, data)
    elif kind == "OGG":
        _check_ogg(name, data)
    elif kind == "MP3":
        return _mp3_samples(name, data, frames)
    if frames > 1 << 40:
        raise UserError(f"{name}: the {kind} header does not say how long the audio is; encode it again")
    return frames


def _check_wav(name: str, data: bytes) -> None:
    """Refuse a file whose samples are announced but not there, or have not the width that is announced."""
    order = "big" if data.startswith(b"RIFX") else "little"

    def number(place: int, size: int) -> int:
        return int.from_bytes(data[place : place + size], order)  # type: ignore[arg-type]

    place = 12
    while place + 8 <= len(data):
        chunk, size = data[place : place + 4], number(place + 4, 4)
        if chunk == b"fmt ":
            channels, align, bits = number(place + 10, 2), number(place + 20, 2), number(place + 22, 2)
            if align != channels * -(-bits // 8):
                break
        if chunk == b"data":
            if size >= 0x7FFFF000 and place + 8 + size > len(data):  # written to a pipe
                raise UserError(f"{name}: the WAV header does not say how long the audio is; encode it again")
            if place + 8 + size > len(data):
                there = len(data) - place - 8
                raise UserError(f"{name}: the audio is cut short, {there:,} of {size:,} bytes are there")
            return
        place += 8 + size + size % 2
    raise UserError(f"{name}: the audio cannot be decoded, its WAV header is damaged")


def _check_ogg(name: str, data: bytes) -> None:
    """Refuse a file that is not a row of whole pages, each with its checksum (RFC 3533, section 6)."""
    place = 0
    while place < len(data):
        widths = data[place + 27 : place + 27 + data[place + 26]] if place + 27 <= len(data) else b""
        end = place + 27 + len(widths) + sum(widths)
        if end > len(data):
            raise UserError(f"{name}: the audio is cut short, its last OGG page is not whole")
        page = data[place : place + 22] + bytes(4) + data[place + 26 : end]
        if data[place : place + 4] != b"OggS" or _ogg_crc(page) != int.from_bytes(
            data[place + 22 : place + 26], "little"
        ):
            raise UserError(f"{name}: the audio is damaged, an OGG page does not match its checksum")
        place = end


def _ogg_crc(page: bytes) -> int:
    """Return the CRC-32 with the highest bit first and nothing inverted: zlib's, mirrored."""
    mirrored = zlib.crc32(page.translate(_MIRRORED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{mirrored:032b}"[::-1], 2)


def _mp3_samples(name: str, data: bytes, frames: int) -> int:
    """Return `frames` where the encoder wrote the length into the first frame, else count frame by frame."""
    place = 0
    if data.startswith(b"ID3"):  # a tag, its size in four times seven bits
        place = 10 + sum(byte << shift for byte, shift in zip(data[6:10], (21, 14, 7, 0), strict=True))
    first = data[place : place + 200]
    if b"Xing" in first or b"Info" in first or b"VBRI" in first:
        return frames
    samples = 0
    while place + 4 <= len(data) and data[place : place + 3] != b"TAG":
        version, rest = data[place + 1] >> 3 & 3, data[place + 2]
        kbits, rate = (_KBITS[version][rest >> 4], _RATES[version][rest >> 2 & 3]) if version != 1 else (0, 0)
        if data[place] != 0xFF or data[place + 1] & 0xE6 != 0xE2 or not kbits or not rate:
            raise UserError(f"{name}: the audio is damaged, {len(data) - place:,} bytes are no frames of MP3")
        long = 1152 if version == 3 else 576
        place += long // 8 * kbits * 1000 // rate + (rest >> 1 & 1)
        samples += long
    if frames < samples:  # libsndfile would read no more than it guessed
        raise UserError(f"{name}: the MP3 file does not say how long the audio is; encode it again")
    return samples
