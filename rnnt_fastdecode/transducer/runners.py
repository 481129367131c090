"""How the greedy loop is driven to its end: on the CPU, by a graph on the GPU, or by the host with a GPU."""

from __future__ import annotations

import threading
import warnings

import torch
from torch import Tensor

from ..errors import ArgumentError, CaptureError
from .graph_loop import GraphLoop, GraphLoopError
from .labels import PackedLabels
from .loop import LoopBuffers
from .resident import MOST_ROWS, ResidentRunner
from .results import DecodeResult
from .rules import GreedyRules
from .state import DecodeState
from .weights import JointWeights, PredictorWeights

# What can be asked of a CUDA decoder.
ENGINES = ("resident", "graph")
# A WHILE iteration costs about 3.5 us by itself: several masked rounds share it. A batch needs tens of them.
ROUNDS_PER_ITERATION = 4


def collect(
    buffers: LoopBuffers,
    lengths: Tensor,
    frames: int,
    state: DecodeState,
    ready: torch.cuda.Event | None,
    copy: bool,
    path: str,
) -> DecodeResult:
    """Take what the loop has left in the buffers, without waiting for it.

    Parameters
    ----------
    lengths: [B], as given to `LoopBuffers.load` with `state`.
    frames: T of this call, which lengths that are on a GPU must not exceed.
    ready: recorded by the caller once this function's work has been put on the stream; None on a CPU.
    copy: start the copy of the labels to the host.
    path: what has decoded, for the result to say.
    """
    batch = len(lengths)
    if ready is None:
        labels = PackedLabels(buffers.labels(lengths, state, int(buffers.counts.sum())), batch)
    else:
        room = batch * frames * buffers.rules.max_symbols
        packed = buffers.labels(lengths, state, room)
        labels = PackedLabels(packed, batch, likely=batch * frames, frames=frames, ready=ready)
        if copy:
            labels.enqueue_copy()
    return DecodeResult(labels, buffers.state(batch, state.decoded_lengths), path)


class CpuRunner:
    """Buffers for each call, one op call for the whole loop: any number of threads may decode at once."""

    path = "cpu"

    def __init__(self, predictor: PredictorWeights, joint: JointWeights, rules: GreedyRules) -> None:
        self._parts = (predictor, joint, rules)

    def window(self, batch: int) -> int:
        return self._parts[2].window

    def __call__(
        self, encoder_output: Tensor, lengths: Tensor, state: DecodeState, copy: bool = True
    ) -> DecodeResult:
        batch, frames = encoder_output.shape[:2]
        buffers = LoopBuffers(*self._parts, batch=batch, frames=frames)
        buffers.load(encoder_output, lengths, state)
        buffers.run_rounds(-1)
        return collect(buffers, lengths, frames, state, ready=None, copy=copy, path=self.path)


