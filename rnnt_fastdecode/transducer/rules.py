"""The constants of a greedy search."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import ArgumentError


@dataclass(frozen=True)
class GreedyRules:
    """blank_id, durations (empty: RNN-T), max_symbols a frame, and the window of frames judged at once."""

    blank_id: int
    durations: tuple[int, ...]
    max_symbols: int
    window: int

    def check(self, vocab_size: int) -> None:
        """Raise ArgumentError for a value that no search can use."""
        if not 0 <= self.blank_id < vocab_size:
            raise ArgumentError(f"blank_id must be between 0 and {vocab_size - 1}, got {self.blank_id}")
        if any(duration < 0 for duration in self.durations):
            raise ArgumentError(f"durations must be numbers of frames, got {list(self.durations)}")
        if self.max_symbols < 1:
            raise ArgumentError(f"max_symbols must be at least 1, got {self.max_symbols}")
        if self.window < 1:
            raise ArgumentError(f"window must be at least 1 frame, got {self.window}")
