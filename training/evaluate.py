"""Word error rate while training: greedy decoding of a batch in plain torch. Scoring proper is `score`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from rnnt_fastdecode.audio.mel import LogMel
from rnnt_fastdecode.transducer.modules import CtcHead, TransducerHead

from .model import LEFT_CONTEXT, TrainingModel


def word_errors(reference: Sequence[str], hypothesis: Sequence[str]) -> int:
    """Least number of substitutions, insertions and deletions between two word sequences."""
    row = list(range(len(hypothesis) + 1))
    for i, wanted in enumerate(reference, 1):
        diagonal, row[0] = row[0], i
        for j, got in enumerate(hypothesis, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (wanted != got))
    return row[-1]


def word_error_rate(references: Sequence[str], hypotheses: Sequence[str]) -> tuple[int, int]:
    """(errors, reference words) over all utterances."""
    pairs = list(zip(references, hypotheses, strict=True))
    errors = sum(word_errors(wanted.split(), got.split()) for wanted, got in pairs)
    return errors, sum(len(wanted.split()) for wanted, _ in pairs)


def greedy_ctc(head: CtcHead, encoded: Tensor, frames: Tensor) -> list[list[int]]:
    best = head(encoded).argmax(-1).cpu()
    result = []
    for row, length in zip(best, frames.tolist(), strict=True):
        merged = torch.unique_consecutive(row[:length]).tolist()
        result.append([token for token in merged if token != head.blank_id])
    return result


def greedy_transducer(head: TransducerHead, encoded: Tensor, frames: Tensor) -> list[list[int]]:
    """Greedy RNN-T or TDT of all rows in step: every pass evaluates one joint for each row."""
    rows = torch.arange(encoded.shape[0], device=encoded.device)
    projected = head.joint.encoder_projection(encoded)
    predictor = head.predictor
    last = torch.full_like(rows, head.blank_id)
    output, state = predictor.lstm(predictor.embedding(last).unsqueeze(1))
    time, symbols = torch.zeros_like(rows), torch.zeros_like(rows)
    limit = encoded.shape[1] - 1
    durations = torch.tensor(head.durations or (0,), device=encoded.device)
    steps = []
    while bool((time < frames).any()):
        logits = head.joint(projected[rows, time.clamp_max(limit)], predictor.projection(output[:, 0]))
        tokens = logits[:, : logits.shape[1] - len(head.durations)].argmax(-1)
        span = (
            durations[logits[:, -len(durations) :].argmax(-1)] if head.durations else torch.zeros_like(time)
        )
        label = (tokens != head.blank_id) & (time < frames)
        steps.append(torch.where(label, tokens, -1))
        if bool(label.any()):
            stepped, new = predictor.lstm(predictor.embedding(tokens).unsqueeze(1), state)
            output = torch.where(label[:, None, None], stepped, output)
            state = tuple(torch.where(label[None, :, None], b, a) for a, b in zip(state, new, strict=True))
        span = torch.where(label, span, span.clamp_min(1))
        symbols = torch.where(label & (span == 0), symbols + 1, 0)
        stuck = symbols >= head.max_symbols
        time = time + torch.where(stuck, 1, span)
        symbols = torch.where(stuck, 0, symbols)
    table = torch.stack(steps, dim=1).tolist() if steps else [[] for _ in rows]
    return [[token for token in row if token >= 0] for row in table]


@torch.no_grad()
def recognise(
    model: TrainingModel, mel: LogMel, clips: Sequence[np.ndarray], lookahead: int, batch_size: int = 64
) -> dict[str, list[list[int]]]:
    """Token ids of every clip (int16 samples) by every head."""
    device = next(model.parameters()).device
    results: dict[str, list[list[int]]] = {name: [] for name in model.heads}
    for start in range(0, len(clips), batch_size):
        batch = clips[start : start + batch_size]
        lengths = torch.tensor([clip.size for clip in batch])
        samples = torch.zeros(len(batch), int(lengths.max()))
        for i, clip in enumerate(batch):
            samples[i, : clip.size] = torch.from_numpy(clip.astype(np.float32) / 32768)
        features, frames = mel(samples.to(device), lengths.to(device))
        encoded, frames = model.encoder(features, frames, (LEFT_CONTEXT, lookahead))
        for name, head in model.heads.items():
            greedy = greedy_ctc if isinstance(head, CtcHead) else greedy_transducer
            results[name] += greedy(head, encoded, frames)
    return results