class GraphRunner:
    """Buffers for a capacity, kept from call to call; a larger batch or chunk grows them once.

    A graph of masked rounds works on them. It is recorded for the first batch, and again when the buffers
    grow. Calls from several threads take turns; on another CUDA stream a call waits for the one before it.
    """

    def __init__(self, predictor: PredictorWeights, joint: JointWeights, rules: GreedyRules) -> None:
        self._parts = (predictor, joint, rules)
        self._device = joint.weight.device
        self._lock = threading.Lock()
        self._buffers: LoopBuffers | None = None
        self._graph: GraphLoop | None = None
        self._graph_works = True
        self.captures = 0
        # A call on another stream than this one has to wait for the weights too.
        self._finished = torch.cuda.Event()
        self._finished.record(torch.cuda.current_stream(self._device))

    @property
    def path(self) -> str:
        return "cuda graph" if self._graph_works else "cuda host loop"

    def window(self, batch: int) -> int:
        return self._parts[2].window

    def __call__(
        self, encoder_output: Tensor, lengths: Tensor, state: DecodeState, copy: bool
    ) -> DecodeResult:
        """Decode a batch on the current device's current stream."""
        with self._lock:
            stream = torch.cuda.current_stream()
            stream.wait_event(self._finished)
            batch, frames = encoder_output.shape[:2]
            buffers = self._reserve(batch, frames)
            self._prepare_graph(buffers)
            finished = torch.cuda.Event()
            try:
                buffers.load(encoder_output, lengths, state)
                if self._graph is not None:
                    self._graph.launch()
                else:
                    self._loop_on_host(buffers)
                return collect(buffers, lengths, frames, state, finished, copy, self.path)
            finally:
                # Also after a failure: what was launched may still use the buffers.
                finished.record(stream)
                self._finished = finished

    def _reserve(self, batch: int, frames: int) -> LoopBuffers:
        have = self._buffers
        if have is not None and batch <= have.batch and frames <= have.frames:
            return have
        if have is not None:
            batch, frames = max(batch, have.batch), max(frames, have.frames)
        # Kernels of an earlier call may still use what is about to be freed.
        self._finished.synchronize()
        self._graph = self._buffers = None
        self._buffers = LoopBuffers(*self._parts, batch=batch, frames=frames)
        return self._buffers

    def _prepare_graph(self, buffers: LoopBuffers) -> None:
        if self._graph is not None or not self._graph_works:
            return
        # Loads every kernel: a first launch while recording would load code, which is not allowed then. No
        # row has frames.
        buffers.lengths.zero_()
        buffers.run_rounds(1)
        torch.cuda.current_stream().synchronize()
        self._graph = self._record(buffers)

    def _record(self, buffers: LoopBuffers) -> GraphLoop | None:
        try:
            graph = GraphLoop(
                lambda condition: buffers.run_rounds(ROUNDS_PER_ITERATION, condition), self._device
            )
        except GraphLoopError as error:
            self._graph_works = False
            warnings.warn(
                f"rnnt_fastdecode decodes with a loop on the host, which is slower: {error}", stacklevel=2
            )
            return None
        self.captures += 1
        return graph

    @staticmethod
    def _loop_on_host(buffers: LoopBuffers) -> None:
        buffers.run_rounds(ROUNDS_PER_ITERATION)
        while int(buffers.active) > 0:
            buffers.run_rounds(ROUNDS_PER_ITERATION)


class CudaRunner:
    """Chooses for every batch: the resident kernel, where the weights fit, or a graph of masked rounds.

    start: the state of one utterance that has not begun. window: of the resident kernel; None chooses.
    engine: one of ENGINES; None chooses for every batch.
    """

    def __init__(
        self,
        predictor: PredictorWeights,
        joint: JointWeights,
        rules: GreedyRules,
        start: DecodeState,
        window: int | None = None,
        engine: str | None = None,
    ) -> None:
        self._device, self._window = joint.weight.device, window
        self._graph = GraphRunner(predictor, joint, rules)
        resident = ResidentRunner(predictor, joint, rules, window)
        fits = engine != "graph" and resident.fits(1)
        if engine == "resident" and not fits:
            raise ArgumentError(
                "engine 'resident' cannot run this network on this device: see ops.greedy_resident_bytes"
            )
        if fits:
            resident.prepare(start)
        self._resident = resident if fits else None
        self._graph_from = 1 + MOST_ROWS[joint.weight.dtype] if engine is None else None
        self.path = resident.path if fits else self._graph.path

    @property
    def captures(self) -> int:
        return self._graph.captures

    def window(self, batch: int) -> int:
        return self._runner(batch).window(batch)

    def _runner(self, batch: int) -> ResidentRunner | GraphRunner:
        resident, graph_from = self._resident, self._graph_from
        if resident is None or (graph_from is not None and batch >= graph_from):
            return self._graph
        if resident.fits(batch):
            return resident
        if graph_from is None:
            raise ArgumentError(f"engine 'resident' cannot run {batch} rows with window {self._window}")
        return self._graph

    def __call__(
        self, encoder_output: Tensor, lengths: Tensor, state: DecodeState, copy: bool = True
    ) -> DecodeResult:
        if torch.cuda.current_device() != self._device.index:
            with torch.cuda.device(self._device):
                return self(encoder_output, lengths, state, copy)
        if torch.cuda.is_current_stream_capturing():
            raise CaptureError(
                "GreedyDecoder cannot be recorded into a CUDA graph: it launches a graph of its own and "
                "grows its buffers. Call it outside of the capture."
            )
        if lengths.is_cpu:
            # A copy of the caller's tensor: from page-locked memory it would be read later.
            lengths = lengths.clone().to(self._device, non_blocking=True)
        result = self._runner(encoder_output.shape[0])(encoder_output, lengths, state, copy)
        self.path = result.path
        return result
