"""Reading recordings: any file that libsndfile knows, as mono float32 at the rate a model wants."""

from __future__ import annotations

import mmap
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import Any

import numpy as np
import soundfile
import soxr

from ..errors import ArgumentError, AudioError
from .containers import mp3_frames, ogg_fault, with_frame_count

#: File name endings that are taken for recordings when a folder is searched.
AUDIO_SUFFIXES = frozenset(
    (".wav", ".wave", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aiff", ".aif", ".au", ".caf", ".w64")
)
#: Longest recording that is read; a few kilobytes of a compressed format can claim to be much longer.
MAX_SECONDS = 12 * 3600.0

_EXPECTED = "expected a WAV, FLAC, Ogg (Vorbis, Opus) or MP3 file, or another that libsndfile reads"
_MIN_RATE, _MAX_RATE = 1000, 1_000_000
_BLOCK_SAMPLES = 1 << 18
# Programs that write a WAV file to a pipe cannot go back to fill in its size: they leave one near 2 or 4 GiB.
_UNKNOWN_SIZE = 0x7FFF0000
_SIZE_LINE = re.compile(r"^\s*(?:data|SSND|Data Size|riff)\s*: (\d+) \(should be (\d+)\)", re.MULTILINE)


class _Sequential(soundfile.SoundFile):
    """Reads forward only; soundfile's own seek after each block fails where the length is unknown."""

    def seekable(self) -> bool:
        return False


def read_audio(
    path: str | os.PathLike[str], sample_rate: int, max_seconds: float = MAX_SECONDS
) -> np.ndarray:
    """Read a recording as mono samples.

    Channels are averaged, other rates resampled (soxr, high quality), integer formats scaled to -1 .. 1.

    Parameters
    ----------
    path: a WAV, FLAC, Ogg (Vorbis, Opus), MP3, AIFF, AU, CAF or W64 file, or another that libsndfile reads.
    sample_rate: samples per second of the result.
    max_seconds: longest recording that is accepted.

    Returns
    -------
    float32 [S]; S may be 0 where a few samples at a higher rate make less than one at `sample_rate`.

    Raises
    ------
    AudioError: the file is missing, not a regular file, unreadable, not audio, broken, truncated, without
        samples, longer than `max_seconds`, or holds NaN or infinite samples.
    ArgumentError: `sample_rate` is out of range.
    """
    _check_rate(sample_rate)
    with _open(path) as file:
        samples = np.concatenate(
            list(_resampled(_mono_blocks(file, path, max_seconds), file.samplerate, sample_rate))
        )
    return samples


def audio_seconds(path: str | os.PathLike[str]) -> float:
    """Length of a recording by its header, 0 where that does not tell; AudioError as for read_audio."""
    with _open(path) as file:
        return file.frames / file.samplerate if file.frames < 1 << 62 else 0.0


def resample(samples: np.ndarray, source_rate: int, sample_rate: int) -> np.ndarray:
    """float32 [S] at `source_rate` -> float32 [S'] at `sample_rate`; ArgumentError for rates out of range."""
    _check_rate(source_rate)
    _check_rate(sample_rate)
    return np.concatenate(list(_resampled(iter((samples,)), source_rate, sample_rate)))


def _check_rate(rate: int) -> None:
    if not isinstance(rate, int) or not _MIN_RATE <= rate <= _MAX_RATE:
        raise ArgumentError(f"sample_rate must be an integer from {_MIN_RATE} to {_MAX_RATE}, got {rate!r}")


@contextmanager
def _open(path: str | os.PathLike[str]) -> Iterator[soundfile.SoundFile]:
    """Open a recording whose container is whole."""
    descriptor = _open_regular(path)
    try:
        if os.fstat(descriptor).st_size == 0:
            raise AudioError(f"{_name(path)}: the file is empty; {_EXPECTED}")
        # libsndfile never gets the name: by some names' endings it takes any bytes for audio.
        source: Any = _repaired(descriptor, path)
        try:
            # The object closes no descriptor: where opening fails, libsndfile closes a copy of its own.
            file = _Sequential(descriptor if source is None else source, closefd=False)
        except (soundfile.LibsndfileError, TypeError, ValueError, OverflowError) as error:
            raise AudioError(
                f"{_name(path)}: {_reason(error, 'not a recording that can be read')}; {_EXPECTED}"
            ) from None
        with file:
            _check_header(file, path)
            yield file
    finally:
        os.close(descriptor)


def _open_regular(path: str | os.PathLike[str]) -> int:
    try:
        # Without O_NONBLOCK, opening a named pipe that nobody writes to would wait for ever.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise AudioError(f"{_name(path)}: {reason}; expected a recording") from None
    kind = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(kind):
        os.close(descriptor)
        what = "a folder" if stat.S_ISDIR(kind) else "a device, pipe or socket"
        raise AudioError(f"{_name(path)}: is {what}; expected a recording")
    return descriptor


def _repaired(descriptor: int, path: str | os.PathLike[str]) -> BytesIO | None:
    """Bytes to read in place of a file of which libsndfile would read too little, None for others."""
    with mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ) as data:
        if data[:4] == b"OggS":
            if fault := ogg_fault(data):
                raise AudioError(f"{_name(path)}: {fault}; expected one complete Ogg stream")
            return None
        tagged, synced = data[:3] == b"ID3", data[:1] == b"\xff" and data[1:2] >= b"\xe0"
        found = mp3_frames(data) if tagged or synced else None
        if found is None:
            if not synced:
                return None
            # libsndfile would take it for MPEG by these bits alone, and complain on stderr.
            raise AudioError(f"{_name(path)}: not a recording that can be read; {_EXPECTED}")
        if found.damaged_at is not None:
            raise AudioError(f"{_name(path)}: broken, there is no MP3 frame at byte {found.damaged_at}")
        if found.missing_bytes or (found.announced is not None and found.frames < found.announced):
            wanted = max(found.announced or 0, found.frames + 1)
            raise AudioError(f"{_name(path)}: truncated, {found.frames} of {wanted} MP3 frames are complete")
        return None if found.frames == found.announced else BytesIO(with_frame_count(data, found))


