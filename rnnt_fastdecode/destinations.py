"""Where the command line puts transcripts: stdout, one file, or a file for each recording."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

from .errors import ArgumentError
from .formats import SUFFIXES, WRITERS

if TYPE_CHECKING:
    from .models.transcription import Transcript


@dataclass(frozen=True)
class Recording:
    """A file to transcribe, and its place below the folder argument it was found in."""

    path: str
    relative: str


Write = Callable[[int, "Transcript"], None]


@contextmanager
def open_writer(
    recordings: list[Recording], format_name: str, output: str | None, output_dir: str | None
) -> Iterator[Write]:
    """A function that puts the transcript of the recording with this index where it belongs."""
    if output_dir is not None:
        yield _folder_writer(recordings, format_name, output_dir)
        return
    if output is None or output == "-":
        yield _stream_writer(sys.stdout, format_name, len(recordings) > 1)
        return
    present = [r.path for r in recordings if os.path.exists(r.path)] if os.path.exists(output) else []
    if any(os.path.samefile(output, path) for path in present):
        raise ArgumentError(f"--output {output} is one of the recordings; expected another file")
    try:
        stream = open(output, "w", encoding="utf-8", errors="backslashreplace")  # noqa: SIM115 (closed below)
    except OSError as error:
        raise ArgumentError(
            f"--output {output}: {error.strerror}; expected a file that can be written"
        ) from None
    with stream:
        yield _stream_writer(stream, format_name, len(recordings) > 1)


def _stream_writer(stream: IO[str], format_name: str, several: bool) -> Write:
    """Prints in the order of the recordings, each as soon as those before it are there."""
    waiting: dict[int, Transcript] = {}
    due = 0

    def write(index: int, transcript: Transcript) -> None:
        nonlocal due
        waiting[index] = transcript
        while due in waiting:
            ready = waiting.pop(due)
            due += 1
            if ready.error is None or format_name == "json":
                prefix = f"{_printable(ready.file)}\t" if several and format_name == "text" else ""
                stream.write(prefix + WRITERS[format_name](ready))
        stream.flush()

    return write


def _folder_writer(recordings: list[Recording], format_name: str, output_dir: str) -> Write:
    """Writes each transcript to its own file; folders below a folder argument are kept."""
    paths = [
        os.path.join(output_dir, os.path.splitext(recording.relative)[0] + SUFFIXES[format_name])
        for recording in recordings
    ]
    owners: dict[str, str] = {}
    for recording, target in zip(recordings, paths, strict=True):
        other = owners.setdefault(target, recording.path)
        if other != recording.path:
            raise ArgumentError(
                f"--output-dir {output_dir}: {other} and {recording.path} would both be written to {target}; "
                "expected recordings with different names"
            )

    def write(index: int, transcript: Transcript) -> None:
        if transcript.error is not None and format_name != "json":
            return
        try:
            os.makedirs(os.path.dirname(paths[index]), exist_ok=True)
            with open(paths[index], "w", encoding="utf-8", errors="backslashreplace") as stream:
                stream.write(WRITERS[format_name](transcript))
        except OSError as error:
            raise ArgumentError(f"--output-dir {output_dir}: {paths[index]}: {error.strerror}") from None

    return write


def _printable(name: str) -> str:
    return name.replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r")
