"""What every benchmark needs: where it ran, how many rows agree, and a JSON file that grows row by row."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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


class Record:
    """The figures of a run. With a path, the file is whole and up to date after every change."""

    def __init__(self, path: Path | None, where: dict[str, str], settings: dict[str, Any]) -> None:
        self.where = where
        self.rows: list[dict[str, Any]] = []
        self.content = {"where": where, "settings": settings, "rows": self.rows}
        self._path = path
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)

    def save(self) -> None:
        """Write the file: a reader, or a run that is killed, never finds half of it."""
        if self._path is None:
            return
        beside = self._path.with_name(f"{self._path.name}.part")
        beside.write_text(json.dumps(self.content, indent=1) + "\n")
        os.replace(beside, self._path)
