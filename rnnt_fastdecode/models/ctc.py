"""Greedy CTC decoding (Graves et al. 2006): best label of each frame, repeats merged, blanks dropped."""

from __future__ import annotations

import torch
from torch import Tensor

from ..transducer.modules import CtcHead
from ..transducer.results import Hypothesis


def decode_ctc(head: CtcHead, encoded: Tensor, lengths: Tensor) -> list[Hypothesis]:
    """Decode a batch with a CTC head.

    Parameters
    ----------
    encoded: [B, T, D] encoder output in the dtype of the head.
    lengths: [B] valid frames of each row.

    Returns
    -------
    A Hypothesis for each row: `frames` says where each token starts, `durations` for how many frames it is
    the best label, `log_probs` how probable it is in the frame where it is most so.
    """
    log_probs, best = head(encoded).float().log_softmax(dim=-1).max(dim=-1)
    return [
        _merge_row(labels[:length], scores[:length], head.blank_id)
        for labels, scores, length in zip(best.cpu(), log_probs.cpu(), lengths.tolist(), strict=True)
    ]


def _merge_row(labels: Tensor, scores: Tensor, blank_id: int) -> Hypothesis:
    values, run, counts = torch.unique_consecutive(labels, return_inverse=True, return_counts=True)
    starts = counts.cumsum(0) - counts
    peaks = torch.full(values.shape, -torch.inf).scatter_reduce_(0, run, scores, "amax")
    kept = values != blank_id
    return Hypothesis(
        values[kept].tolist(), starts[kept].tolist(), counts[kept].tolist(), peaks[kept].tolist()
    )
