"""How much memory a pass over whole recordings needs, and how much there is.

Where a GPU's memory runs out, PyTorch raises an error that can be caught. Where the machine's own does, the
system ends the process: so on a CPU a pass that cannot fit is not begun.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from .model import SpeechModel

# Score matrices alive at once in a layer: by distance (twice as wide), shifted, scaled, masked, softmax.
_SCORES_ALIVE = 8
# The last one is how convolutions refuse tensors of more than 2^31 elements.
_OUT_OF_MEMORY = (
    "out of memory",
    "DefaultCPUAllocator",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "canUse32BitIndexMath",
)


def attention_bytes(model: SpeechModel, rows: int, seconds: float) -> int:
    """About how many bytes the attention scores of `rows` recordings of this length take at once."""
    frames = int(seconds / model.frame_seconds) + 1
    element = torch.finfo(model.dtype).bits // 8
    return _SCORES_ALIVE * rows * model.encoder.config.num_heads * frames**2 * element


def available_bytes(device: torch.device) -> float:
    """Bytes a process can still take; infinite for a GPU and where the system does not tell."""
    if device.type != "cpu":
        return float("inf")
    free = float("inf")
    try:
        if found := re.search(r"^MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE):
            free = 1024.0 * int(found[1])
        group = Path("/sys/fs/cgroup")
        limit = (group / "memory.max").read_text().strip()
        if limit != "max":
            used = int((group / "memory.current").read_text())
            # Cached file contents count as used, and are dropped when memory is wanted.
            cached = re.search(r"^inactive_file (\d+)", (group / "memory.stat").read_text(), re.MULTILINE)
            free = min(free, int(limit) - used + int(cached[1] if cached else 0))
    except OSError:
        pass
    return free


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this is how PyTorch or NumPy say that memory ran out."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and any(sign in text for sign in _OUT_OF_MEMORY)
