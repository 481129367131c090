"""Exact greedy decoding of RNN-T and TDT transducers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import ops
from ..errors import ArgumentError
from ..loop_ops import DTYPES
from .modules import Joint, TransducerHead
from .results import DecodeResult
from .rules import GreedyRules
from .runners import ENGINES, CpuRunner, CudaRunner
from .state import DecodeState
from .weights import Predictor, pack_joint, pack_predictor

# Frames judged at once where the caller does not say. A blank costs a frame of the window, a label ends it:
# on a GPU a wide window saves rounds. The CPU's loop looks ahead as far as a pass over the weights is worth.
DEFAULT_WINDOW = {"cuda": 6, "cpu": 1}


class GreedyDecoder:
    """Greedy search over a transducer, on the device of its weights.

    Follows NVIDIA NeMo's label-looping rules: start of sequence is a step of the blank label from a zero
    state; a blank costs one frame (TDT: its duration, at least one); after `max_symbols` labels on one frame
    the next frame is taken; a TDT duration that points beyond the end is carried to the next chunk. Of equal
    logits the first wins.

    Parameters
    ----------
    predictor: `LstmPredictor`, `GruPredictor` or `StatelessPredictor`, vocabulary V with blank, float32,
        bfloat16 or float16.
    joint: `Joint` with V + N outputs on the same device in the same dtype. Parameters of both are copied.
    blank_id: id of blank, anywhere in the vocabulary.
    durations: the frames that each of the N duration outputs stands for; empty for RNN-T.
    max_symbols: labels at one frame at most; None means 10, as in NeMo.
    window: frames judged at once on a GPU, >= 1; changes the speed only. None chooses.
    engine: what decodes on a GPU; changes the speed only. "resident": one kernel that keeps the weights in
        shared memory, for networks that fit (`ops.greedy_resident_bytes`); "graph": a CUDA graph with a loop
        of its own. None chooses for every batch.

    Raises
    ------
    ArgumentError: modules that do not fit together, or a value out of range.
    """

    def __init__(
        self,
        predictor: Predictor,
        joint: Joint,
        blank_id: int,
        durations: Sequence[int] = (),
        max_symbols: int | None = 10,
        window: int | None = None,
        engine: str | None = None,
    ) -> None:
        self._predictor, self._joint = pack_predictor(predictor), pack_joint(joint)
        weight = self._joint.weight
        self.device, self.dtype = weight.device, weight.dtype
        self._width = self._joint.encoder_weight.shape[1]
        if self.device.type not in DEFAULT_WINDOW:
            raise ArgumentError(f"joint must be on a CPU or a CUDA device, got {self.device}")
        if self.dtype not in DTYPES:
            raise ArgumentError(f"joint must be float32, bfloat16 or float16, got {self.dtype}")
        first = self._predictor.weights[0]
        if first.device != self.device or first.dtype != self.dtype:
            raise ArgumentError(
                f"predictor and joint must agree, got {first.dtype} on {first.device} "
                f"and {self.dtype} on {self.device}"
            )
        vocab_size = weight.shape[0] - len(durations)
        if first.shape[-2] != vocab_size:
            raise ArgumentError(
                f"joint must have {first.shape[-2]} token and {len(durations)} duration outputs, "
                f"got {weight.shape[0]} outputs"
            )
        self.rules = GreedyRules(
            int(blank_id),
            tuple(int(duration) for duration in durations),
            10 if max_symbols is None else int(max_symbols),
            DEFAULT_WINDOW[self.device.type] if window is None else int(window),
        )
        self.rules.check(vocab_size)
        self._start = self._start_of_sequence()
        if engine is not None and (engine not in ENGINES or self.device.type != "cuda"):
            raise ArgumentError(
                f"engine must be None or, on a CUDA device, one of {list(ENGINES)}, got {engine!r}"
            )
        parts = (self._predictor, self._joint, self.rules)
        self._runner: CpuRunner | CudaRunner = (
            CudaRunner(*parts, self._start, window, engine)
            if self.device.type == "cuda"
            else CpuRunner(*parts)
        )

    @classmethod
    def from_head(
        cls, head: TransducerHead, window: int | None = None, engine: str | None = None
    ) -> GreedyDecoder:
        """A decoder for a head with the rules that it names."""
        parts = (head.predictor, head.joint, head.blank_id, head.durations, head.max_symbols)
        return cls(*parts, window, engine)

    @property
    def path(self) -> str:
        """What decoded the last batch: "cpu", "cuda resident", "cuda graph" or "cuda host loop".

        Before the first one: what would decode a single utterance.
        """
        return self._runner.path

    @property
    def captures(self) -> int:
        """How often a CUDA graph was recorded so far; 0 on a CPU."""
        return getattr(self._runner, "captures", 0)

    def window(self, batch: int) -> int:
        """Frames judged at once in a batch of this size, by what decodes it."""
        return self._runner.window(batch)

    def initial_state(self, batch: int) -> DecodeState:
        """The state of `batch` utterances that have not begun."""
        return self._start.select(torch.zeros(batch, dtype=torch.int64, device=self.device))

    def __call__(
        self,
        encoder_output: Tensor,
        lengths: Tensor,
        state: DecodeState | None = None,
        copy: bool = True,
    ) -> DecodeResult:
        """Decode a batch, or the next chunk of one. On a GPU this does not wait for the result.

        Parameters
        ----------
        encoder_output: [B, T, D] floating point on the decoder's device; converted to the weights' dtype
            before the joint's encoder projection.
        lengths: [B] int32 or int64, valid frames of each row, 0 <= lengths <= T; on the decoder's device or
            on the CPU. On a GPU they are looked at when the result is read; see `DecodeResult`.
        state: `DecodeResult.state` of the chunk before; None at the start.
        copy: on a GPU, start the asynchronous copy of the labels to page-locked host memory behind the
            decoding: 16 * B * (T + 1) bytes. False leaves it to `DecodeResult.start_copy` or to the first
            use.

        Raises
        ------
        ArgumentError: an argument with a wrong shape, dtype, device or value; nothing has run then.
        CaptureError: the current CUDA stream is being captured; nothing has run then.
        """
        if torch.is_inference_mode_enabled():
            # Results and buffers outlive the mode: made in it they could not be used outside of it.
            with torch.inference_mode(False):
                return self(encoder_output, lengths, state, copy)
        self._check(encoder_output, lengths, state)
        if encoder_output.requires_grad:
            encoder_output = encoder_output.detach()
        if encoder_output.numel() == 0:
            state = self.initial_state(encoder_output.shape[0]) if state is None else state
            return DecodeResult.without_frames(lengths, state)
        return self._runner(encoder_output, lengths, self._start if state is None else state, copy)

    def _check(self, encoder_output: Tensor, lengths: Tensor, state: DecodeState | None) -> None:
        shape = encoder_output.shape
        if len(shape) != 3 or shape[2] != self._width:
            raise ArgumentError(f"encoder_output must be [B, T, {self._width}], got {list(shape)}")
        if not encoder_output.is_floating_point():
            raise ArgumentError(f"encoder_output must be floating point, got {encoder_output.dtype}")
        if encoder_output.device != self.device:
            raise ArgumentError(f"encoder_output must be on {self.device}, got {encoder_output.device}")
        batch, frames, _ = shape
        if lengths.shape != (batch,) or lengths.dtype not in (torch.int32, torch.int64):
            raise ArgumentError(
                f"lengths must be [{batch}] int32 or int64, got {list(lengths.shape)} {lengths.dtype}"
            )
        if lengths.is_cpu:
            least, most = (int(value) for value in lengths.aminmax()) if batch > 0 else (0, 0)
            if least < 0 or most > frames:
                raise ArgumentError(
                    f"lengths must lie between 0 and {frames} frames, got {least if least < 0 else most}"
                )
        elif lengths.device != self.device:
            raise ArgumentError(f"lengths must be on {self.device} or the CPU, got {lengths.device}")
        if state is not None and (state.batch != batch or state.output.device != self.device):
            raise ArgumentError(
                f"state must hold {batch} rows on {self.device}, got {state.batch} on {state.output.device}"
            )

    def _start_of_sequence(self) -> DecodeState:
        blank_id = self.rules.blank_id
        state = self._predictor.zero_state(1, blank_id)
        output = self._joint.weight.new_zeros(1, self._joint.weight.shape[1])
        label = torch.full((1,), blank_id, dtype=torch.int32, device=self.device)
        ops.predictor_step_(self._predictor.kind, self._predictor.weights, label, state, output)
        batch_dims = self._predictor.batch_dims
        return DecodeState(
            tuple(state[: len(batch_dims)]),
            batch_dims,
            output,
            torch.zeros(1, dtype=torch.int32, device=self.device),
            torch.zeros(1, dtype=torch.int64, device=self.device),
        )
