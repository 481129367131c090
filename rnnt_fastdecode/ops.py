"""The ops of `torch.ops.rnnt_fastdecode`: described here, and made known to `torch.compile`.

Each op has a CPU and a CUDA kernel and a schema in csrc/ops.cpp; `rnnt_fastdecode.reference` says in plain
PyTorch what it means. Ops are for inference: they have no gradients. These functions (those of the greedy
loop stand in loop_ops.py) call the ops and raise `ArgumentError` where an argument is wrong; under
`torch.compile` the ops can also be called directly.

Letters: B batch, T encoder frames, V vocabulary with blank, N number of durations, J joint width, H predictor
width, W window of frames, C capacity, R rows of the loop's buffers, S slots, L predictor layers. "dtype" is
float32, bfloat16 or float16 and must be the same for all floating point tensors of a call, except where
float32 is stated. Integer tensors are int32 unless said otherwise. All tensors are contiguous and on one
device. Sums are taken in float32 whatever the dtype, unless said otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .loop_ops import (
    Network,
    greedy_decode,
    greedy_resident_bytes,
    greedy_rounds_,
    load_rows_,
    pack_labels,
    pack_network,
    save_rows,
)
from .op_libraries import call, cuda_ops_loaded

__all__ = [
    "Network",
    "cpu_kernels",
    "cuda_ops_loaded",
    "greedy_decode",
    "greedy_resident_bytes",
    "greedy_rounds_",
    "joint_argmax",
    "kv_cache_update_",
    "load_rows_",
    "pack_labels",
    "pack_network",
    "predictor_step_",
    "save_rows",
]


def cpu_kernels() -> list[str]:
    """Names of the CPU kernels that this machine can run: first those in use, then the others, best first.

    "avx512_bf16" multiplies bfloat16 numbers directly, "avx512" and "avx2" widen halves to float32 in
    registers, "portable" is for every other machine. They round differently: where results must be the same
    to the last bit on different machines, RNNT_FASTDECODE_CPU_CAPABILITY=avx2, for one, in the environment
    names the kernels to use.

    Raises:
        ArgumentError: the environment names kernels that this machine does not have; all ops then do.
    """
    return list(call(torch.ops.rnnt_fastdecode.cpu_kernels.default))


def joint_argmax(
    encoder: Tensor,
    predictor: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    times: Tensor,
    lengths: Tensor,
    window: int,
    num_durations: int = 0,
    activation: str = "relu",
) -> tuple[Tensor, Tensor, Tensor]:
    """Joint network and argmax over the next W frames of every row; the logits never reach memory.

    For w in 0 .. W-1 and t = times[b] + w: a = activation(encoder[b, t] + predictor[b]), the sum and a both
    rounded to dtype; logits = weight @ a + bias in float32.

    Args:
        encoder: [B, T, J] dtype, already projected. May have any stride along B.
        predictor: [B, J] dtype, already projected.
        weight: [V + N, J] dtype: rows of the tokens, then rows of the durations.
        bias: [V + N] dtype, or None.
        times: [B] int32, first frame to look at; not negative.
        lengths: [B] int32, valid frames; what exceeds T counts as T.
        window: W, at least 1.
        num_durations: N, 0 for RNN-T.
        activation: "relu", "tanh" or "sigmoid".

    Returns:
        tokens [B, W] int32: the first of the tokens with the highest logit. NaN counts as highest.
        durations [B, W] int32: likewise among the N duration logits, an index; 0 if N is 0.
        log_probs [B, W] float32: log-softmax over the V token logits at the chosen token.
        Frames with t >= lengths[b] give -1, 0 and 0.

    Raises:
        ArgumentError: a wrong shape, dtype, device, layout or value.

    The joint network is that of A. Graves, "Sequence Transduction with Recurrent Neural Networks", 2012, in
    the form that NeMo trains; durations as in H. Xu et al., "Efficient Sequence Transduction by Jointly
    Predicting Tokens and Durations", 2023.
    """
    op = torch.ops.rnnt_fastdecode.joint_argmax.default
    return call(op, encoder, predictor, weight, bias, times, lengths, window, num_durations, activation)


def predictor_step_(
    kind: str, weights: Sequence[Tensor], labels: Tensor, state: Sequence[Tensor], output: Tensor
) -> None:
    """One predictor step, in place, for every row that has a label.

    Args:
        kind: "lstm", "gru", "stateless" or "stateless_relu".
        weights: for "lstm" [embedding [V, H] dtype, weight [L, 4H, 2H] dtype (input weights, then hidden
            weights along the last dimension; gates in the order input, forget, cell, output), bias [L, 4H]
            float32 (both biases of torch.nn.LSTM added), projection [J, H] dtype, projection_bias [J] dtype].
            For "gru" [embedding, weight [L, 2, 3H, H] dtype (for the input, then for the hidden state; gates
            in the order reset, update, new), bias [L, 2, 3H] float32 (both biases of torch.nn.GRU apart),
            projection, projection_bias].
            Else [tables [C, V, H] dtype (table k belongs to the k-th most recent label), projection,
            projection_bias].
        labels: [B] int32, -1 for rows that are to stay as they are.
        state: for "lstm" [hidden [L, B, H] dtype, cell [L, B, H] float32, next_hidden [L, B, H] dtype
            (scratch)]. For "gru" [hidden, next_hidden]. Else [context [B, C - 1] int32, the most recent label
            first]. Modified in place.
        output: [B, J] dtype, the projected output of the predictor. Modified in place.

    Gates are float32. A hidden state is rounded to dtype, a cell state stays in float32. The stateless
    predictor adds its C table entries in float32, rounds the sum to dtype and, for "stateless_relu", takes
    its positive part.

    Raises:
        ArgumentError: a wrong shape, dtype, device, layout or value.

    The LSTM is that of torch.nn.LSTM, as in NeMo's RNNTDecoder; the GRU that of torch.nn.GRU, whose reset
    gate multiplies the hidden state's product and bias; the stateless predictor is that of
    M. Ghodsi et al., "RNN-Transducer with Stateless Prediction Network", 2020, as in NeMo.
    """
    op = torch.ops.rnnt_fastdecode.predictor_step_.default
    call(op, kind, list(weights), labels, list(state), output)


def kv_cache_update_(
    keys: Tensor,
    values: Tensor,
    lengths: Tensor,
    slots: Tensor,
    positions: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
) -> None:
    """Writes the valid frames of a chunk into the attention caches of their streams, in place.

    Frame i < lengths[b] goes to place (positions[slots[b]] + i) mod C of the ring of slot slots[b]. Where a
    chunk has more than C valid frames, its last C enter. Frames from lengths[b] on never enter.

    Args:
        keys, values: [B, T, heads, dk] dtype, projected.
        lengths: [B] int32, 0 .. T: valid frames of each row.
        slots: [B] int32, the slot of each row, no slot twice; -1 skips the row.
        positions: [S] int32, valid frames that each slot has been given before. Read only.
        key_cache, value_cache: [S, heads, C, dk] dtype. Modified in place.

    Raises:
        ArgumentError: a wrong shape, dtype, device or layout; on the CPU also a wrong value.
    """
    op = torch.ops.rnnt_fastdecode.kv_cache_update_.default
    call(op, keys, values, lengths, slots, positions, key_cache, value_cache)
