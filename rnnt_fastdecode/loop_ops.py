"""The ops of the greedy loop, as `ops` presents them: the loop itself, what goes before and what comes after.

Letters and the properties that all tensors share are those of `ops`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .errors import ArgumentError
from .op_libraries import call

# What decoders compute in, and what else the numbers of a network name by its place.
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
PREDICTOR_KINDS = ("lstm", "gru", "stateless", "stateless_relu")
ACTIVATIONS = ("relu", "tanh", "sigmoid")


def greedy_rounds_(
    encoder: Tensor,
    lengths: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str,
    blank_id: int,
    durations: Sequence[int],
    max_symbols: int,
    window: int,
    rounds: int,
    predictor_kind: str,
    predictor_weights: Sequence[Tensor],
    predictor_state: Sequence[Tensor],
    predictor_output: Tensor,
    times: Tensor,
    symbols: Tensor,
    tokens: Tensor,
    frames: Tensor,
    token_durations: Tensor,
    log_probs: Tensor,
    counts: Tensor,
    active: Tensor,
    workspace: Sequence[Tensor] = (),
    condition: int = 0,
) -> None:
    """Rounds of the greedy loop, in place: each row advances on its own, at most by one label in a round.

    A round of a row looks at the frames times[b] .. times[b]+W-1 and walks them to the first label. RNN-T:
    blank moves one frame on, a label stays. TDT: blank moves max(duration, 1) frames on, a label is stored
    and moves `duration` frames on. After max_symbols labels on one frame the row moves one frame on. The
    label then goes through the predictor. A row with times[b] >= lengths[b] is finished; how far it jumped
    past the end remains in times. A row with counts[b] == C is stalled: it can be continued once there is
    room.

    Args:
        encoder, weight, bias, activation: as for `joint_argmax`, N = len(durations).
        lengths: [B] int32, valid frames; what exceeds T counts as T.
        blank_id: index of blank, 0 .. V-1.
        durations: frames that each duration index stands for; empty for RNN-T.
        max_symbols: labels that one frame can give, at least 1.
        window: W, at least 1. Has no influence on what is emitted.
        rounds: how many rounds at most; -1 for as many as it takes.
        predictor_kind, predictor_weights, predictor_state, predictor_output: as for `predictor_step_`; state
            and output are modified in place. At the start of an utterance the output is that of a step with
            blank_id.
        times, symbols: [B] int32, frame of each row and labels it has given on that frame. Modified in place.
        tokens, frames, token_durations: [B, C] int32 and log_probs: [B, C] float32. Emissions of row b are
            written from place counts[b] on: label, frame within this encoder output, number of frames (0 for
            RNN-T), log-softmax value over the tokens.
        counts: [B] int32, emissions stored in each row. Modified in place.
        active: [1] int32, set to the number of rows that are neither finished nor stalled.
        workspace: scratch memory of the CUDA kernel; () on the CPU.
        condition: handle of the conditional graph node that goes on while rows are active; 0 for none.

    Raises:
        ArgumentError: a wrong shape, dtype, device, layout or value.

    On CUDA, rounds = -1 is one resident kernel, for networks that it fits: see `greedy_resident_bytes`. Its
    workspace is gate_table float32 [V,H,4], what each label adds to the gates i, f, g, o of the first LSTM
    layer with the biases (stateless: [0,H,4]), and that many bytes of uint8.

    The rules are those of NeMo's label-looping decoders; `rnnt_fastdecode.reference.decode` states them as a
    loop.
    """
    op = torch.ops.rnnt_fastdecode.greedy_rounds_.default
    call(
        op,
        encoder,
        lengths,
        weight,
        bias,
        activation,
        blank_id,
        list(durations),
        max_symbols,
        window,
        rounds,
        predictor_kind,
        list(predictor_weights),
        list(predictor_state),
        predictor_output,
        times,
        symbols,
        tokens,
        frames,
        token_durations,
        log_probs,
        counts,
        active,
        list(workspace),
        condition,
    )


class Network(NamedTuple):
    """What is fixed about a decoder, as `greedy_decode` takes it: see `pack_network`.

    block: [bytes] uint8 on the decoder's device. numbers: what is in it, and the rules of the search.
    """

    block: Tensor
    numbers: list[int]


def pack_network(
    encoder_weight: Tensor,
    encoder_bias: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    activation: str,
    blank_id: int,
    durations: Sequence[int],
    max_symbols: int,
    predictor_kind: str,
    predictor_weights: Sequence[Tensor],
    gate_table: Tensor | None,
    start: Sequence[Tensor],
) -> Network:
    """Copies what is fixed about a decoder into one block of memory.

    Args:
        encoder_weight: [J, D] dtype. encoder_bias: [J] dtype, or None.
        weight, bias, activation, blank_id, durations, max_symbols, predictor_kind, predictor_weights: as for
            `greedy_rounds_`.
        gate_table: for "lstm" float32 [V, H, 4], as in the workspace of `greedy_rounds_`; else None.
        start: the state of one utterance that has not begun, as `state` of `greedy_decode` with B = 1.

    Raises:
        ArgumentError: a wrong shape, dtype, device, layout or value.
    """
    op = torch.ops.rnnt_fastdecode.pack_network.default
    weights = list(predictor_weights)
    if activation not in ACTIVATIONS:
        raise ArgumentError(
            f"pack_network: activation must be one of {list(ACTIVATIONS)}, got {activation!r}"
        )
    block = call(
        op,
        encoder_weight,
        encoder_bias,
        weight,
        bias,
        len(durations),
        predictor_kind,
        weights,
        gate_table,
        list(start),
    )
    recurrent = predictor_kind in ("lstm", "gru")
    numbers = [
        DTYPES.index(weight.dtype),
        PREDICTOR_KINDS.index(predictor_kind),
        ACTIVATIONS.index(activation),
        encoder_weight.shape[1],
        weight.shape[1],
        weights[0].shape[-2],
        weights[0].shape[-1],
        (weights[1] if recurrent else weights[0]).shape[0],
        int(encoder_bias is not None),
        int(bias is not None),
        blank_id,
        max_symbols,
        *durations,
    ]
    return Network(block, numbers)


def greedy_decode(
    encoder_output: Tensor,
    lengths: Tensor,
    state: Sequence[Tensor],
    window: int,
    network: Network,
    host_records: int = 0,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Greedy decoding of a batch from encoder output to packed labels: all that a decoder's call does.

    The encoder projection of the joint, `load_rows_`, `greedy_rounds_` until every row is done, `save_rows`
    and `pack_labels`, put on the stream at once and without waiting for the device. On CUDA the loop is the
    resident kernel, for networks that it fits: see `greedy_resident_bytes`.

    Args:
        encoder_output: [B, T, D] dtype.
        lengths: [B] int32 or int64, valid frames; what lies outside 0 .. T is limited to it.
        state: what the predictor carries (for "lstm" hidden [L, B, H] dtype and cell [L, B, H] float32, for
            "gru" hidden, else context [B, C - 1] int32), its output [B, J] dtype, time_jumps [B] int32 and
            decoded_lengths [B] int64, as `save_rows` gives them. Each of B rows, or of one that all rows
            start from. () is the start of an utterance.
        window: W, at least 1. Has no influence on what is emitted.
        network: from `pack_network`.
        host_records: records of the labels that the host gets, B .. B + B * T * max_symbols, or 0.

    Returns:
        labels [B + B * T * max_symbols, 4] int32, as from `pack_labels`; host_labels [host_records, 4], its
        first records in the memory of the host, on CUDA there once the stream is done; and the state after
        these frames, like `state` with B rows. Nothing is shared with an argument.

    Raises:
        ArgumentError: a wrong shape, dtype, device, layout or value.
    """
    op = torch.ops.rnnt_fastdecode.greedy_decode.default
    return call(op, encoder_output, lengths, state, window, *network, host_records)


