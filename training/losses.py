"""Transducer losses: RNN-T (arXiv 1211.3711) and TDT (arXiv 2304.06795) on one lattice, in log space.

The lattice has nodes (t, u), 0 <= t <= T_b, 0 <= u <= U_b: t frames are consumed, u labels written. Out of a
node with t < T_b go the edges
    label, duration d:  (t, u) -> (t + d, u + 1),  d = 0 .. L-1
    blank, duration d:  (t, u) -> (t + d, u),      d = 1 .. K
as far as they stay inside. The loss is -log of the sum over all paths from (0, 0) to (T_b, U_b). RNN-T is the
case L = K = 1: a label takes no frame, a blank takes one. TDT with durations 0 .. N-1 is L = N, K = N-1:
there is no blank of duration 0, as in decoding it never stays in place.
"""

from __future__ import annotations

import torch
from torch import Tensor

try:
    from . import lattice_triton
except ImportError:
    lattice_triton = None

IMPOSSIBLE = -1e30


def lattice_edges(
    logits: Tensor, targets: Tensor, blank_id: int, num_durations: int
) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the edges out of every node.

    logits [B, T, U+1, V+N] (tokens, then N durations, N = 0 for RNN-T), targets [B, U] int64 ->
    blank [B, T, U+1, K], label [B, T, U+1, L] fp32 (label edges at u = U are IMPOSSIBLE).
    """
    logits = logits.float()
    tokens = logits[..., : logits.shape[-1] - num_durations]
    total = tokens.logsumexp(-1)
    blank = tokens[..., blank_id] - total
    wanted = torch.cat((targets, targets.new_zeros(targets.shape[0], 1)), dim=1)
    index = wanted[:, None, :, None].expand(-1, tokens.shape[1], -1, 1)
    label = tokens.gather(-1, index).squeeze(-1) - total
    at_end = torch.arange(wanted.shape[1], device=label.device) == targets.shape[1]
    label = label.masked_fill(at_end, IMPOSSIBLE)
    if num_durations == 0:
        return blank.unsqueeze(-1), label.unsqueeze(-1)
    durations = logits[..., tokens.shape[-1] :].log_softmax(-1)
    return blank.unsqueeze(-1) + durations[..., 1:], label.unsqueeze(-1) + durations


def lattice_log_likelihood(blank: Tensor, label: Tensor, frames: Tensor, labels: Tensor) -> Tensor:
    """Log of the sum over paths: blank [B, T, U+1, K], label [B, T, U+1, L], frames and labels [B] -> [B].

    Plain torch over anti-diagonals n = t + u, differentiable by autograd in any floating type, slow.
    """
    batch, time, width, num_blank = blank.shape
    num_label = label.shape[-1]
    rows = torch.arange(batch, device=blank.device).unsqueeze(1)
    column = torch.arange(width, device=blank.device)
    start = torch.where(column == 0, 0.0, IMPOSSIBLE).to(blank.dtype).expand(batch, width)
    diagonals = [start]
    result = blank.new_full((batch,), IMPOSSIBLE)
    result = torch.where((frames == 0) & (labels == 0), torch.zeros_like(result), result)
    for n in range(1, time + width):
        terms = []
        for d in range(1, num_blank + 1):
            terms.append(_arrive(diagonals, n - d, blank[..., d - 1], n - d - column, column, rows, frames))
        for d in range(num_label):
            previous = _arrive(diagonals, n - d - 1, label[..., d], n - d - 1 - column, column, rows, frames)
            terms.append(torch.cat((torch.full_like(previous[:, :1], IMPOSSIBLE), previous[:, :-1]), dim=1))
        alpha = torch.stack(terms).logsumexp(0).clamp_min(IMPOSSIBLE)
        inside = (n - column >= 0) & (n - column <= frames.unsqueeze(1))
        alpha = torch.where(inside, alpha, torch.full_like(alpha, IMPOSSIBLE))
        diagonals.append(alpha)
        final = alpha.gather(1, labels.unsqueeze(1)).squeeze(1)
        result = torch.where(frames + labels == n, final, result)
    return result


def _arrive(
    diagonals: list[Tensor], n: int, edge: Tensor, time: Tensor, column: Tensor, rows: Tensor, frames: Tensor
) -> Tensor:
    """alpha + edge for the nodes (time[u], u) of diagonal n, IMPOSSIBLE where no edge leaves: [B, U+1]."""
    if n < 0:
        return torch.full_like(diagonals[0], IMPOSSIBLE)
    open_ = (time >= 0) & (time < frames.unsqueeze(1))
    weight = edge[rows, time.clamp(0, edge.shape[1] - 1), column]
    return torch.where(open_, diagonals[n] + weight, torch.full_like(weight, IMPOSSIBLE))


def transducer_loss(
    logits: Tensor, targets: Tensor, frames: Tensor, labels: Tensor, blank_id: int, num_durations: int = 0
) -> Tensor:
    """RNN-T loss, or TDT loss with durations 0 .. num_durations-1: -log P(targets) of every row, [B] fp32.

    logits [B, T, U+1, V+N], targets [B, U] int64 (any label beyond `labels`), frames and labels [B] int64.
    A row that no path can explain (no frames) has loss 0 and gradient 0.
    """
    blank, label = lattice_edges(logits, targets, blank_id, num_durations)
    if logits.is_cuda and lattice_triton is not None:
        likelihood = lattice_triton.log_likelihood(blank, label, frames, labels)
    else:
        likelihood = lattice_log_likelihood(blank, label, frames, labels)
    return torch.where(likelihood > IMPOSSIBLE / 2, -likelihood, torch.zeros_like(likelihood))


def ctc_loss(logits: Tensor, targets: Tensor, frames: Tensor, labels: Tensor, blank_id: int) -> Tensor:
    """CTC loss of every row, [B]: logits [B, T, V], targets [B, U]; rows too short for them give 0."""
    log_probs = logits.float().log_softmax(-1).transpose(0, 1)
    return torch.nn.functional.ctc_loss(
        log_probs, targets, frames, labels, blank=blank_id, reduction="none", zero_infinity=True
    )
