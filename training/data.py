"""Training batches: which clips, joined how, at which speed. Samples stay on the GPU, plans are made here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from .corpora import SAMPLE_RATE, Store

Tokenise = Callable[[list[str]], list[list[int]]]
HOP = 160
MAX_LABELS = 127
# Padded lengths of a batch's rows. A few fixed shapes: for every new one cuDNN plans its convolutions anew.
BUCKET_SECONDS = (1.5, 2.5, 3.5, 5.0, 7.0, 9.5, 13.0, 18.0)
# At difficulty 0 only rows of the first buckets are used.
EASY_BUCKETS = 2
LABEL_STEP = 8


@dataclass
class Group:
    """Clips of one origin; joined[k-1] is the share of rows that are made of k clips."""

    name: str
    starts: np.ndarray
    sizes: np.ndarray
    labels: list[np.ndarray]
    joined: tuple[float, ...]


@dataclass
class Plan:
    """A batch of B rows made of P pieces: piece p is pcm[start : start + size] played at `rate` in row `row`.

    start, size, row, offset [P] int64 (offset = first sample in the row), rate [P] fp32; lengths [B] int64 in
    samples; tempo [B] fp32, the speed at which the features are played; frames [B] int64, the feature frames
    after that; targets [B, U], target_lengths [B] int64. Known on the host, to wait for no GPU:
    the longest piece and the padded length of a row, in samples, and frames and target lengths once more.
    """

    start: Tensor
    size: Tensor
    row: Tensor
    offset: Tensor
    rate: Tensor
    lengths: Tensor
    tempo: Tensor
    frames: Tensor
    targets: Tensor
    target_lengths: Tensor
    longest: int
    width: int
    host_frames: Tensor
    host_target_lengths: Tensor

    def to(self, device: torch.device) -> Plan:
        if device.type != "cuda":
            return self
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        for name, value in values.items():
            if isinstance(value, Tensor) and not name.startswith("host_"):
                values[name] = value.pin_memory().to(device, non_blocking=True)
        return Plan(**values)


@dataclass
class Row:
    pieces: list[tuple[int, int, int]]
    rate: float
    tempo: float
    length: int
    labels: np.ndarray


def make_group(
    name: str, store: Store, clips: np.ndarray, base: int, tokenise: Tokenise, joined: tuple[float, ...]
) -> Group:
    """The clips of a store that fit a row; `base` is where the store begins in the joint buffer."""
    clips = clips[store.sizes[clips] <= 0.85 * BUCKET_SECONDS[-1] * SAMPLE_RATE]
    labels = [np.array(ids, np.int64) for ids in tokenise([store.texts[i] for i in clips])]
    return Group(name, store.starts[clips] + base, store.sizes[clips], labels, joined)


class Sampler:
    """Endless plans, all rows of a plan in one bucket of lengths.

    `weights(progress)` gives the share of each group in the rows, progress 0..1 through training.
    `difficulty` below 1 keeps rows short and single.
    """

    def __init__(
        self,
        groups: list[Group],
        weights: Callable[[float], dict[str, float]],
        batch_seconds: float,
        seed: int,
    ) -> None:
        self.groups = {group.name: group for group in groups}
        self.weights = weights
        self.widths = [int(seconds * SAMPLE_RATE) for seconds in BUCKET_SECONDS]
        self.capacity = [max(1, int(batch_seconds / seconds)) for seconds in BUCKET_SECONDS]
        self.rng = np.random.default_rng(seed)
        self.progress = 0.0
        self.difficulty = 1.0

    def __iter__(self) -> Iterator[Plan]:
        waiting: list[list[Row]] = [[] for _ in self.widths]
        while True:
            weights = self.weights(self.progress)
            shares = np.array(list(weights.values()))
            for index in self.rng.choice(len(weights), size=64, p=shares / shares.sum()):
                row = self._draw_row(self.groups[list(weights)[index]])
                bucket = int(np.searchsorted(self.widths, row.length))
                if bucket > EASY_BUCKETS + self.difficulty * len(self.widths):
                    continue
                waiting[bucket].append(row)
                if len(waiting[bucket]) == self.capacity[bucket]:
                    yield make_plan(waiting[bucket], self.widths[bucket])
                    waiting[bucket] = []

    def _draw_row(self, group: Group) -> Row:
        rng = self.rng
        count = 1 + rng.choice(len(group.joined), p=group.joined) if rng.random() < self.difficulty else 1
        rate = float(rng.uniform(0.88, 1.14)) if rng.random() < 0.8 else 1.0
        tempo = float(rng.uniform(0.87, 1.15)) if rng.random() < 0.6 else 1.0
        # Half of the rows begin and end as recorded, because files do; the others get silence around.
        lead, tail = rng.integers(0, SAMPLE_RATE // 2, 2) if rng.random() < 0.5 else (0, 0)
        start = end = int(lead)
        pieces, labels, spoken = [], [], 0
        for _ in range(count):
            index = int(rng.integers(len(group.starts)))
            size = int(group.sizes[index])
            length = int(size / rate)
            too_long = start + length > self.widths[-1] or spoken + group.labels[index].size > MAX_LABELS
            if pieces and too_long:
                break
            pieces.append((int(group.starts[index]), size, start))
            labels.append(group.labels[index])
            spoken += group.labels[index].size
            end = start + length
            start = end + int(rng.integers(0, SAMPLE_RATE // 3))
        length = min(end + int(tail), self.widths[-1])
        return Row(pieces, rate, tempo, length, np.concatenate(labels))


def make_plan(rows: list[Row], width: int) -> Plan:
    """The plan of a batch with rows of `width` samples; rows that became too long are played faster."""
    pieces = [(*piece, row.rate, i) for i, row in enumerate(rows) for piece in row.pieces]
    start, size, offset, rate, index = zip(*pieces, strict=True)
    labels = -(-max(row.labels.size for row in rows) // LABEL_STEP) * LABEL_STEP
    targets = np.zeros((len(rows), labels), np.int64)
    for i, row in enumerate(rows):
        targets[i, : row.labels.size] = row.labels
    lengths = np.array([row.length for row in rows])
    frames = lengths // HOP
    tempo = np.maximum([row.tempo for row in rows], frames / (width // HOP))
    frames = torch.from_numpy(np.minimum((frames / tempo).astype(np.int64), width // HOP))
    target_lengths = torch.tensor([row.labels.size for row in rows])
    return Plan(
        start=torch.tensor(start),
        size=torch.tensor(size),
        row=torch.tensor(index),
        offset=torch.tensor(offset),
        rate=torch.tensor(rate, dtype=torch.float32),
        lengths=torch.from_numpy(lengths),
        tempo=torch.from_numpy(tempo.astype(np.float32)),
        frames=frames,
        targets=torch.from_numpy(targets),
        target_lengths=target_lengths,
        longest=max(int(s / r) for s, r in zip(size, rate, strict=True)),
        width=width,
        host_frames=frames,
        host_target_lengths=target_lengths,
    )
