"""How fast a model decodes on this machine: what `rnnt-fastdecode bench` measures."""

from __future__ import annotations

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
from .errors import ArgumentError
from .transducer import DecodeResult, GreedyDecoder, TransducerHead

if TYPE_CHECKING:
    from .models.model import SpeechModel

Result = TypeVar("Result")

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


def table_head() -> str:
    """The line above those of `table_line`."""
    columns = ("B", "decode ms", "ms/utterance", "decode RTFx", "encode ms", "decode/encode", "first call ms")
    return "  ".join(f"{name:>{width}}" for name, width in zip(columns, _WIDTHS, strict=True))


def table_line(row: Measurement) -> str:
    """One line for a person to read."""
    cells = (
        f"{row.batch}",
        f"{row.decode_ms:.3f}",
        f"{row.ms_per_utterance:.4f}",
        f"{row.decode_rtfx:,.0f}",
        f"{row.encode_ms:.2f}",
        f"{100 * row.decode_share:.1f} %",
        f"{row.first_ms:.1f}",
    )
    return "  ".join(f"{cell:>{width}}" for cell, width in zip(cells, _WIDTHS, strict=True))


_WIDTHS: Sequence[int] = (5, 10, 12, 12, 10, 13, 13)
