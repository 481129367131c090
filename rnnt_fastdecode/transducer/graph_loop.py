"""A loop on the GPU: a CUDA graph whose only node is a WHILE node, its body recorded from a stream.

The body must not allocate, and must end with a kernel that sets the loop condition (cudaGraphSetConditional
with the handle it is given). Needs the cuda-python bindings 13 and a driver that knows conditional nodes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


class GraphLoopError(RuntimeError):
    """This machine cannot run a conditional graph node; the message says what is missing."""


def _bindings() -> tuple[Any, Any]:
    try:
        from cuda.bindings import driver, runtime
    except ImportError as error:
        raise GraphLoopError(f"the cuda-python bindings cannot be imported ({error})") from error
    return driver, runtime


def _check(result: tuple[Any, ...]) -> Any:
    status, *values = result
    if int(status) != 0:
        raise GraphLoopError(f"CUDA refused a conditional graph: {status.name}")
    return values[0] if len(values) == 1 else tuple(values)


class GraphLoop:
    """Runs `body(condition)` on the GPU until the condition is 0, as one graph launch.

    Parameters
    ----------
    body: records the kernels of one iteration on the current stream; `condition` is the handle to set.
    device: the CUDA device of everything the body touches.

    Raises
    ------
    GraphLoopError: the bindings, the driver or the device cannot do it.
    """

    def __init__(self, body: Callable[[int], None], device: torch.device) -> None:
        self._graph: Any = None
        self._executable: Any = None
        self._driver, self._runtime = _bindings()
        with torch.cuda.device(device):
            # A stream of our own: the caller's may be the legacy stream, which cannot be recorded.
            stream = torch.cuda.Stream(device)
            try:
                self._build(body, stream)
            except BaseException:
                self.close()
                raise

    def _build(self, body: Callable[[int], None], stream: torch.cuda.Stream) -> None:
        driver, runtime = self._driver, self._runtime
        self._graph = _check(runtime.cudaGraphCreate(0))
        start_true = runtime.cudaGraphConditionalHandleFlags.cudaGraphCondAssignDefault
        condition = _check(runtime.cudaGraphConditionalHandleCreate(self._graph, 1, int(start_true)))

        node = driver.CUgraphNodeParams()
        node.type = driver.CUgraphNodeType.CU_GRAPH_NODE_TYPE_CONDITIONAL
        node.conditional.handle = driver.CUgraphConditionalHandle(int(condition))
        node.conditional.type = driver.CUgraphConditionalNodeType.CU_GRAPH_COND_TYPE_WHILE
        node.conditional.size = 1
        node.conditional.ctx = _check(driver.cuCtxGetCurrent())
        _check(driver.cuGraphAddNode(self._graph, None, None, 0, node))
        body_graph = node.conditional.phGraph_out[0]

        mode = runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        _check(runtime.cudaStreamBeginCaptureToGraph(stream.cuda_stream, body_graph, None, None, 0, mode))
        try:
            with torch.cuda.stream(stream):
                body(int(condition))
        finally:
            ended = runtime.cudaStreamEndCapture(stream.cuda_stream)
        _check(ended)
        self._executable = _check(runtime.cudaGraphInstantiate(self._graph, 0))

    def launch(self) -> None:
        """Run the loop on the current stream, without waiting for it."""
        stream = torch.cuda.current_stream().cuda_stream
        _check(self._runtime.cudaGraphLaunch(self._executable, stream))

    def close(self) -> None:
        """Free the graph. A launch under way is finished first by the driver."""
        if self._executable is not None:
            self._runtime.cudaGraphExecDestroy(self._executable)
            self._executable = None
        if self._graph is not None:
            self._runtime.cudaGraphDestroy(self._graph)
            self._graph = None

    def __del__(self) -> None:
        self.close()
