"""The command line: `rnnt-fastdecode transcribe`, `rnnt-fastdecode bench` and `rnnt-fastdecode info`.

Results go to stdout, everything else to stderr. A fault is one line that names the file or the argument, and
exit code 1. torch is imported only once there is work for it.
"""

from __future__ import annotations

import glob
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from . import __version__
from .destinations import Recording, Write, open_writer
from .errors import ArgumentError, RnntFastdecodeError
from .formats import WRITERS

if TYPE_CHECKING:
    from .models.model import SpeechModel
    from .models.transcription import Transcript

PROGRAM = "rnnt-fastdecode"
_INTERRUPTED = 130
_CLEAR_LINE = "\r\033[K"

_NEXT_STEPS = f"""
That was the built-in sample. Next:
  {PROGRAM} transcribe recording.wav                   a file: wav, flac, ogg, mp3
  {PROGRAM} transcribe FOLDER -f srt -d SUBTITLES      a folder, subtitles for each file
  {PROGRAM} transcribe a.mp3 -m parakeet.nemo -f json  another model, words with times
  {PROGRAM} bench                                      how fast this machine decodes
  {PROGRAM} info                                       what was built, which GPU is used
  {PROGRAM} transcribe --help                          all options"""


def main(arguments: Sequence[str] | None = None) -> None:
    """The `rnnt-fastdecode` program: runs the command, and exits."""
    for stream in (sys.stdout, sys.stderr):
        # File names may hold bytes that are no text, and a terminal may know few characters.
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    warnings.showwarning = lambda message, *details: click.echo(f"{PROGRAM}: {message}", err=True)
    show_traceback = "--traceback" in (sys.argv[1:] if arguments is None else arguments)
    try:
        code = commands.main(args=arguments, prog_name=PROGRAM, standalone_mode=False)
    except click.ClickException as error:
        usage = isinstance(error, click.UsageError) and error.ctx is not None
        where = f"; see {error.ctx.command_path} --help" if usage else ""  # type: ignore[attr-defined]
        code = _complain(f"{error.format_message().rstrip('.')}{where}")
    except click.exceptions.Abort:
        click.echo(f"{PROGRAM}: interrupted", err=True)
        code = _INTERRUPTED
    except RnntFastdecodeError as error:
        if show_traceback:
            raise
        code = _complain(str(error))
    except Exception as error:
        if show_traceback:
            raise
        code = _complain(f"{type(error).__name__}: {error} (add --traceback for where it happened)")
    sys.exit(code or 0)


def _complain(message: str) -> int:
    click.echo(f"{PROGRAM}: {' '.join(message.split())}", err=True)
    return 1


def _traceback_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--traceback", is_flag=True, expose_value=False, help="Show where in the program an error happened."
    )(command)


_model_option = click.option(
    "-m",
    "--model",
    default="bundled",
    show_default=True,
    metavar="PATH",
    help="A .nemo file, a transformers directory, or 'bundled'.",
)


def _device_options(command: Callable[..., Any]) -> Callable[..., Any]:
    device = click.option(
        "--device",
        default="auto",
        show_default=True,
        metavar="auto|cpu|cuda|cuda:N",
        help="Where to compute.",
    )
    dtype = click.option(
        "--dtype",
        type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
        default="auto",
        show_default=True,
        help="auto = the checkpoint's own.",
    )
    return device(dtype(command))


