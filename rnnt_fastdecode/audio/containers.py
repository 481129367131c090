"""What libsndfile does not notice in MP3 and Ogg files: frames and pages cut off, missing or miscounted.

An MP3 file has no length field of its own. libsndfile takes the frame count of the optional Xing header, or
guesses it from the first frame's bit rate, and stops reading there: a file of variable bit rate without that
header comes out short, without an error. So the frames are counted here, and `with_frame_count` writes the
header that was missing. A cut Ogg file reads as a shorter one, and of several Ogg streams in a row only the
first is read.
"""

from __future__ import annotations

from collections.abc import Sized
from dataclasses import dataclass
from typing import Protocol

_MP3_KBITS_1 = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
_MP3_KBITS_2 = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
_MP3_RATES = (44100, 48000, 32000)
# A search for the next frame behind damage ends here, so that a large trailer of another kind costs little.
_MP3_RESYNC_BYTES = 1 << 17
_XING_FIELD_FRAMES = 1
_OGG_HEADER_BYTES = 27
_OGG_FIRST_PAGE, _OGG_LAST_PAGE = 2, 4


class Bytes(Sized, Protocol):
    """bytes or a memory map."""

    def __getitem__(self, index: slice) -> bytes: ...


@dataclass(frozen=True)
class Mp3Frames:
    """What walking over the frames of an MP3 file found.

    Attributes
    ----------
    start: offset of the first frame.
    frames: complete frames, a header frame (Xing, Info, VBRI) not counted.
    announced: frames according to that header, None without one.
    missing_bytes: how much of the last frame is not there.
    damaged_at: offset of bytes that are no frame although frames follow, None where there are none.
    """

    start: int
    frames: int
    announced: int | None
    missing_bytes: int
    damaged_at: int | None


def _mp3_frame_bytes(header: bytes) -> int | None:
    """Length in bytes of the layer III frame that this four-byte header opens, None where it opens none."""
    if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE0 != 0xE0:
        return None
    version, layer = (header[1] >> 3) & 3, (header[1] >> 1) & 3
    bit_rate, sample_rate, padding = header[2] >> 4, (header[2] >> 2) & 3, (header[2] >> 1) & 1
    if version == 1 or layer != 1 or bit_rate in (0, 15) or sample_rate == 3:
        return None
    if version == 3:
        return 144000 * _MP3_KBITS_1[bit_rate] // _MP3_RATES[sample_rate] + padding
    return 72000 * _MP3_KBITS_2[bit_rate] // (_MP3_RATES[sample_rate] >> (1 if version == 2 else 2)) + padding


def _mp3_side_bytes(header: bytes) -> int:
    """Bytes between a frame's header and the place where a Xing header stands."""
    version_1, mono = (header[1] >> 3) & 3 == 3, header[3] >> 6 == 3
    return (17 if mono else 32) if version_1 else (9 if mono else 17)


def _id3_bytes(header: bytes) -> int:
    """Length of the ID3v2 tag that this ten-byte header opens, 0 where it opens none."""
    if header[:3] != b"ID3" or len(header) < 10:
        return 0
    return 10 + (header[6] << 21 | header[7] << 14 | header[8] << 7 | header[9])


def _mp3_frames_follow(data: Bytes, start: int) -> bool:
    """Whether two frames in a row begin somewhere behind `start`."""
    window = data[start : start + _MP3_RESYNC_BYTES]
    position = window.find(b"\xff")
    while position >= 0:
        length = _mp3_frame_bytes(window[position : position + 4])
        after = start + position + (length or 0)
        if length is not None and _mp3_frame_bytes(data[after : after + 4]) is not None:
            return True
        position = window.find(b"\xff", position + 1)
    return False


def mp3_frames(data: Bytes) -> Mp3Frames | None:
    """Walk over the frames of an MP3 file; None where the data, after ID3v2 tags, does not begin as one."""
    start = 0
    while size := _id3_bytes(data[start : start + 10]):
        start += size
    first = data[start : start + 4]
    length = _mp3_frame_bytes(first)
    if length is None or (start + length < len(data) and not _mp3_frames_follow(data, start)):
        return None

    announced, frames, damaged_at = None, 0, None
    position, end = start, len(data)
    body = data[start : start + length]
    xing = 4 + _mp3_side_bytes(first)
    if body[xing : xing + 4] in (b"Xing", b"Info"):
        position += length
        if body[xing + 7] & _XING_FIELD_FRAMES:
            announced = int.from_bytes(body[xing + 8 : xing + 12], "big")
    elif body[36:40] == b"VBRI":
        position += length
        announced = int.from_bytes(body[50:54], "big")

    while position < end:
        length = _mp3_frame_bytes(data[position : position + 4])
        if length is not None:
            position += length
            frames += 1
        elif size := _id3_bytes(data[position : position + 10]):
            position += size
        else:
            damaged_at = position if _mp3_frames_follow(data, position) else None
            position = end
    missing = position - end
    return Mp3Frames(start, max(frames - (missing > 0), 0), announced, missing, damaged_at)


def with_frame_count(data: Bytes, found: Mp3Frames) -> bytes:
    """The MP3 file behind a silent frame that carries a Xing header with the true number of frames."""
    # The bit rate is free to choose: at 64 kbit/s every frame has room for the header.
    first = data[found.start : found.start + 4]
    bit_rate = 5 if (first[1] >> 3) & 3 == 3 else 8
    header = bytes((0xFF, first[1] | 1, bit_rate << 4 | first[2] & 0x0C, first[3]))
    length = _mp3_frame_bytes(header)
    assert length is not None
    xing = b"Xing" + _XING_FIELD_FRAMES.to_bytes(4, "big") + found.frames.to_bytes(4, "big")
    frame = header + bytes(_mp3_side_bytes(header)) + xing
    return frame.ljust(length, b"\0") + data[found.start : len(data)]


def ogg_fault(data: Bytes) -> str | None:
    """What is wrong with the pages of an Ogg file, None where nothing is."""
    position, end, streams_open, sound_began = 0, len(data), 0, False
    while position < end:
        header = data[position : position + _OGG_HEADER_BYTES]
        if header[:4] != b"OggS":
            # libsndfile, too, stops here; bytes after the last page do no harm.
            return None if sound_began and streams_open <= 0 else "an Ogg page is missing or damaged"
        if len(header) < _OGG_HEADER_BYTES:
            return "the last Ogg page is cut off"
        segments = data[position + _OGG_HEADER_BYTES : position + _OGG_HEADER_BYTES + header[26]]
        position += _OGG_HEADER_BYTES + header[26] + sum(segments)
        if position > end or len(segments) < header[26]:
            return "the last Ogg page is cut off"
        if header[5] & _OGG_FIRST_PAGE:
            if sound_began:
                return "it holds several Ogg streams one after the other"
            streams_open += 1
        else:
            sound_began = True
        if header[5] & _OGG_LAST_PAGE:
            streams_open -= 1
    return None
