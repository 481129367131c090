"""How fast a model decodes on this machine: what `rnnt-fastdecode bench` measures and shows."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from . import __version__
from .audio.files import read_audio
from .errors import ArgumentError
from .models.memory import attention_bytes, available_bytes, is_out_of_memory
from .transducer import DecodeResult, GreedyDecoder, TransducerHead

if TYPE_CHECKING:
    from .models.model import SpeechModel

Result = TypeVar("Result")

# Recordings are read until there is this much; more would not be heard in a batch.
_AUDIO_SECONDS = 600.0
# Rows begin this share of the audio apart, round and round: no two begin at the same place.
_GOLDEN_SECTION = 0.6180339887498949


def timed(run: Callable[[], Result], device: torch.device) -> tuple[Result, float]:
    """What a call gives, and the milliseconds from its start until the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    result = run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return result, (time.perf_counter() - began) * 1e3


def milliseconds(
    run: Callable[[], Any],
    device: torch.device,
    repeats: int = 20,
    warmup: int = 3,
    seconds: float = 1.0,
    least: int = 3,
) -> float:
    """The median of `repeats` timed calls; after `seconds` of them, `least` calls are enough."""
    for _ in range(warmup):
        run()
    times: list[float] = []
    while len(times) < repeats and (len(times) < least or sum(times) < seconds * 1e3):
        times.append(timed(run, device)[1])
    return statistics.median(times)


def surroundings(device: torch.device) -> dict[str, str]:
    """Device and versions, for the record."""
    found = {"device": _device_name(device), "rnnt_fastdecode": __version__, "torch": torch.__version__}
    if device.type == "cuda":
        found["cuda"] = torch.version.cuda or "none"
    else:
        found["threads"] = str(torch.get_num_threads())
    return {**found, "python": platform.python_version()}


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


@dataclass(frozen=True)
class Measurement:
    """What a batch of `batch` rows, each of `seconds` of audio or `frames` encoder frames, took.

    path: which of the decoder's loops ran.
    labels_per_frame: labels emitted for each frame.
    decode_ms, encode_ms: median milliseconds of a batch, from encoder output to labels on the device, and
        from samples to encoder output.
    first_ms: the first decoder call, with everything that is prepared then.
    """

    batch: int
    frames: int
    seconds: float
    path: str
    labels_per_frame: float
    decode_ms: float
    first_ms: float
    encode_ms: float

    @property
    def ms_per_utterance(self) -> float:
        return self.decode_ms / self.batch

    @property
    def decode_rtfx(self) -> float:
        """Seconds of audio decoded in a second, the encoder left out."""
        return self.batch * self.seconds / (self.decode_ms / 1e3)

    @property
    def decode_share(self) -> float:
        """Time of decoding for the time of encoding."""
        return self.decode_ms / self.encode_ms

    def as_dict(self) -> dict[str, Any]:
        """Fields and figures drawn from them, for JSON."""
        return {
            **asdict(self),
            "ms_per_utterance": self.ms_per_utterance,
            "decode_rtfx": self.decode_rtfx,
            "decode_share": self.decode_share,
        }


def transducer_head(model: SpeechModel, head: str | None = None) -> tuple[str, TransducerHead]:
    """The head with this name; None: the model's default, or else its first, of the RNN-T and TDT heads.

    Raises ArgumentError if the model has no such head.
    """
    known = {name: module for name, module in model.heads.items() if isinstance(module, TransducerHead)}
    if head is None and known:
        head = model.default_head if model.default_head in known else next(iter(known))
    if head not in known:
        have = f"heads {sorted(model.heads)}" if known else f"no RNN-T or TDT head, only {list(model.heads)}"
        raise ArgumentError(f"head {'rnnt or tdt' if head is None else head}; {model.name} has {have}")
    return head, known[head]


