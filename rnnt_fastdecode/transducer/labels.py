"""The labels of a batch in one tensor, and their way to the host."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import ArgumentError

# int32 words of a record; see `ops.pack_labels`.
RECORD = 4


class PackedLabels:
    """The result of `ops.pack_labels` for B rows, on its device or on the host.

    The host learns how many labels there are by reading them. So a first copy takes as many as are likely,
    and a second one what is left, if anything; then the device's tensor, which has room for the most that
    there can be, is let go. Several threads may use one object.

    Parameters
    ----------
    packed: [B + room, 4] int32, on a CPU or a CUDA device.
    batch: B.
    likely: labels that the first copy takes; None takes all.
    frames: lengths that are negative or greater are an error of the caller, raised when the host reads; None
        if they have been looked at before.
    ready: recorded behind what fills `packed`; None if nothing is under way.
    copy: [batch + likely, 4] int32 in page-locked memory, filled together with `packed`; None if it is not.
    """

    def __init__(
        self,
        packed: Tensor,
        batch: int,
        likely: int | None = None,
        frames: int | None = None,
        ready: torch.cuda.Event | None = None,
        copy: Tensor | None = None,
    ) -> None:
        self.batch, self.device = batch, packed.device
        self._likely = packed.shape[0] - batch if likely is None else min(likely, packed.shape[0] - batch)
        self._frames, self._ready = frames, ready
        self._packed: Tensor | None = packed
        self._copy = copy
        self._records: np.ndarray | None = None
        self._lock = threading.Lock()

    def enqueue_copy(self) -> None:
        """Start the copy on the current stream, where `packed` was filled; `ready` is yet to be recorded."""
        assert self._packed is not None
        part = self._packed[: self.batch + self._likely]
        self._copy = torch.empty(part.shape, dtype=part.dtype, pin_memory=True)
        self._copy.copy_(part, non_blocking=True)

    def start_copy(self) -> None:
        """Start the copy to the host, if it has not been started, behind what fills the labels."""
        if self.device.type != "cuda":
            return
        with self._lock:
            self._start_copy()

    def _start_copy(self) -> None:
        if self._copy is not None or self._packed is None:
            return
        with torch.cuda.device(self.device):
            self._use(self._packed)
            self.enqueue_copy()
            self._ready = torch.cuda.Event()
            self._ready.record()

    def _use(self, packed: Tensor) -> None:
        """Make the device's current stream wait for the labels, and their memory wait for the stream."""
        stream = torch.cuda.current_stream(self.device)
        if self._ready is not None:
            stream.wait_event(self._ready)
        packed.record_stream(stream)

    def host(self) -> np.ndarray:
        """[B + U, 4] int32, the records of B rows and of all U labels; waits for the device the first time.

        Raises
        ------
        ArgumentError: a length that was on the device lies outside 0 .. frames.
        """
        with self._lock:
            if self._records is None:
                self._records = self._read()
                self._packed = self._copy = None
            records = self._records
        if self._frames is not None and self.batch > 0:
            given = records[: self.batch, 3]
            wrong = np.flatnonzero((given < 0) | (given > self._frames))
            if wrong.size > 0:
                row = int(wrong[0])
                raise ArgumentError(
                    f"lengths must lie between 0 and {self._frames} frames, got {given[row]} in row {row} "
                    "(on a GPU lengths are not looked at before the result is read)"
                )
        return records

    def _read(self) -> np.ndarray:
        packed = self._packed
        assert packed is not None
        if self.device.type != "cuda":
            return packed.numpy()
        self._start_copy()
        assert self._copy is not None and self._ready is not None
        self._ready.synchronize()
        records = self._copy.numpy()
        used = self.batch + (int(records[self.batch - 1, :2].sum()) if self.batch > 0 else 0)
        if used <= len(records):
            # Of its own: page-locked memory is short, and goes back to where the next call takes it from.
            return records[:used].copy()
        return np.concatenate((records, packed[len(records) : used].cpu().numpy()))

    def on_device(self) -> Tensor:
        """The records on the device, at least those of all rows and labels; does not wait for it."""
        with self._lock:
            packed = self._packed
        if packed is None:
            assert self._records is not None
            return torch.from_numpy(self._records).to(self.device)
        if self.device.type == "cuda":
            self._use(packed)
        return packed

    def __getstate__(self) -> dict[str, Any]:
        # On the device, so that `torch.load` can map it.
        return {"records": torch.tensor(self.host(), device=self.device), "batch": self.batch}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["records"], state["batch"])  # type: ignore[misc]
