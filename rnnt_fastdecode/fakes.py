"""Fake kernels: what the ops return, for `torch.compile`; op_libraries.py registers them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def _joint_argmax(
    encoder: Tensor,
    predictor: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    times: Tensor,
    lengths: Tensor,
    window: int,
    num_durations: int,
    activation: str,
) -> tuple[Tensor, Tensor, Tensor]:
    shape = (times.shape[0], window)
    return times.new_empty(shape), times.new_empty(shape), times.new_empty(shape, dtype=torch.float32)


def _save_rows(
    state: list[Tensor],
    batch_dims: list[int],
    times: Tensor,
    row_lengths: Tensor,
    decoded_lengths: Tensor,
    batch: int,
) -> list[Tensor]:
    copies = [
        tensor.new_empty([batch if d == dim else size for d, size in enumerate(tensor.shape)])
        for tensor, dim in zip(state, batch_dims, strict=True)
    ]
    return [*copies, times.new_empty(batch), decoded_lengths.new_empty(batch)]


def _pack_labels(
    tokens: Tensor,
    frames: Tensor,
    token_durations: Tensor,
    log_probs: Tensor,
    counts: Tensor,
    lengths: Tensor,
    decoded_lengths: Tensor,
    room: int,
) -> Tensor:
    return tokens.new_empty((lengths.shape[0] + room, 4))


def _greedy_decode(
    encoder_output: Tensor,
    lengths: Tensor,
    state: list[Tensor],
    window: int,
    encoder_weight: Tensor,
    encoder_bias: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    activation: str,
    blank_id: int,
    durations: list[int],
    max_symbols: int,
    predictor_kind: str,
    predictor_weights: list[Tensor],
    gate_table: Tensor | None = None,
) -> tuple[Tensor, list[Tensor]]:
    batch, frames = encoder_output.shape[:2]
    labels = lengths.new_empty((batch + batch * frames * max_symbols, 4), dtype=torch.int32)
    recurrent = predictor_kind in ("lstm", "gru")
    shapes = [
        [tensor.shape[0], batch, tensor.shape[2]]
        if recurrent and tensor.ndim == 3
        else [batch, *tensor.shape[1:]]
        for tensor in state
    ]
    return labels, [tensor.new_empty(shape) for tensor, shape in zip(state, shapes, strict=True)]


def _in_place(*_arguments: Any, **_keywords: Any) -> None:
    """In-place ops have no results."""


def register() -> None:
    """Make them known to torch; the op library must have been loaded."""
    results: dict[str, Callable[..., Any]] = {
        "joint_argmax": _joint_argmax,
        "save_rows": _save_rows,
        "pack_labels": _pack_labels,
        "greedy_decode": _greedy_decode,
    }
    in_place = ("predictor_step_", "kv_cache_update_", "greedy_rounds_", "load_rows_")
    for name, fake in results.items():
        torch.library.register_fake(f"rnnt_fastdecode::{name}", fake)
    for name in in_place:
        torch.library.register_fake(f"rnnt_fastdecode::{name}", _in_place)