def audio_rows(samples: np.ndarray, batch: int, length: int) -> Tensor:
    """[batch, length] float32: the samples [S], repeated without end, each row from another place on.

    Raises ArgumentError if there are no samples.
    """
    if len(samples) == 0:
        raise ArgumentError("audio holds no samples; expected at least one")
    repeated = np.tile(samples, -(-length // len(samples)) + 1)
    starts = [int(row * _GOLDEN_SECTION % 1.0 * len(samples)) for row in range(batch)]
    return torch.from_numpy(np.stack([repeated[start : start + length] for start in starts]))


def measure(
    model: SpeechModel,
    samples: np.ndarray,
    batch: int,
    frames: int,
    head: str | None = None,
    repeats: int = 20,
) -> Measurement:
    """Encode and decode `batch` rows of `frames` encoder frames that are made of these samples.

    Parameters
    ----------
    samples: float32 [S] at the model's rate; repeated as often as needed.
    batch, frames: B and T, at least 1.
    head: see `transducer_head`.
    repeats: timed calls of the decoder at most.

    Raises
    ------
    ArgumentError: no such head, no samples, or a size below 1.
    torch.OutOfMemoryError, RuntimeError: the encoder does not fit into memory.
    """
    if min(batch, frames) < 1:
        raise ArgumentError(f"batch and frames must be at least 1, got {batch} and {frames}")
    _, module = transducer_head(model, head)
    device = model.device
    length = round(frames * model.frame_seconds * model.sample_rate)
    rows = audio_rows(samples, batch, length).to(device)
    row_lengths = torch.full((batch,), length, dtype=torch.int64, device=device)
    encoded, lengths = model.encode(rows, row_lengths)
    encode_ms = milliseconds(lambda: model.encode(rows, row_lengths), device, 10, 0, 2.0, 1)
    # One more frame comes out where convolutions look over the end.
    encoded, lengths = encoded[:, :frames].contiguous(), lengths.clamp(max=frames)

    decoder = GreedyDecoder.from_head(module)

    def decode() -> DecodeResult:
        return decoder(encoded, lengths)

    result, first_ms = timed(decode, device)
    return Measurement(
        batch=batch,
        frames=frames,
        seconds=frames * model.frame_seconds,
        path=decoder.path,
        labels_per_frame=float(result.lengths.sum()) / max(int(lengths.sum()), 1),
        decode_ms=milliseconds(decode, device, repeats),
        first_ms=first_ms,
        encode_ms=encode_ms,
    )


_COLUMNS: dict[str, Callable[[Measurement], str]] = {
    "    B": lambda row: f"{row.batch}",
    "decode ms": lambda row: f"{row.decode_ms:.3f}",
    "ms/utterance": lambda row: f"{row.ms_per_utterance:.4f}",
    "times real time": lambda row: f"{row.decode_rtfx:,.0f}",
    "first call ms": lambda row: f"{row.first_ms:.1f}",
    "encode ms": lambda row: f"{row.encode_ms:.2f}",
    "decode/encode": lambda row: f"{100 * row.decode_share:.1f} %",
    "decoder": lambda row: row.path,
}


class Report:
    """Measures batch after batch, and makes the lines of a table and a JSON file of it.

    Parameters
    ----------
    model, frames, head: see `measure`.
    paths: recordings that rows are made of.
    output: a JSON file that is written after every batch, or None.

    Raises
    ------
    ArgumentError: no such head, no samples, a file that cannot be written.
    AudioError: a recording cannot be read.
    """

    def __init__(
        self, model: SpeechModel, paths: Sequence[str], frames: int, head: str | None, output: str | None
    ) -> None:
        self._model, self._frames = model, frames
        self._head, _ = transducer_head(model, head)
        self._samples = _read(paths, model.sample_rate)
        settings = {
            "model": model.name,
            "head": self._head,
            "dtype": str(model.dtype).removeprefix("torch."),
            "recordings": list(paths),
        }
        self._record = Record(None if output is None else Path(output), surroundings(model.device), settings)
        try:
            self._record.save()
        except OSError as error:
            raise ArgumentError(
                f"--json {output}: {error.strerror}; expected a file that can be written"
            ) from None

    @property
    def heading(self) -> str:
        """What is measured, and the names of the columns."""
        settings, device = self._record.settings, self._record.where["device"]
        seconds = self._frames * self._model.frame_seconds
        return (
            f"{settings['model']}, {settings['head']} head, {settings['dtype']}, on {device}; "
            f"a row is {seconds:.1f} s of audio, {self._frames} frames\n" + "  ".join(_COLUMNS)
        )

    def measure(self, batch: int) -> str:
        """Measure one batch; its line of the table. ArgumentError where memory does not suffice."""
        seconds = self._frames * self._model.frame_seconds
        row = None
        if attention_bytes(self._model, batch, seconds) <= available_bytes(self._model.device):
            try:
                row = measure(self._model, self._samples, batch, self._frames, self._head)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
        if row is None:
            raise ArgumentError(
                f"--batch {batch}: not enough memory on {self._model.device} to encode as many rows of "
                f"{seconds:.0f} s; expected fewer or shorter ones"
            )
        self._record.rows.append(row.as_dict())
        self._record.save()
        return "  ".join(f"{show(row):>{len(name)}}" for name, show in _COLUMNS.items())


class Record:
    """The figures of a run. With a path, the file there is whole and up to date after every `save`."""

    def __init__(self, path: Path | None, where: dict[str, str], settings: dict[str, Any]) -> None:
        self.where, self.settings = where, settings
        self.rows: list[dict[str, Any]] = []
        self._path = path

    def content(self) -> dict[str, Any]:
        """What the file holds."""
        return {"where": self.where, "settings": self.settings, "rows": self.rows}

    def save(self) -> None:
        """Write the file: a reader, or a run that is killed, never finds half of it."""
        if self._path is None:
            return
        text = json.dumps(self.content(), indent=1) + "\n"
        if self._path.exists() and not self._path.is_file():
            # A pipe or a terminal is not to be replaced.
            self._path.write_text(text, encoding="utf-8")
            return
        beside = self._path.with_name(f"{self._path.name}.part")
        beside.write_text(text, encoding="utf-8")
        os.replace(beside, self._path)


def _read(paths: Sequence[str], sample_rate: int) -> np.ndarray:
    parts: list[np.ndarray] = []
    for path in paths:
        parts.append(read_audio(path, sample_rate))
        if sum(map(len, parts)) >= _AUDIO_SECONDS * sample_rate:
            break
    return np.concatenate(parts)