def greedy_resident_bytes(
    weight: Tensor,
    predictor_kind: str,
    predictor_weights: Sequence[Tensor],
    batch: int,
    num_durations: int,
    window: int,
) -> int:
    """Bytes of scratch memory that the resident kernel of `greedy_rounds_` needs; 0 where it cannot run.

    It runs on CUDA where the weights fit the shared memory of all multiprocessors: LSTM predictors of at most
    2 layers and stateless predictors of at most 4 labels, H and J multiples of 8 up to 768 and a window of at
    most 6 tiles of 8 (row, frame) pairs; in float32 H and J multiples of 4 up to 640 and a window of at most
    16 tiles and 48 frames.

    Args:
        weight: [V + N, J], as for `greedy_rounds_`, like predictor_kind, predictor_weights and window.
        batch: B, at least 1; up to 128 rows are decoded at a time.
        num_durations: N.

    Raises:
        ArgumentError: an unknown kind, or a wrong number of weights.
    """
    op = torch.ops.rnnt_fastdecode.greedy_resident_bytes.default
    return call(op, weight, predictor_kind, list(predictor_weights), batch, num_durations, window)


def load_rows_(
    lengths: Tensor,
    time_jumps: Tensor,
    given: Sequence[Tensor],
    batch_dims: Sequence[int],
    frames: int,
    row_lengths: Tensor,
    times: Tensor,
    symbols: Tensor,
    counts: Tensor,
    state: Sequence[Tensor],
) -> None:
    """Puts B utterances into the first of the R rows of the loop's buffers, in place.

    Args:
        lengths: [B] int32 or int64, valid frames; what lies outside 0 .. frames is limited to it.
        time_jumps: [B] int32, first frame of each row; or [1], the same for all.
        given: tensors of any dtype and shape with B rows, or with one row that all get.
        batch_dims: the dimension of each along which its rows lie.
        frames: T of this call, at most that of the buffers.
        row_lengths, times, symbols, counts: [R] int32, as for `greedy_rounds_`; rows from B on get length 0,
            symbols and counts become 0. Modified in place.
        state: like `given` with R rows each. Modified in place; rows from B on stay.

    Raises:
        ArgumentError: a wrong shape, dtype, device or layout.
    """
    op = torch.ops.rnnt_fastdecode.load_rows_.default
    call(
        op,
        lengths,
        time_jumps,
        list(given),
        list(batch_dims),
        frames,
        row_lengths,
        times,
        symbols,
        counts,
        list(state),
    )


