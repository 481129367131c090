"""What every op means, one obvious loop each, in the dtype of its arguments (float64 for a yardstick).

Letters: B batch, T encoder frames, V vocabulary with blank, N number of durations, J joint width, H predictor
width, W window, C context or capacity, R rows of the loop's buffers, S slots, L predictor layers.
"""

from __future__ import annotations

import torch
from torch import Tensor

ACTIVATIONS = {"relu": torch.relu, "tanh": torch.tanh, "sigmoid": torch.sigmoid}


def joint(encoder: Tensor, predictor: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    """Logits of one frame: encoder [J] and predictor [J], both projected, weight [V+N,J], bias [V+N]."""
    logits = weight @ ACTIVATIONS[activation](encoder + predictor)
    return logits if bias is None else logits + bias


def joint_argmax(
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
    """Best token, best duration index and the token's log-probability for frames times[b] .. times[b]+W-1.

    encoder [B,T,J] and predictor [B,J] are projected; times and lengths [B]. Frames that row b does not have
    give token -1, duration 0 and log-probability 0. Returns three tensors [B,W].
    """
    batch, num_frames, _ = encoder.shape
    vocab = weight.shape[0] - num_durations
    tokens = torch.full((batch, window), -1, dtype=torch.int32)
    durations = torch.zeros((batch, window), dtype=torch.int32)
    log_probs = torch.zeros((batch, window), dtype=encoder.dtype)
    for b in range(batch):
        for w in range(window):
            t = int(times[b]) + w
            if t >= min(int(lengths[b]), num_frames):
                continue
            logits = joint(encoder[b, t], predictor[b], weight, bias, activation)
            tokens[b, w] = logits[:vocab].argmax()
            log_probs[b, w] = logits[:vocab].log_softmax(0)[tokens[b, w]]
            if num_durations > 0:
                durations[b, w] = logits[vocab:].argmax()
    return tokens, durations, log_probs


def lstm_step(
    weights: list[Tensor], label: int, state: tuple[Tensor, Tensor]
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """One label through an LSTM predictor: (output [J], (hidden [L,H], cell [L,H])).

    weights = [embedding [V,H], weight [L,4H,2H] over (input, hidden), bias [L,4H], projection [J,H],
    projection_bias [J]]; the gates stand in the order input, forget, cell, output.
    """
    embedding, weight, bias, projection, projection_bias = weights
    hidden, cell = state
    new_hidden, new_cell = torch.empty_like(hidden), torch.empty_like(cell)
    x = embedding[label]
    for layer in range(weight.shape[0]):
        gates = weight[layer] @ torch.cat([x, hidden[layer]]) + bias[layer]
        i, f, g, o = gates.chunk(4)
        new_cell[layer] = torch.sigmoid(f) * cell[layer] + torch.sigmoid(i) * torch.tanh(g)
        new_hidden[layer] = torch.sigmoid(o) * torch.tanh(new_cell[layer])
        x = new_hidden[layer]
    return projection @ x + projection_bias, (new_hidden, new_cell)


def gru_step(weights: list[Tensor], label: int, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """One label through a GRU predictor: (output [J], hidden [L,H]).

    weights = [embedding [V,H], weight [L,2,3H,H] for the input and for the hidden state, bias [L,2,3H]
    likewise, projection [J,H], projection_bias [J]]; the gates stand in the order reset, update, new. The
    reset gate multiplies the hidden state's share of the new value with its bias.
    """
    embedding, weight, bias, projection, projection_bias = weights
    new_hidden = torch.empty_like(hidden)
    x = embedding[label]
    for layer in range(weight.shape[0]):
        input_reset, input_update, input_new = (weight[layer, 0] @ x + bias[layer, 0]).chunk(3)
        own_reset, own_update, own_new = (weight[layer, 1] @ hidden[layer] + bias[layer, 1]).chunk(3)
        reset = torch.sigmoid(input_reset + own_reset)
        update = torch.sigmoid(input_update + own_update)
        new = torch.tanh(input_new + reset * own_new)
        new_hidden[layer] = (1 - update) * new + update * hidden[layer]
        x = new_hidden[layer]
    return projection @ x + projection_bias, new_hidden


def stateless_step(weights: list[Tensor], label: int, context: Tensor, relu: bool) -> tuple[Tensor, Tensor]:
    """One label through a stateless predictor: (output [J], context [C-1], most recent label first).

    weights = [tables [C,V,H], projection [J,H], projection_bias [J]]; table k is for the k-th most recent
    label.
    """
    tables, projection, projection_bias = weights
    labels = [label, *context.tolist()]
    x = torch.stack([tables[k, labels[k]] for k in range(tables.shape[0])]).sum(0)
    x = torch.relu(x) if relu else x
    return projection @ x + projection_bias, context.new_tensor(labels[:-1])


def kv_cache_update(
    keys: Tensor,
    values: Tensor,
    lengths: Tensor,
    slots: Tensor,
    positions: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
) -> tuple[Tensor, Tensor]:
    """The caches [S,heads,C,dk] after the valid frames of keys and values [B,T,heads,dk] have entered.

    Row b belongs to slots[b] (-1: to none); positions[s] frames have entered slot s before. Frame i of a row
    goes to place (positions + i) mod C of its slot's ring. Frames from lengths[b] on never enter.
    """
    key_cache, value_cache = key_cache.clone(), value_cache.clone()
    capacity = key_cache.shape[2]
    for b in range(keys.shape[0]):
        slot = int(slots[b])
        if slot < 0:
            continue
        for i in range(int(lengths[b])):
            place = (int(positions[slot]) + i) % capacity
            key_cache[slot, :, place] = keys[b, i]
            value_cache[slot, :, place] = values[b, i]
    return key_cache, value_cache


def load_rows(
    lengths: Tensor,
    time_jumps: Tensor,
    given: list[Tensor],
    batch_dims: list[int],
    frames: int,
    times: Tensor,
    state: list[Tensor],
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """(row_lengths, times, state) of R rows, after B utterances have been put into the first of them."""
    row_lengths, times = torch.zeros_like(times), times.clone()
    state = [tensor.clone() for tensor in state]
    for b in range(lengths.shape[0]):
        row_lengths[b] = min(max(int(lengths[b]), 0), frames)
        times[b] = time_jumps[b % len(time_jumps)]
        for own, tensor, dim in zip(state, given, batch_dims, strict=True):
            own.select(dim, b).copy_(tensor.select(dim, b % tensor.shape[dim]))
    return row_lengths, times, state


def save_rows(
    state: list[Tensor],
    batch_dims: list[int],
    times: Tensor,
    row_lengths: Tensor,
    decoded_lengths: Tensor,
    batch: int,
) -> list[Tensor]:
    """Copies of the first B rows of `state`, then time_jumps int32 [B] and decoded_lengths int64 [B]."""
    time_jumps = [max(int(times[b]) - int(row_lengths[b]), 0) for b in range(batch)]
    decoded = [int(decoded_lengths[b % len(decoded_lengths)]) + int(row_lengths[b]) for b in range(batch)]
    return [
        *(tensor.narrow(dim, 0, batch).clone() for tensor, dim in zip(state, batch_dims, strict=True)),
        torch.tensor(time_jumps, dtype=torch.int32),
        torch.tensor(decoded, dtype=torch.int64),
    ]


def pack_labels(
    tokens: Tensor,
    frames: Tensor,
    token_durations: Tensor,
    log_probs: Tensor,
    counts: Tensor,
    lengths: Tensor,
    decoded_lengths: Tensor,
) -> Tensor:
    """int32 [B + U, 4], U the number of all labels: a record for each row, then one for each label.

    A row's record: place of its first label, their number, the sum of their log-probabilities as float32 bits
    and its length. A label's: token, frame with decoded_lengths added, duration, log-probability as bits.
    """
    rows: list[list[int]] = []
    labels: list[list[int]] = []
    for b in range(lengths.shape[0]):
        count = int(counts[b])
        score = log_probs[b, :count].double().sum().float()
        rows.append([len(labels), count, int(score.view(torch.int32)), int(lengths[b])])
        for u in range(count):
            frame = int(frames[b, u]) + int(decoded_lengths[b % len(decoded_lengths)])
            bits = int(log_probs[b, u].view(torch.int32))
            labels.append([int(tokens[b, u]), frame, int(token_durations[b, u]), bits])
    return torch.tensor([*rows, *labels], dtype=torch.int32).reshape(-1, 4)
