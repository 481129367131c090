"""How the greedy loop is driven to its end: on the CPU, by a graph on the GPU, or by the host with a GPU."""

from __future__ import annotations

import threading
import warnings

import torch
from torch import Tensor

from .graph_loop import GraphLoop, GraphLoopError
from .loop import LoopBuffers
from .results import DecodeResult
from .rules import GreedyRules
from .state import DecodeState
from .weights import JointWeights, PredictorWeights

# A WHILE iteration costs about 3.5 us by itself: several masked rounds share it. A batch needs tens of them.
ROUNDS_PER_ITERATION = 4


def collect(buffers: LoopBuffers, batch: int, state: DecodeState) -> DecodeResult:
    """Copy the finished rows out of the buffers; waits for the device once, to learn the longest row."""
    counts = buffers.counts[:batch].to(torch.int64)
    longest = int(counts.max())
    beyond = torch.arange(longest, device=counts.device) >= counts.unsqueeze(1)

    def rows(buffer: Tensor, padding: int) -> Tensor:
        return buffer[:batch, :longest].to(torch.int64).masked_fill_(beyond, padding)

    frames = buffers.token_frames[:batch, :longest] + state.decoded_lengths.unsqueeze(1)
    return DecodeResult(
        tokens=rows(buffers.tokens, -1),
        frames=frames.masked_fill_(beyond, 0),
        durations=rows(buffers.token_durations, 0),
        log_probs=buffers.log_probs[:batch, :longest].masked_fill(beyond, 0.0),
        lengths=counts,
        state=buffers.state(batch, state.decoded_lengths),
    )


class CpuRunner:
    """Buffers for each call, one op call for the whole loop: any number of threads may decode at once."""

    path = "cpu"

    def __init__(self, predictor: PredictorWeights, joint: JointWeights, rules: GreedyRules) -> None:
        self._parts = (predictor, joint, rules)

    def __call__(self, encoder: Tensor, lengths: Tensor, state: DecodeState) -> DecodeResult:
        buffers = LoopBuffers(*self._parts, batch=encoder.shape[0], frames=encoder.shape[1])
        buffers.load(encoder, lengths, state)
        buffers.run_rounds(-1)
        return collect(buffers, encoder.shape[0], state)


class CudaRunner:
    """Buffers and a graph for a capacity, kept from call to call; a larger batch or chunk grows them once.

    Calls from several threads take turns; on another CUDA stream a call waits for the one before it.
    """

    def __init__(self, predictor: PredictorWeights, joint: JointWeights, rules: GreedyRules) -> None:
        self._parts = (predictor, joint, rules)
        self._device = joint.weight.device
        self._lock = threading.Lock()
        self._buffers: LoopBuffers | None = None
        self._graph: GraphLoop | None = None
        self._graph_works = True
        self._finished = torch.cuda.Event()
        self.captures = 0

    @property
    def path(self) -> str:
        """Which loop runs: a graph, or the host where conditional graph nodes are not to be had."""
        return "cuda graph" if self._graph_works else "cuda host loop"

    def __call__(self, encoder: Tensor, lengths: Tensor, state: DecodeState) -> DecodeResult:
        with self._lock, torch.cuda.device(self._device):
            stream = torch.cuda.current_stream()
            stream.wait_event(self._finished)
            buffers = self._reserve(encoder.shape[0], encoder.shape[1])
            try:
                buffers.load(encoder, lengths, state)
                if self._graph is not None:
                    self._graph.launch()
                else:
                    self._loop_on_host(buffers)
                return collect(buffers, encoder.shape[0], state)
            finally:
                # Also after a failure: what was launched may still use the buffers.
                self._finished.record(stream)

    def _reserve(self, batch: int, frames: int) -> LoopBuffers:
        have = self._buffers
        if have is not None and batch <= have.batch and frames <= have.frames:
            return have
        if have is not None:
            batch, frames = max(batch, have.batch), max(frames, have.frames)
        # Kernels of an earlier call may still use what is about to be freed.
        self._finished.synchronize()
        self._graph = self._buffers = None
        buffers = LoopBuffers(*self._parts, batch=batch, frames=frames)
        # Loads every kernel: a first launch while recording would load code, which is not allowed then.
        buffers.run_rounds(1)
        torch.cuda.current_stream().synchronize()
        if self._graph_works:
            self._graph = self._record(buffers)
        self._buffers = buffers
        return buffers

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
