"""Counts of rows that differ, each judged by the float64 path: a known fault, a near tie, or beyond that."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from .float64 import Paths
from .report import Row

# Where a row leaves the float64 path, the two best candidates there lie less than this many epsilons apart.
NEAR_TIE = 30
# Of near ties, and of rows beyond.
_MOST_EXAMPLES = 5

# The name of the peer's known fault that explains why its row, the second one, is not ours; "" if none does.
Fault = Callable[[Row, Row], str]


def near_tie(dtype: torch.dtype) -> float:
    """The margin, in logits, that rounding to this type can bridge."""
    return NEAR_TIE * torch.finfo(dtype).eps


def first_difference(one: Row, other: Row) -> int | None:
    """The label at which two rows part, None where they do not."""
    if one == other:
        return None
    labels = [zip(*(column for column in row if column is not None), strict=True) for row in (one, other)]
    shorter = min(len(one[0]), len(other[0]))
    return next(
        (place for place, pair in enumerate(zip(*labels, strict=False)) if pair[0] != pair[1]), shorter
    )


def departures(rows: Sequence[Row], paths: Paths, durations: bool = True) -> list[float | None]:
    """The margin at which each row leaves its float64 path; None for a row that does not.

    durations: False takes no notice of a label's duration. One that is wrong shows at the next label then.
    """
    found: list[float | None] = []
    for row, path, margins in zip(rows, paths.rows, paths.margins, strict=False):
        if not durations:
            row, path = (*row[:2], None), (*path[:2], None)
        place = first_difference(row, path)
        before = 0 if durations else 1
        found.append(None if place is None else min(margins[max(place - before, 0) : place + 1]))
    return found


@dataclass
class Tally:
    """How often a decoder of ours and another one give the same, counted in rows.

    Of the rows that differ, `tokens` have other tokens, `frames` the same tokens on other frames, and
    `durations` differ in nothing else. Each is one of three: a fault, a known one of the peer; a near tie,
    where every decoder of the two that leaves the float64 path does so at a margin that rounding bridges; or
    beyond. widest: the widest margin of these two. cut: rows of the peer that went on
    after their end, which is left out here.
    """

    utterances: int = 0
    labels: int = 0
    identical: int = 0
    tokens: int = 0
    frames: int = 0
    durations: int = 0
    near_ties: int = 0
    beyond: int = 0
    widest: dict[str, float] = field(default_factory=lambda: {"near_ties": 0.0, "beyond": 0.0})
    cut: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    examples: list[dict[str, Any]] = field(default_factory=list)

    def add(
        self,
        ours: Sequence[Row],
        theirs: Sequence[Row],
        left: Sequence[Sequence[float | None]],
        bound: float,
        where: dict[str, Any],
        fault: Fault | None = None,
    ) -> None:
        """Count the rows of a batch, as many as `theirs` has: not more than ours.

        left: `departures` of those of the two that are not float64 themselves. where: names the batch in an
        example.
        """
        ours = ours[: len(theirs)]
        self.utterances += len(ours)
        self.labels += sum(len(row[0]) for row in ours)
        for index, (mine, yours) in enumerate(zip(ours, theirs, strict=True)):
            if mine == yours:
                self.identical += 1
                continue
            kind = "tokens" if mine[0] != yours[0] else "frames" if mine[1] != yours[1] else "durations"
            setattr(self, kind, getattr(self, kind) + 1)
            name = fault(mine, yours) if fault else ""
            margins = [margin for rows in left if (margin := rows[index]) is not None]
            if name:
                self.faults[name] += 1
                continue
            widest = max(margins)
            explained = widest < bound
            self.near_ties += explained
            self.beyond += not explained
            key = "near_ties" if explained else "beyond"
            self.widest[key] = max(self.widest[key], widest)
            if sum(example["explained"] == explained for example in self.examples) < _MOST_EXAMPLES:
                example = {"row": index, "margins": margins, "explained": explained}
                self.examples.append({**where, **example})

    def as_dict(self) -> dict[str, Any]:
        """For the record."""
        return {**vars(self), "faults": dict(self.faults)}


def stale_durations(ours: Row, theirs: Row) -> str:
    """NeMo 3.0.0 without graphs, issue 16097: a label's duration is that of a later look."""
    return "" if ours[:2] != theirs[:2] else "NeMo issue 16097: durations of labels overwritten in a batch"


def no_max_symbols(most: int) -> Fault:
    """transformers' TDT decoding goes on at a frame where it should have stopped after `most` labels."""

    def fault(ours: Row, theirs: Row) -> str:
        _, frames, durations = ours
        place = first_difference(ours, theirs)
        run = 0
        for index, frame in enumerate(frames[:place]):
            run = run + 1 if index and frames[index - 1] == frame else 1
            if run == most and durations is not None and durations[index] == 0:
                return "transformers: no max_symbols for TDT"
        return ""

    return fault
