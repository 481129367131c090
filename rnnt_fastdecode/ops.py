"""The ops of `torch.ops.rnnt_fastdecode`: loaded, described, and made known to `torch.compile` here.

Each op has a CPU and a CUDA kernel and a schema in csrc/ops.cpp; `rnnt_fastdecode.reference` says in plain
PyTorch what it means. Ops are for inference: they have no gradients. The functions below call the ops and
raise `ArgumentError` where an argument is wrong; under `torch.compile` the ops can also be called directly.

Letters: B batch, T encoder frames, V vocabulary with blank, N number of durations, J joint width, H predictor
width, W window of frames, C capacity, R rows of the loop's buffers, S slots, L predictor layers. "dtype" is
float32, bfloat16 or float16 and must be the same for all floating point tensors of a call, except where
float32 is stated. Integer tensors are int32 unless said otherwise. All tensors are contiguous and on one
device. Sums are taken in float32 whatever the dtype, unless said otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import fakes
from .errors import ArgumentError, RnntFastdecodeError

__all__ = [
    "cpu_kernels",
    "cuda_ops_loaded",
    "greedy_decode",
    "greedy_resident_bytes",
    "greedy_rounds_",
    "joint_argmax",
    "kv_cache_update_",
    "load_rows_",
    "pack_labels",
    "predictor_step_",
    "save_rows",
]

_LIBRARIES = Path(__file__).resolve().parent / "_lib"


def _load() -> bool:
    """Loads the op libraries; true if the CUDA ops are among them."""
    cpu, cuda = (_LIBRARIES / f"librnnt_fastdecode_{kind}.so" for kind in ("cpu", "cuda"))
    if not cpu.is_file():
        raise ImportError(
            f"{cpu} is missing: install the package with `pip install .`, or build the ops of a source tree "
            "with `python setup.py build_ext --inplace`"
        )
    torch.ops.load_library(str(cpu))
    if torch.version.cuda is None or not cuda.is_file():
        return False
    torch.ops.load_library(str(cuda))
    return True


#: True if this process has the CUDA kernels: they were built, and torch is a CUDA build.
cuda_ops_loaded: bool = _load()
fakes.register()


def _call(op: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return op(*arguments)
    except ValueError as error:
        raise ArgumentError(str(error)) from None
    except NotImplementedError as error:
        if "CUDA" not in str(error) or cuda_ops_loaded:
            raise
        raise RnntFastdecodeError(
            "The CUDA ops are not loaded: they are built where nvcc is found, and need a torch with CUDA."
        ) from None


def cpu_kernels() -> list[str]:
    """Names of the CPU kernels that this machine can run: first those in use, then the others, best first.

    "avx512_bf16" multiplies bfloat16 numbers directly, "avx512" and "avx2" widen halves to float32 in
    registers, "portable" is for every other machine. They round differently: where results must be the same
    to the last bit on different machines, RNNT_FASTDECODE_CPU_CAPABILITY=avx2, for one, in the environment
    names the kernels to use.

    Raises:
        ArgumentError: the environment names kernels that this machine does not have; all ops then do.
    """
    return list(_call(torch.ops.rnnt_fastdecode.cpu_kernels.default))


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
    return _call(op, encoder, predictor, weight, bias, times, lengths, window, num_durations, activation)


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
    _call(op, kind, list(weights), labels, list(state), output)


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
    _call(op, keys, values, lengths, slots, positions, key_cache, value_cache)


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
    _call(
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


def greedy_decode(
    encoder_output: Tensor,
    lengths: Tensor,
    state: Sequence[Tensor],
    window: int,
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
    gate_table: Tensor | None = None,
) -> tuple[Tensor, list[Tensor]]:
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
            start from.
        window: W, at least 1. Has no influence on what is emitted.
        encoder_weight: [J, D] dtype. encoder_bias: [J] dtype, or None.
        weight, bias, activation, blank_id, durations, max_symbols, predictor_kind, predictor_weights: as for
            `greedy_rounds_`.
        gate_table: on CUDA, as in the workspace of `greedy_rounds_`.

    Returns:
        labels [B + B * T * max_symbols, 4] int32, as from `pack_labels`, and the state after these frames,
        like `state` with B rows. Nothing of either is shared with an argument.

    Raises:
        ArgumentError: a wrong shape, dtype, device, layout or value.
    """
    op = torch.ops.rnnt_fastdecode.greedy_decode.default
    return _call(
        op,
        encoder_output,
        lengths,
        state,
        window,
        encoder_weight,
        encoder_bias,
        weight,
        bias,
        activation,
        blank_id,
        durations,
        max_symbols,
        predictor_kind,
        predictor_weights,
        gate_table,
    )


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
        batch: B, at least 1; 32 rows, in float32 128, are decoded at a time.
        num_durations: N.

    Raises:
        ArgumentError: an unknown kind, or a wrong number of weights.
    """
    op = torch.ops.rnnt_fastdecode.greedy_resident_bytes.default
    return _call(op, weight, predictor_kind, list(predictor_weights), batch, num_durations, window)


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
    _call(
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
    return _call(op, list(state), list(batch_dims), times, row_lengths, decoded_lengths, batch)


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
    return _call(op, tokens, frames, token_durations, log_probs, counts, lengths, decoded_lengths, room)