def save_rows(
    state: Sequence[Tensor],
    batch_dims: Sequence[int],
    times: Tensor,
    row_lengths: Tensor,
    decoded_lengths: Tensor,
    batch: int,
) -> list[Tensor]:
    """Copies what the loop left in the first B of its R rows.

    Args:
        state: tensors of any dtype and shape with R rows.
        batch_dims: the dimension of each along which its rows lie.
        times, row_lengths: [R] int32, as the loop left them.
        decoded_lengths: [B] int64, frames before this call; or [1], the same for all.
        batch: B.

    Returns:
        The first B rows of each tensor of `state`, then time_jumps [B] int32, the frames by which times lie
        beyond row_lengths (at least 0), and decoded_lengths + row_lengths [B] int64.

    Raises:
        ArgumentError: a wrong shape, dtype, device, layout or value.
    """
    op = torch.ops.rnnt_fastdecode.save_rows.default
    return call(op, list(state), list(batch_dims), times, row_lengths, decoded_lengths, batch)


def pack_labels(
    tokens: Tensor,
    frames: Tensor,
    token_durations: Tensor,
    log_probs: Tensor,
    counts: Tensor,
    lengths: Tensor,
    decoded_lengths: Tensor,
    room: int,
) -> Tensor:
    """The labels of the first B rows of the loop's tables, one row after the other, in one tensor.

    Args:
        tokens, frames, token_durations: [R, C] int32 and log_probs: [R, C] float32, as `greedy_rounds_`
            leaves them.
        counts: [R] int32, labels of each row.
        lengths: [B] int32 or int64, frames of each row as the caller gave them; only copied.
        decoded_lengths: [B] int64, frames before this call, added to `frames`; or [1], the same for all.
        room: labels that the result has room for. On the CPU it must hold all; on CUDA what does not fit is
            left out, though still counted.

    Returns:
        [B + room, 4] int32. B records of rows: place of the first label, number of labels, sum of the
        log-probabilities (float32 bits), length. Then the records of labels: token, frame, duration,
        log-probability (float32 bits). Places count from record B on; records that no label takes are not
        initialised. Frames are int32: they wrap after 2**31 - 1. The sum is taken in float64.

    Raises:
        ArgumentError: a wrong shape, dtype, device or layout; on the CPU also a wrong value.
    """
    op = torch.ops.rnnt_fastdecode.pack_labels.default
    return call(op, tokens, frames, token_durations, log_probs, counts, lengths, decoded_lengths, room)
