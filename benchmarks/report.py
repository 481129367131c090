"""What every benchmark needs: where it ran, and how many rows of a peer agree with ours."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

import torch

from rnnt_fastdecode import bench
from rnnt_fastdecode.transducer import Hypothesis

# Tokens, frames, and durations where a decoder has them, of one utterance.
Row = tuple[list[int], list[int], list[int] | None]


def surroundings(device: torch.device, **more: str) -> dict[str, str]:
    """Device, versions and commit, for the record."""
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=Path(__file__).parent
    )
    return {**bench.surroundings(device), "commit": described.stdout.strip() or "unknown", **more}


def agreement(ours: Sequence[Hypothesis], theirs: Sequence[Row]) -> dict[str, int]:
    """In how many rows tokens and frames are identical, and in how many the durations are besides."""
    same = durations = 0
    judged = False
    for hypothesis, (tokens, frames, row_durations) in zip(ours, theirs, strict=True):
        agrees = hypothesis.tokens == tokens and hypothesis.frames == frames
        same += agrees
        if row_durations is not None:
            judged = True
            durations += agrees and hypothesis.durations == row_durations
    counted = {"agreeing_rows": same}
    return {**counted, "agreeing_durations": durations} if judged else counted
