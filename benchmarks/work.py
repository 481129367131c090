"""How much work a decoded batch was, and the least time that an H200 needs for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rnnt_fastdecode import Joint
from rnnt_fastdecode.transducer import Hypothesis
from rnnt_fastdecode.transducer.modules import ACTIVATIONS

# What large products and copies reach on an H200, and a barrier over all of its multiprocessors.
BYTES_PER_SECOND = 4.3e12
FLOPS_PER_SECOND = {torch.bfloat16: 790e12, torch.float16: 790e12, torch.float32: 60e12}
BARRIER_SECONDS = 0.95e-6


@dataclass(frozen=True)
class Work:
    """What a batch asks for, whoever decodes it.

    rounds: windows of the busiest row, each with one label at most, at the decoder's own window.
    least_rounds: the same with a window that reaches to the end: one for each label, and a last look.
    looks: frames judged by the joint, all rows together, if none is judged twice with the same labels.
    labels: labels emitted, all rows together.
    frames: valid frames, all rows together.
    """

    rounds: int
    least_rounds: int
    looks: int
    labels: int
    frames: int


def walk(
    hypothesis: Hypothesis,
    length: int,
    window: int,
    max_symbols: int,
    blank_steps: Sequence[int] | None = None,
) -> tuple[int, int]:
    """(rounds, looks) of one row; a blank at frame t advances by `blank_steps[t]` frames, None: by one."""
    labels = iter(zip(hypothesis.frames, hypothesis.durations, strict=True))
    due = next(labels, None)
    time = symbols = rounds = looks = 0
    while time < length:
        rounds += 1
        end = min(time + window, length)
        while time < end:
            looks += 1
            if due is not None and due[0] == time:
                symbols = symbols + 1 if due[1] == 0 else 0
                time += due[1]
                if symbols == max_symbols:
                    time, symbols = time + 1, 0
                due = next(labels, None)
                break
            step = 1 if blank_steps is None else blank_steps[time]
            # Rounding may have decided a duration otherwise in the decoder: its labels are what counts.
            time += step if due is None else min(step, due[0] - time)
            symbols = 0
    return rounds, looks


@torch.no_grad()
def tdt_blank_steps(
    predictor: nn.Module,
    joint: Joint,
    blank_id: int,
    durations: Sequence[int],
    encoder: Tensor,
    hypotheses: Sequence[Hypothesis],
) -> list[list[int]]:
    """What a blank at each frame of encoder [B, T, D] advances by, after the labels of the frames so far.

    A result does not tell the durations of blanks, so its labels are fed through the modules once more.
    """
    longest = max(len(h.tokens) for h in hypotheses)
    tokens = torch.full((len(hypotheses), 1 + longest), blank_id, dtype=torch.int64)
    frames = torch.full((len(hypotheses), longest), encoder.shape[1], dtype=torch.int64)
    for row, hypothesis in enumerate(hypotheses):
        tokens[row, 1 : 1 + len(hypothesis.tokens)] = torch.tensor(hypothesis.tokens, dtype=torch.int64)
        frames[row, : len(hypothesis.frames)] = torch.tensor(hypothesis.frames, dtype=torch.int64)
    # Labels up to and with frame t have been fed when a blank is found there.
    times = torch.arange(encoder.shape[1]).expand(len(hypotheses), -1).contiguous()
    fed = torch.searchsorted(frames, times, right=True).to(encoder.device)
    after = predictor(tokens.to(encoder.device))
    weight, bias = (p[-len(durations) :] for p in (joint.output.weight, joint.output.bias))
    steps = torch.tensor([max(duration, 1) for duration in durations])
    found = []
    for row, projected in enumerate(joint.encoder_projection(encoder)):
        activated = ACTIVATIONS[joint.activation](projected + after[row, fed[row]])
        found.append(steps[F.linear(activated, weight, bias).argmax(dim=1).cpu()].tolist())
    return found


def count(
    hypotheses: Sequence[Hypothesis],
    lengths: Sequence[int],
    window: int,
    max_symbols: int,
    blank_steps: Sequence[Sequence[int]] | None = None,
) -> Work:
    """The work of a batch, counted from what came out of it."""
    rounds, least, looks = [0], [0], 0
    for row, (hypothesis, length) in enumerate(zip(hypotheses, lengths, strict=True)):
        steps = None if blank_steps is None else blank_steps[row]
        taken, seen = walk(hypothesis, length, window, max_symbols, steps)
        rounds.append(taken)
        least.append(walk(hypothesis, length, max(length, 1), max_symbols, steps)[0])
        looks += seen
    labels = sum(len(hypothesis.tokens) for hypothesis in hypotheses)
    return Work(max(rounds), max(least), looks, labels, sum(lengths))


def floor_milliseconds(predictor: nn.Module, joint: Joint, work: Work) -> float:
    """The floor that a decoder whose rows step together has on an H200.

    Weights (without the embedding) and valid encoder frames are read once at 4.3 TB/s; every valid frame is
    projected, every look is a joint evaluation and every label a predictor evaluation, at 790 TFLOP/s in
    bf16 or 60 in fp32; and each of `least_rounds` rounds crosses one barrier of 0.95 us for each of its
    dependent products: every predictor layer, the projection, the joint with its argmax.

    A product spread over all multiprocessors needs what all of them made in the product before it, so within
    a round a barrier can neither be left out nor hidden. Reading and arithmetic are priced as if small
    products ran as well as the largest ones do, so the distance to the floor is what small products, latency
    and looking further ahead than needed cost.
    """
    encoder_projection, output = joint.encoder_projection, joint.output
    step = {name: p for name, p in predictor.named_parameters() if ".weight" in name and p.ndim == 2}
    step.pop("embedding.weight", None)
    layers = sum("weight_ih" in name for name in step)
    matrices = [encoder_projection.weight, output.weight, *step.values()]
    element = output.weight.element_size()
    read = element * (sum(m.numel() for m in matrices) + work.frames * encoder_projection.in_features)
    multiplied = (
        work.frames * encoder_projection.weight.numel()
        + work.looks * output.weight.numel()
        + work.labels * sum(m.numel() for m in step.values())
    )
    seconds = (
        read / BYTES_PER_SECOND
        + 2 * multiplied / FLOPS_PER_SECOND[output.weight.dtype]
        + work.least_rounds * (layers + 2) * BARRIER_SECONDS
    )
    return 1e3 * seconds
