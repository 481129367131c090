"""From recordings to text: reading ahead, batching by length, words with times and confidences."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from ..audio.files import audio_seconds, read_audio, resample
from ..errors import ArgumentError, AudioError
from .memory import attention_bytes, available_bytes, is_out_of_memory

if TYPE_CHECKING:
    from .model import Hypothesis, SpeechModel

Samples: TypeAlias = "np.ndarray | Tensor"
#: A path; samples at the model's rate; or samples with their rate.
AudioInput: TypeAlias = "str | os.PathLike[str] | Samples | tuple[Samples, int]"

# A batch holds no more audio than this, padding included: long recordings go through alone.
_BATCH_SECONDS = 1200.0
_READERS = 4


@dataclass(frozen=True)
class Word:
    """A recognised word.

    Attributes
    ----------
    text: the word.
    start, end: seconds from the beginning of the recording, on the encoder's frame grid. A word starts with
        the frame of its first token. It ends with the frame of its last token (RNN-T), after that token's
        predicted duration (TDT) or with its last repetition (CTC), and never after the recording.
    confidence: geometric mean of the probabilities that the model gave to the word's tokens, 0 to 1.
    """

    text: str
    start: float
    end: float
    confidence: float


@dataclass(frozen=True)
class Transcript:
    """What was recognised in one recording.

    Attributes
    ----------
    file: the path as it was given; "<samples N>" for the N-th input if that was an array.
    text: the text, "" where nothing was recognised or `error` is set.
    words: the words of the text with their times.
    tokens: token ids.
    duration: seconds of audio.
    score: sum of the tokens' log-probabilities.
    error: one line that says why there is no text, None where there is one.
    """

    file: str
    text: str = ""
    words: list[Word] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    duration: float = 0.0
    score: float = 0.0
    error: str | None = None


@dataclass(frozen=True, eq=False)
class _Clip:
    """A recording in memory: float32 [S] at the model's rate."""

    index: int
    file: str
    samples: np.ndarray


def transcribe(
    model: SpeechModel,
    files: AudioInput | Sequence[AudioInput],
    head: str | None = None,
    batch_size: int = 16,
    context: tuple[int, int] | None = None,
    on_result: Callable[[int, Transcript], None] | None = None,
) -> list[Transcript]:
    """Transcribe recordings.

    Recordings of similar length are decoded together, the longest first, while the next ones are read. A
    recording that cannot be read or decoded gets a Transcript with `error` set; the others are not affected.
    Where memory runs out, a batch is retried in halves.

    The encoder sees a whole recording at once: its memory grows with the square of the length.

    Parameters
    ----------
    model: what `rnnt_fastdecode.load` returned.
    files: paths, arrays or tensors [S] (float in -1..1, or int16/int32) at the model's sample rate, or
        (samples, sample_rate) pairs.
    head: "rnnt", "tdt" or "ctc"; None = the model's default.
    batch_size: most recordings decoded together.
    context: (left, right) attention context in encoder frames; None = the model's own.
    on_result: called with (index, transcript) in this thread as soon as a recording is done, in any order.

    Returns
    -------
    One Transcript for each input, in the order of the inputs. Audio shorter than one encoder frame gives "".

    Raises
    ------
    ArgumentError: unknown head, impossible context or batch size, an input that is no path and no samples.
    """
    if isinstance(files, (str, os.PathLike, np.ndarray, Tensor)) or _is_pair(files):
        files = [files]  # type: ignore[list-item]
    if not isinstance(batch_size, int) or batch_size < 1:
        raise ArgumentError(f"batch_size must be an integer of at least 1, got {batch_size!r}")
    if head is not None and head not in model.heads:
        raise ArgumentError(f"head must be one of {sorted(model.heads)}, got {head!r}")
    if context is not None:
        context = _checked_context(model, context)
    inputs = [_checked_input(index, item) for index, item in enumerate(files)]
    results: list[Transcript | None] = [None] * len(inputs)

    def finish(index: int, transcript: Transcript) -> None:
        results[index] = transcript
        if on_result is not None:
            on_result(index, transcript)

    pool = ThreadPoolExecutor(_READERS, thread_name_prefix="rnnt_fastdecode-read")
    try:
        for clips in _read_ahead(pool, inputs, model.sample_rate, batch_size, finish):
            heard = []
            for clip in clips:
                if len(clip.samples) < model.frame_seconds * model.sample_rate:
                    finish(clip.index, _transcript(model, clip, None))
                else:
                    heard.append(clip)
            for batch in _batches([len(clip.samples) / model.sample_rate for clip in heard], batch_size):
                decoded = _decode(model, [heard[i] for i in batch], head, context)
                for i, outcome in zip(batch, decoded, strict=True):
                    finish(heard[i].index, _transcript(model, heard[i], outcome))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    return [result for result in results if result is not None]


