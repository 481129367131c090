"""What both halves of make_fixtures.py need: random weights that emit labels, the file of expected values."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

FIXTURES = Path(__file__).parent.resolve() / "fixtures"
MELS = 32
TEXT = """the quick brown fox jumps over the lazy dog
a model reads sound and writes words one after the other
seven boats left the harbour before the rain began
every good boy deserves fudge and cake on sundays"""


class DullModelError(Exception):
    """A random model whose output has too little variety to test anything."""


def first_lively(save: Callable[[int], None], seed: int) -> None:
    """Call `save` with one seed after the other until its model is not dull."""
    for attempt in range(100):
        try:
            return save(seed + 100 * attempt)
        except DullModelError:
            continue
    raise DullModelError


def tune_blank(bias: Tensor, blank: int, count: Callable[[], int], wanted: int) -> int:
    """Shift the blank's bias until about `wanted` labels come out; as it is, none or nothing else may."""
    start = float(bias[blank])
    low, high = start - 20.0, start + 20.0
    found = -1
    for _ in range(24):
        bias[blank] = (low + high) / 2
        found = count()
        if abs(found - wanted) <= wanted // 10:
            break
        low, high = (low, (low + high) / 2) if found < wanted else ((low + high) / 2, high)
    return found


def spread(weight: Tensor, bias: Tensor, inputs: Tensor, deviation: float) -> Tensor:
    """Scale a linear layer so that each output varies over `inputs` [N, D] around 0; returns the outputs.

    A random encoder's frames have much in common: unscaled, one label would win everywhere.
    """
    rows = weight.flatten(1)
    out = inputs @ rows.T
    rows.mul_((deviation / out.std(dim=0)).unsqueeze(1))
    bias.copy_(-(inputs @ rows.T).mean(dim=0))
    return inputs @ rows.T + bias


def write_expected(folder: Path, tensors: dict[str, Tensor], texts: list[str]) -> None:
    labels = torch.cat([value for key, value in tensors.items() if key.startswith("tokens")])
    if len(labels.unique()) < 10 or not all(text.strip() for text in texts[:2]):
        raise DullModelError
    print(f"{folder.name}: {len(labels)} labels, {len(labels.unique())} distinct, {texts[0]!r}")
    tensors = {key: value.contiguous() for key, value in tensors.items()}
    save_file(tensors, folder / "expected.safetensors", metadata={"texts": json.dumps(texts)})


def randomise(model: torch.nn.Module, seed: int) -> None:
    """Weights large enough to matter, statistics that are not 0 and 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            fan_in = value[0].numel() if value.ndim > 1 else 16
            noise = torch.randn(value.shape, generator=generator) * fan_in**-0.5
            is_scale = name.endswith("weight") and value.ndim == 1
            value.copy_(1.0 + 0.2 * noise if is_scale else noise)
        for name, value in model.named_buffers():
            if name.endswith("running_mean"):
                value.copy_(0.1 * torch.randn(value.shape, generator=generator))
            elif name.endswith("running_var"):
                value.copy_(0.5 + torch.rand(value.shape, generator=generator))