@click.group(invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
@click.pass_context
def commands(context: click.Context) -> None:
    """Exact, fast speech recognition with transducer models.

    Try `rnnt-fastdecode transcribe`: without files it transcribes a built-in sample.
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@commands.command(short_help="Transcribe recordings.")
@click.argument("inputs", metavar="[FILES|FOLDERS|GLOBS]...", nargs=-1, type=click.Path(path_type=str))
@_model_option
@click.option(
    "--head", type=click.Choice(["rnnt", "tdt", "ctc"]), help="Decoder head.  [default: the model's own]"
)
@click.option(
    "--lookahead",
    type=click.IntRange(min=0),
    metavar="FRAMES",
    help="One of the look-aheads that the model was trained for.",
)
@click.option(
    "--context",
    metavar="LEFT,RIGHT",
    help="Attention context in encoder frames, -1 = unlimited.  [default: the model's own]",
)
@click.option(
    "-b",
    "--batch-size",
    type=click.IntRange(min=1),
    default=16,
    show_default=True,
    help="Recordings decoded together.",
)
@_device_options
@click.option(
    "-f",
    "--format",
    "format_name",
    type=click.Choice(list(WRITERS)),
    default="text",
    show_default=True,
    help="json has words with times and confidences.",
)
@click.option(
    "-o", "--output", type=click.Path(path_type=str), metavar="FILE", help="Write everything to one file."
)
@click.option(
    "-d",
    "--output-dir",
    type=click.Path(path_type=str),
    metavar="FOLDER",
    help="Write a file for each recording.",
)
@_traceback_option
def transcribe(
    inputs: tuple[str, ...],
    model: str,
    head: str | None,
    lookahead: int | None,
    context: str | None,
    batch_size: int,
    device: str,
    dtype: str,
    format_name: str,
    output: str | None,
    output_dir: str | None,
) -> int:
    """Transcribe recordings: WAV, FLAC, Ogg, MP3 and others, at any rate, with any number of channels.

    Folders are searched with all that is below them. Results are printed in the order of the arguments: as
    text, one line each, with the file name in front where there are several; as JSON, one object a line.
    Without files, a built-in sample is transcribed.

    A recording that cannot be read costs one line on stderr and exit code 1; the others are transcribed.
    """
    if output and output_dir:
        raise ArgumentError("--output and --output-dir exclude each other; expected one of them")
    if lookahead is not None and context is not None:
        raise ArgumentError("--lookahead and --context exclude each other; expected one of them")
    wanted_context = None if context is None else _parsed_context(context)

    sample = None if inputs else _sample()
    recordings, faults = _collect(inputs) if sample is None else ([Recording(sample, "sample")], 0)
    if not recordings:
        return 1
    if len(recordings) > 1 and format_name in ("srt", "vtt") and not output_dir:
        raise ArgumentError(f"--format {format_name} with several recordings; expected --output-dir")
    with open_writer(recordings, format_name, output, output_dir) as write:
        speech_model = _loaded(model, device, dtype)
        if lookahead is not None:
            wanted_context = _context_with(speech_model, lookahead)
        faults += _run(speech_model, recordings, write, head, batch_size, wanted_context)
    if sample is not None and not faults:
        click.echo(_NEXT_STEPS, err=True)
    return 1 if faults else 0


@commands.command(short_help="Measure how fast a model decodes here.")
@click.argument("inputs", metavar="[FILES|FOLDERS|GLOBS]...", nargs=-1, type=click.Path(path_type=str))
@_model_option
@click.option("--head", type=click.Choice(["rnnt", "tdt"]), help="Decoder head.  [default: the model's own]")
@click.option(
    "-b", "--batch", metavar="N,N,..", help="Batch sizes.  [default: 1,8,32,128 on a GPU, 1,8 on a CPU]"
)
@click.option("--seconds", type=click.FloatRange(min=0.1), help="Audio in each row.  [default: 12]")
@click.option("--frames", type=click.IntRange(min=1), help="Encoder frames in each row, instead of seconds.")
@_device_options
@click.option(
    "--json", "output", type=click.Path(path_type=str), metavar="FILE", help="Write the figures, too."
)
@_traceback_option
def bench(
    inputs: tuple[str, ...],
    model: str,
    head: str | None,
    batch: str | None,
    seconds: float | None,
    frames: int | None,
    device: str,
    dtype: str,
    output: str | None,
) -> int:
    """Measure how fast a model decodes on this machine, beside what its encoder costs.

    The recordings, or else a built-in sample, are repeated until every row of a batch is full; each row
    starts at another place. Times are medians of a whole batch.
    """
    if seconds is not None and frames is not None:
        raise ArgumentError("--seconds and --frames exclude each other; expected one of them")
    batches = None if batch is None else _parsed_batches(batch)
    recordings, faults = _collect(inputs) if inputs else ([Recording(_sample(), "sample")], 0)
    if faults:
        return 1
    speech_model = _loaded(model, device, dtype)
    if frames is None:
        frames = max(1, round((seconds or 12.0) / speech_model.frame_seconds))

    from .bench import Report

    report = Report(speech_model, [r.path for r in recordings], frames, head, output)
    click.echo(report.heading)
    for size in batches or ((1, 8) if speech_model.device.type == "cpu" else (1, 8, 32, 128)):
        click.echo(report.measure(size))
    return 0


@commands.command(short_help="Show what was built, and what is used here.")
@_traceback_option
def info() -> None:
    """Show what was built, which GPU there is, and which paths are used."""
    from .about import describe

    for name, value in describe():
        click.echo(f"{name + ':':<16} {value}")


def _parsed_context(value: str) -> tuple[int, int]:
    try:
        left, right = (int(part) for part in value.strip("[]() ").split(","))
    except ValueError:
        raise ArgumentError(f"--context {value!r}; expected two integers such as 70,13") from None
    return left, right


def _parsed_batches(value: str) -> list[int]:
    sizes = [int(part) if part.strip().isdecimal() else 0 for part in value.split(",")]
    if min(sizes) < 1:
        raise ArgumentError(f"--batch {value!r}; expected batch sizes such as 1,8,32")
    return sizes


def _context_with(model: SpeechModel, lookahead: int) -> tuple[int, int]:
    contexts = model.encoder.config.contexts
    for context in contexts:
        if context[1] == lookahead:
            return context
    known = ", ".join(str(right) for _, right in contexts if right >= 0) or "none: its context is unlimited"
    raise ArgumentError(f"--lookahead {lookahead}; expected one that {model.name} was trained for ({known})")


def _sample() -> str:
    path = Path(__file__).parent / "models" / "bundled" / "sample.wav"
    if not path.is_file():
        raise ArgumentError(
            "no files were given, and this build has no built-in sample; expected a recording"
        )
    return str(path)


def _collect(inputs: Sequence[str]) -> tuple[list[Recording], int]:
    """The recordings that the arguments name, and how many arguments name none."""
    from .audio.files import AUDIO_SUFFIXES

    def is_audio(name: str) -> bool:
        return os.path.splitext(name)[1].lower() in AUDIO_SUFFIXES

    found: list[Recording] = []
    unreadable: list[OSError] = []
    faults = 0
    for argument in inputs:
        matches = [argument]
        if not os.path.lexists(argument) and glob.has_magic(argument):
            matches = sorted(glob.glob(argument, recursive=True))
        before = len(found)
        unreadable.clear()
        for match in matches:
            if not os.path.isdir(match):
                found.append(Recording(match, os.path.basename(match)))
                continue
            for folder, subfolders, names in os.walk(match, onerror=unreadable.append):
                subfolders.sort()
                paths = [os.path.join(folder, name) for name in sorted(names) if is_audio(name)]
                found += [Recording(path, os.path.relpath(path, match)) for path in paths]
        for error in unreadable:
            faults += _complain(f"{error.filename}: {error.strerror}; expected a folder that can be read")
        if len(found) == before and not unreadable:
            what = "the folder holds" if os.path.isdir(argument) else "the pattern matches"
            faults += _complain(
                f"{argument}: {what} no recordings; expected {', '.join(sorted(AUDIO_SUFFIXES))}"
            )
    return found, faults


def _loaded(model: str, device: str, dtype: str) -> SpeechModel:
    import torch

    from .models import load

    return load(
        model,
        dtype="auto" if dtype == "auto" else getattr(torch, dtype),
        device=None if device == "auto" else device,
    )


def _run(
    model: SpeechModel,
    recordings: list[Recording],
    write: Write,
    head: str | None,
    batch_size: int,
    context: tuple[int, int] | None,
) -> int:
    """Transcribe and write everything; the number of recordings that failed."""
    from .models.transcription import transcribe as run

    began, faults, seconds = time.monotonic(), 0, 0.0
    on_terminal = sys.stderr.isatty()
    with _progress(len(recordings), on_terminal) as advance:

        def on_result(index: int, transcript: Transcript) -> None:
            nonlocal faults, seconds
            seconds += transcript.duration
            if on_terminal:
                click.echo(_CLEAR_LINE, err=True, nl=False)
            if transcript.error is not None:
                faults += _complain(transcript.error)
            write(index, transcript)
            advance(1)

        run(model, [r.path for r in recordings], head, batch_size, context, on_result)
    took = time.monotonic() - began
    if on_terminal and seconds > 0:
        click.echo(
            f"{len(recordings) - faults} of {len(recordings)} recordings, {seconds:.1f} s of audio "
            f"in {took:.1f} s ({seconds / took:.0f} times real time) on {model.device}",
            err=True,
        )
    return faults


@contextmanager
def _progress(length: int, on_terminal: bool) -> Iterator[Callable[[int], None]]:
    if not on_terminal or length < 2:
        yield lambda steps: None
        return
    with click.progressbar(length=length, label="Transcribing", file=sys.stderr, show_pos=True) as bar:
        yield bar.update
    click.echo("\033[A" + _CLEAR_LINE, err=True, nl=False)


if __name__ == "__main__":
    main()
