"""What the tests of the resident kernel share."""

import torch
from op_cases import integers

from rnnt_fastdecode import ops

TDT = (0, 1, 2, 3, 4)


def resident_workspace(loop):
    """Layer 0's input gates for every label, and scratch memory full of NaN."""
    table = torch.empty(0, loop.weights[0].shape[-1], 4, device="cuda")
    if loop.network.predictor_kind == "lstm":
        embedding, weight, bias = (w.double() for w in loop.weights[:3])
        width = embedding.shape[1]
        gates = embedding @ weight[0, :, :width].T + bias[0]
        table = gates.float().view(-1, 4, width).transpose(1, 2).contiguous()
    size = torch.ops.rnnt_fastdecode.greedy_resident_bytes(
        loop.network.weight,
        loop.network.predictor_kind,
        loop.weights,
        loop.encoder.shape[0],
        len(loop.network.durations),
        loop.window,
    )
    assert size > 0, "the resident kernel must take these shapes"
    return [table, torch.full((size,), 255, dtype=torch.uint8, device="cuda")]


def run_resident(loop):
    ops.greedy_rounds_(*loop.arguments(-1)[:-1], resident_workspace(loop))
    assert int(loop.active) == 0
    return loop


def ragged(planted, batch, frames, seed):
    """Encoder output whose rows are NaN from their lengths on; the first row is full, the second empty."""
    encoder = planted.encoder(batch, frames, seed=seed)
    lengths = integers(0, frames + 1, (batch,), seed)
    lengths[:2] = torch.tensor([frames, 0])[:batch]
    for row in range(batch):
        encoder[row, lengths[row] :] = float("nan")
    return encoder, lengths