def _is_pair(item: Any) -> bool:
    return (
        isinstance(item, tuple)
        and len(item) == 2
        and isinstance(item[0], (np.ndarray, Tensor))
        and isinstance(item[1], int)
    )


def _checked_context(model: SpeechModel, context: Any) -> tuple[int, int]:
    is_pair = isinstance(context, (tuple, list)) and len(context) == 2
    if not is_pair or not all(type(count) is int for count in context):
        raise ArgumentError(f"context must be a (left, right) pair of integers, got {context!r}")
    model.encoder.config.check_context(tuple(context))
    return context[0], context[1]


def _checked_input(index: int, item: Any) -> tuple[str, Any]:
    """The name of an input and the input itself; ArgumentError for one that can hold no audio."""
    if isinstance(item, (str, os.PathLike)):
        return os.fsdecode(item), item
    samples, rate = item if _is_pair(item) else (item, None)
    if not isinstance(samples, (np.ndarray, Tensor)):
        raise ArgumentError(
            f"files[{index}] must be a path, samples or (samples, sample_rate), got {type(item).__name__}"
        )
    if isinstance(samples, Tensor):
        samples = samples.detach().cpu()
        array = samples.float().numpy() if samples.is_floating_point() else samples.numpy()
    else:
        array = samples
    if array.ndim != 1 or array.dtype not in (np.float16, np.float32, np.float64, np.int16, np.int32):
        raise ArgumentError(
            f"files[{index}] must be [S] samples, float, int16 or int32, "
            f"got {list(samples.shape)} {samples.dtype}"
        )
    return f"<samples {index}>", (array, rate)


def _read(name: str, source: Any, sample_rate: int) -> np.ndarray:
    """float32 [S] at `sample_rate`; AudioError where there is none."""
    if not isinstance(source, tuple):
        return read_audio(source, sample_rate)
    array, rate = source
    if len(array) == 0:
        raise AudioError(f"{name}: holds no samples; expected at least one")
    scale = 1.0 if array.dtype.kind == "f" else 1.0 / -float(np.iinfo(array.dtype).min)
    samples = array.astype(np.float32) * np.float32(scale)
    if not np.isfinite(samples).all():
        raise AudioError(f"{name}: holds NaN or infinite samples; expected finite ones")
    return samples if rate is None else resample(samples, rate, sample_rate)


def _seconds(source: Any, sample_rate: int) -> float:
    if isinstance(source, tuple):
        return len(source[0]) / (source[1] or sample_rate)
    return audio_seconds(source)


def _batches(seconds: Sequence[float], batch_size: int) -> Iterator[list[int]]:
    """Indexes in groups of similar length, the longest first."""
    batch: list[int] = []
    for index in sorted(range(len(seconds)), key=lambda i: -seconds[i]):
        longest = seconds[batch[0]] if batch else 0.0
        if batch and (len(batch) == batch_size or longest * (len(batch) + 1) > _BATCH_SECONDS):
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def _read_ahead(
    pool: ThreadPoolExecutor,
    inputs: list[tuple[str, Any]],
    sample_rate: int,
    batch_size: int,
    finish: Callable[[int, Transcript], None],
) -> Iterator[list[_Clip]]:
    """The clips of each batch, read while the one before is decoded; faulty inputs are finished here."""
    probes = [pool.submit(_seconds, source, sample_rate) for _, source in inputs]
    readable, seconds = [], []
    for index, (probe, (name, _)) in enumerate(zip(probes, inputs, strict=True)):
        try:
            seconds.append(probe.result())
            readable.append(index)
        except AudioError as error:
            finish(index, Transcript(name, error=str(error)))

    def submit(batch: list[int]) -> list[tuple[int, Future[np.ndarray]]]:
        chosen = (readable[i] for i in batch)
        return [(index, pool.submit(_read, *inputs[index], sample_rate)) for index in chosen]

    plan = _batches(seconds, batch_size)
    ahead = submit(next(plan, []))
    while ahead:
        now, ahead = ahead, submit(next(plan, []))
        clips = []
        for index, reading in now:
            try:
                clips.append(_Clip(index, inputs[index][0], reading.result()))
            except (AudioError, MemoryError) as error:
                message = str(error) or f"{inputs[index][0]}: not enough memory to read it"
                finish(index, Transcript(inputs[index][0], error=message))
        yield clips


