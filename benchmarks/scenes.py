"""The seeded utterances on which decoders are compared, in large and small batches of several networks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from rnnt_fastdecode.reference.planted import Planted, plant

from . import cases

SMALL = {"vocab_size": 129, "joint_width": 96, "hidden": 96, "encoder_width": 96, "num_layers": 1}
# Share of the largest batch (0: one row) and T: the largest batch has the benchmark's T, most are short.
SHAPES = (
    *((1.0, 150), (1.0, 40), (0.0, 64), (1.0, 30), (1 / 12, 100)),
    *((1.0, 48), (1 / 256, 150), (1.0, 24), (1 / 60, 1), (1.0, 36)),
)
# Share of frames with a label, and with the chain flag: ordinary, all blank, crowded, with bursts.
KINDS = ((0.25, 0.0), (0.25, 0.0), (0.25, 0.05), (0.0, 0.0), (0.25, 0.0), (0.8, 0.0), (0.2, 0.1))


@dataclass(frozen=True)
class Scene:
    """A network and how it is used. share: of all utterances. sizes: None means Parakeet's."""

    name: str
    share: float
    seed: int
    sizes: dict[str, int] | None = None
    blank_id: int | None = None
    durations: tuple[int, ...] | None = None
    ring: bool = False
    max_symbols: int = cases.MAX_SYMBOLS

    def network(self, model: str) -> Planted:
        """The planted network, on the CPU."""
        durations = cases.DURATIONS[model] if self.durations is None else self.durations
        options: dict[str, Any] = {"blank_id": self.blank_id, "ring": self.ring, "seed": self.seed}
        return plant(**(self.sizes or cases.SIZES), durations=durations, **options)


@dataclass(frozen=True)
class Batch:
    """encoder [B, T, D] float32 and lengths [B] int64, both on the device; seed makes them again."""

    seed: int
    encoder: Tensor = field(repr=False)
    lengths: Tensor = field(repr=False)


_COMMON = [
    Scene("Parakeet's size", 0.7, 1),
    Scene("Parakeet's size, bursts up to max_symbols", 0.1, 2, ring=True),
    Scene("small", 0.08, 3, SMALL),
    Scene("small, blank first", 0.06, 4, {**SMALL, "num_layers": 2}, blank_id=0),
]
SCENES = {
    "rnnt": [*_COMMON, Scene("small, 2 symbols a frame", 0.06, 5, SMALL, max_symbols=2)],
    "tdt": [
        *_COMMON,
        Scene("small, 2 symbols a frame, durations 0, 2, 4, 8", 0.06, 5, SMALL, None, (0, 2, 4, 8), False, 2),
    ],
}


def batches(scene: Scene, planted: Planted, utterances: int, most: int) -> Iterator[Batch]:
    """Batches until there are as many utterances, the largest, of `most` rows, first.

    Lengths are 0 to T; the first rows of a batch have T, 0 and 1. Utterances follow from `Batch.seed` on one
    kind of device.
    """
    device = planted.codes.device
    done = index = 0
    while done < utterances:
        share, frames = SHAPES[index % len(SHAPES)]
        rate, chains = KINDS[index % len(KINDS)]
        rows, seed = max(round(share * most), 1), 10_000 * scene.seed + index
        generator = torch.Generator().manual_seed(seed)
        lengths = torch.randint(0, frames + 1, (rows,), generator=generator)
        lengths[:3] = torch.tensor([frames, 0, 1])[:rows]
        yield Batch(seed, planted.encoder(rows, frames, rate, chains, seed=seed), lengths.to(device))
        done += rows
        index += 1