def _check_header(file: soundfile.SoundFile, path: str | os.PathLike[str]) -> None:
    if not _MIN_RATE <= file.samplerate <= _MAX_RATE:
        raise AudioError(
            f"{_name(path)}: {file.samplerate} samples a second; expected {_MIN_RATE} to {_MAX_RATE}"
        )
    if match := _SIZE_LINE.search(file.extra_info):
        declared, present = int(match[1]), int(match[2])
        if present < declared < _UNKNOWN_SIZE:
            raise AudioError(f"{_name(path)}: truncated, {present} of {declared} bytes of samples are there")


def _mono_blocks(
    file: soundfile.SoundFile, path: str | os.PathLike[str], max_seconds: float
) -> Iterator[np.ndarray]:
    """The samples in blocks of bounded size, whatever length the header claims."""
    frames, most = 0, int(max_seconds * file.samplerate)
    block_frames = max(_BLOCK_SAMPLES // file.channels, 1)
    while True:
        try:
            block = file.read(block_frames, dtype="float32", always_2d=True)
        except (soundfile.LibsndfileError, ValueError) as error:
            reason = _reason(error, "decoding failed")
            at = f"after {frames / file.samplerate:.2f} s"
            raise AudioError(f"{_name(path)}: broken or truncated {at}: {reason}") from None
        if len(block) == 0:
            break
        frames += len(block)
        if frames > most:
            raise AudioError(f"{_name(path)}: longer than {max_seconds:g} s; expected a shorter recording")
        mono = block[:, 0] if file.channels == 1 else block.mean(axis=1, dtype=np.float32)
        if not np.isfinite(mono).all():
            raise AudioError(f"{_name(path)}: holds NaN or infinite samples; expected finite ones")
        yield mono
    if frames == 0:
        raise AudioError(f"{_name(path)}: holds no samples; expected at least one")
    # A decoder may drop part of its last frame; whole missing seconds are a fault.
    slack = 4096 if file.format in ("MP3", "MPEG") else 0
    if frames + slack < file.frames < 1 << 62:
        raise AudioError(f"{_name(path)}: truncated, {frames} of {file.frames} samples are there")


def _resampled(blocks: Iterator[np.ndarray], source_rate: int, sample_rate: int) -> Iterator[np.ndarray]:
    if source_rate == sample_rate:
        yield from blocks
        return
    stream = soxr.ResampleStream(source_rate, sample_rate, 1, dtype="float32", quality="HQ")
    for block in blocks:
        yield stream.resample_chunk(np.ascontiguousarray(block))
    yield stream.resample_chunk(np.empty(0, np.float32), last=True)


def _name(path: str | os.PathLike[str]) -> str:
    return os.fsdecode(path).replace("\n", "\\n").replace("\r", "\\r")


def _reason(error: Exception, otherwise: str) -> str:
    """What libsndfile said, on one line and without its prefix."""
    text = getattr(error, "error_string", None) or str(error)
    text = " ".join(text.split()).removeprefix("Error :").strip(" .")
    known = text and "System error" not in text and "Error opening" not in text and "extension" not in text
    return text if known else otherwise