def _decode(
    model: SpeechModel, clips: list[_Clip], head: str | None, context: tuple[int, int] | None
) -> list[Hypothesis | str]:
    """A hypothesis, or the reason why there is none, for each clip."""
    longest = max(len(clip.samples) for clip in clips) / model.sample_rate
    needed = attention_bytes(model, len(clips), longest)
    enough = needed <= available_bytes(model.device)
    if enough:
        try:
            return _decode_at_once(model, clips, head, context)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
    # Outside of the except block: the exception holds on to the tensors of the pass that failed.
    if len(clips) == 1:
        return [
            f"{clips[0].file}: not enough memory on {model.device} for {longest:.0f} s of audio in one pass "
            f"(about {needed / 2**30:.1f} GiB); expected shorter parts"
        ]
    half = (len(clips) + 1) // 2
    return _decode(model, clips[:half], head, context) + _decode(model, clips[half:], head, context)


# Not inference_mode: buffers that a decoder keeps could then not be used outside of it.
@torch.no_grad()
def _decode_at_once(
    model: SpeechModel, clips: list[_Clip], head: str | None, context: tuple[int, int] | None
) -> list[Hypothesis | str]:
    lengths = torch.tensor([len(clip.samples) for clip in clips])
    samples = torch.zeros(len(clips), int(lengths.max()))
    for row, clip in zip(samples, clips, strict=True):
        row[: len(clip.samples)] = torch.from_numpy(clip.samples)
    encoded, frames = model.encode(samples.to(model.device), lengths.to(model.device), context)

    # One row that is not finite must neither yield text nor reach the decoder.
    valid = torch.arange(encoded.shape[1], device=encoded.device) < frames.unsqueeze(1)
    spoiled = (~torch.isfinite(encoded).all(dim=2) & valid).any(dim=1)
    encoded = encoded.masked_fill(spoiled[:, None, None], 0.0)
    outcomes: list[Hypothesis | str] = []
    hypotheses = model.decode(encoded, torch.where(spoiled, 0, frames), head)
    for clip, hypothesis, bad in zip(clips, hypotheses, spoiled.tolist(), strict=True):
        part = "the encoder output" if bad else "a token's log-probability"
        finite = not bad and all(map(math.isfinite, hypothesis.log_probs))
        outcomes.append(
            hypothesis
            if finite
            else f"{clip.file}: {part} is not finite in {_dtype_name(model)}; "
            "expected finite values, try another dtype"
        )
    return outcomes


def _dtype_name(model: SpeechModel) -> str:
    return str(model.dtype).removeprefix("torch.")


def _transcript(model: SpeechModel, clip: _Clip, outcome: Hypothesis | str | None) -> Transcript:
    duration = len(clip.samples) / model.sample_rate
    if outcome is None:
        return Transcript(clip.file, duration=duration)
    if isinstance(outcome, str):
        return Transcript(clip.file, duration=duration, error=outcome)
    frame = model.frame_seconds
    words = []
    for text, first, behind in model.tokenizer.words(outcome.tokens):
        last = behind - 1
        start = min(outcome.frames[first] * frame, duration)
        end = min((outcome.frames[last] + max(outcome.durations[last], 1)) * frame, duration)
        log_probs = outcome.log_probs[first:behind]
        confidence = min(math.exp(sum(log_probs) / len(log_probs)), 1.0)
        words.append(Word(text, round(start, 3), round(end, 3), round(confidence, 4)))
    return Transcript(
        clip.file,
        text=model.tokenizer.decode(outcome.tokens).strip(),
        words=words,
        tokens=list(outcome.tokens),
        duration=duration,
        score=sum(outcome.log_probs),
    )
