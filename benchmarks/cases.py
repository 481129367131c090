"""What is decoded: planted networks of Parakeet's size, their utterances, and the peers that decode them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from rnnt_fastdecode.reference.decode import Transducer
from rnnt_fastdecode.reference.planted import Planted, plant
from rnnt_fastdecode.transducer import Hypothesis

from .nemo_decoder import MODES, NemoDecoder
from .transformers_decoder import TransformersDecoder

DURATIONS = {"rnnt": (), "tdt": (0, 1, 2, 3, 4)}
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
SIZES = {"vocab_size": 1025, "joint_width": 640, "hidden": 640, "encoder_width": 1024, "num_layers": 2}
MAX_SYMBOLS = 10

# Utterances come in blocks with a seed each, so that a row is the same in every batch.
_ROWS_AT_ONCE = 32


def network(model: str, ring: bool = False) -> Planted:
    """A planted network; with `ring`, one whose chain frames emit max_symbols labels."""
    return plant(**SIZES, durations=DURATIONS[model], ring=ring)


def utterances(
    planted: Planted, batch: int, frames: int, device: torch.device, adversarial: bool = False
) -> Tensor:
    """Encoder output [B, T, D], float32: a label in one frame of four, or, adversarial, only chain frames."""
    kinds: dict[str, float] = {"rate": 0.0, "chains": 1.0} if adversarial else {"rate": 0.25, "chains": 0.0}
    blocks = [
        planted.encoder(_ROWS_AT_ONCE, frames, seed=first, **kinds).to(device)
        for first in range(0, batch, _ROWS_AT_ONCE)
    ]
    return torch.cat(blocks)[:batch]


def row_lengths(kind: str, batch: int, frames: int) -> Tensor:
    """[B] int64: "equal", or "ragged": uniform from half of the frames to all of them, the first row full."""
    if kind == "equal":
        return torch.full((batch,), frames)
    generator = torch.Generator().manual_seed(batch)
    lengths = torch.randint(frames // 2, frames + 1, (batch,), generator=generator)
    lengths[0] = frames
    return lengths


def check_bursts(hypotheses: Sequence[Hypothesis], frames: int, max_symbols: int = MAX_SYMBOLS) -> None:
    """Raise RuntimeError unless every one of these rows emits max_symbols labels on every frame."""
    wanted = dict.fromkeys(range(frames), max_symbols)
    for row, hypothesis in enumerate(hypotheses):
        if Counter(hypothesis.frames) != wanted:
            raise RuntimeError(
                f"row {row} emits {len(hypothesis.frames)} labels on {len(set(hypothesis.frames))} frames, "
                f"expected {max_symbols} on each of {frames}"
            )


class Make(Protocol):
    """Makes a peer's decoder."""

    def __call__(
        self,
        transducer: Transducer,
        device: torch.device,
        dtype: torch.dtype,
        max_symbols: int = MAX_SYMBOLS,
    ) -> Any: ...


#: How each peer is made. The first is NeMo's fastest mode; the others are slow, and measured less often.
PEERS: dict[str, Make] = {
    "nemo" if mode == "full" else f"nemo-{mode}": partial(NemoDecoder, mode=mode) for mode in MODES
} | {"transformers": TransformersDecoder}
SLOW_PEERS = frozenset(PEERS) - {"nemo"}
#: What a machine without a GPU can run.
CPU_PEERS = ("nemo-eager", "transformers")
