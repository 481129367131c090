"""What every benchmark needs: timing on the device's own clock, where it ran, and a JSON file of it."""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def milliseconds(run: Callable[[], Any], device: torch.device, repeats: int = 20, warmup: int = 5) -> float:
    """The median time of a call, between CUDA events on a GPU, by the host's clock on a CPU."""
    for _ in range(warmup):
        run()
    times = []
    for _ in range(repeats):
        if device.type == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize(device)
            begin.record()
            run()
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end))
        else:
            start = time.perf_counter()
            run()
            times.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times)


def surroundings(device: torch.device, **more: str) -> dict[str, str]:
    """Device, versions and commit, for the record."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=Path(__file__).parent
    )
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()
    found = {
        "device": name or platform.machine(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    if device.type == "cuda":
        found["cuda"] = torch.version.cuda or "none"
    return {**found, "commit": commit.stdout.strip() or "unknown", **more}


def write_json(
    path: Path, where: dict[str, str], settings: dict[str, Any], rows: list[dict[str, Any]]
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"where": where, "settings": settings, "rows": rows}, indent=1) + "\n")
