"""Augmentation of whole batches on the GPU: speed, reverberation, band limits, noise, gain, features.

Every function takes rows [B, S] or features [B, T, F] and draws its own parameters for each row.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .corpora import SAMPLE_RATE
from .data import HOP, Plan

REVERB_TAPS = 6400


def uniform(rows: int, low: float, high: float, like: Tensor) -> Tensor:
    return torch.empty(rows, 1, device=like.device).uniform_(low, high)


def chance(rows: int, probability: float, like: Tensor) -> Tensor:
    return torch.rand(rows, 1, device=like.device) < probability


def valid_mask(lengths: Tensor, size: int) -> Tensor:
    return torch.arange(size, device=lengths.device) < lengths.unsqueeze(1)


def assemble(pcm: Tensor, plan: Plan) -> Tensor:
    """The rows of a plan from the int16 buffer, [B, S] fp32; a piece's rate moves pitch and tempo together.

    Samples between the recorded ones come from a cubic through four neighbours (Catmull-Rom).
    """
    out_sizes = (plan.size / plan.rate).long()
    position = torch.arange(plan.longest, device=pcm.device) * plan.rate.double().unsqueeze(1)
    whole = position.long()
    x = (position - whole).float()
    last = (plan.size - 1).unsqueeze(1)
    a, b, c, d = (
        pcm[plan.start.unsqueeze(1) + torch.minimum((whole + k).clamp_min(0), last)].float()
        for k in (-1, 0, 1, 2)
    )
    pieces = b + 0.5 * x * (c - a + x * (2 * a - 5 * b + 4 * c - d + x * (3 * (b - c) + d - a)))
    rows = torch.zeros(plan.lengths.numel() * plan.width + 1, device=pcm.device)
    index = torch.arange(plan.longest, device=pcm.device) + (plan.row * plan.width + plan.offset).unsqueeze(1)
    inside = valid_mask(torch.minimum(out_sizes, plan.lengths[plan.row] - plan.offset), plan.longest)
    rows[torch.where(inside, index, rows.numel() - 1)] = pieces * inside / 32768
    return rows[:-1].view(-1, plan.width)


def _frequencies(size: int, like: Tensor) -> Tensor:
    return torch.linspace(0, SAMPLE_RATE / 2, size // 2 + 1, device=like.device)


def _fft_size(samples: int) -> int:
    step = 1 << max(0, samples.bit_length() - 3)
    return -(-samples // step) * step


def filter_and_reverberate(
    samples: Tensor, reverb: float = 0.35, band: float = 0.35, tilt: float = 0.5
) -> Tensor:
    """Random rooms, high- and low-passes and spectral colours, in one product of spectra."""
    rows, width = samples.shape
    size = _fft_size(width + REVERB_TAPS)
    hz = _frequencies(size, samples)
    spectrum = torch.fft.rfft(samples, size)

    time = torch.arange(REVERB_TAPS, device=samples.device) / SAMPLE_RATE
    decay = torch.exp(-6.9 * time / uniform(rows, 0.08, 0.6, samples))
    late = (
        torch.randn(rows, REVERB_TAPS, device=samples.device)
        * decay
        * (time > uniform(rows, 0.001, 0.01, samples))
    )
    late *= 10 ** (uniform(rows, -16, 0, samples) / 20) / late.norm(dim=1, keepdim=True).clamp_min(1e-6)
    late *= chance(rows, reverb, samples)
    late[:, 0] = 1.0
    spectrum = spectrum * torch.fft.rfft(late / late.norm(dim=1, keepdim=True), size)

    high = torch.where(chance(rows, band, samples), uniform(rows, 3000, 7800, samples), 20_000.0)
    low = torch.where(chance(rows, band, samples), uniform(rows, 40, 400, samples), 1.0)
    gain = (1 + (hz / high) ** 16).rsqrt() * (1 + (low / hz.clamp_min(1.0)) ** 8).rsqrt()
    octave = (hz.clamp_min(60.0) / 1000).log2()
    colour = uniform(rows, -3, 3, samples) * octave
    for ripple in (0.5, 1.0, 2.0):
        phase = uniform(rows, 0, 2 * math.pi, samples)
        colour = colour + uniform(rows, 0, 4, samples) * torch.cos(ripple * octave + phase)
    gain = gain * 10 ** (colour * chance(rows, tilt, samples) / 20)
    return torch.fft.irfft(spectrum * gain, size)[:, :width]


def coloured_noise(samples: Tensor) -> Tensor:
    """Noise of random spectral slope and slow random loudness, one row for each row of `samples`."""
    rows, width = samples.shape
    size = _fft_size(width)
    hz = _frequencies(size, samples).clamp_min(50.0) / 1000
    spectrum = torch.randn(rows, hz.numel(), 2, device=samples.device) * (
        hz ** -uniform(rows, -0.3, 1.3, samples)
    ).unsqueeze(2)
    noise = torch.fft.irfft(torch.view_as_complex(spectrum), size)[:, :width]
    knots = torch.randn(rows, 1, 2 + width // (SAMPLE_RATE // 3), device=samples.device)
    swell = torch.nn.functional.interpolate(knots, width, mode="linear").squeeze(1)
    return noise * 10 ** (swell * uniform(rows, 0, 6, samples) / 20)


def add_noise(samples: Tensor, lengths: Tensor, clean: Tensor) -> Tensor:
    """Coloured noise under every row (faint in `clean` [B, 1] and half of the others), speech under some."""
    rows = samples.shape[0]
    valid = valid_mask(lengths, samples.shape[1])
    power = _power(samples, valid)
    loud = chance(rows, 0.5, samples) & ~clean
    snr = torch.where(loud, uniform(rows, 4, 25, samples), uniform(rows, 25, 60, samples))
    noise = coloured_noise(samples)
    result = samples + noise * (power / _power(noise, valid) * 10 ** (-snr / 10)).sqrt()
    babble = samples.roll(1, dims=0) + samples.roll(2, dims=0)
    share = (
        (power / _power(babble, valid) * 10 ** (-uniform(rows, 8, 25, samples) / 10)).sqrt().clamp_max(2.0)
    )
    return result + babble * share * (chance(rows, 0.15, samples) & ~clean)


def _power(samples: Tensor, valid: Tensor) -> Tensor:
    return ((samples * valid).square().sum(1, keepdim=True) / valid.sum(1, keepdim=True)).clamp_min(1e-10)


def set_level(samples: Tensor, lengths: Tensor) -> Tensor:
    """A random level between -42 and -12 dB, clipped at full scale, with the noise floor of 16-bit files."""
    valid = valid_mask(lengths, samples.shape[1])
    wanted = 10 ** (uniform(samples.shape[0], -42, -12, samples) / 20)
    levelled = (samples * wanted / _power(samples, valid).sqrt()).clamp(-1, 1)
    return (levelled + torch.randn_like(levelled) * 2e-5) * valid


def augment_samples(samples: Tensor, lengths: Tensor, strength: float = 1.0) -> Tensor:
    """[B, S] clean rows -> [B, S] as a microphone somewhere would record them.

    Three in ten rows stay nearly clean, more of them below strength 1, all at strength 0.
    """
    clean = chance(samples.shape[0], 1 - 0.7 * strength, samples)
    heard = torch.where(clean, samples, filter_and_reverberate(samples))
    return set_level(add_noise(heard, lengths, clean), lengths)


def warp_features(features: Tensor, plan: Plan, probability: float = 0.6) -> Tensor:
    """Play the features at the plan's tempo and stretch the mel axis by up to 8 % (vocal tract)."""
    rows, time, bins = features.shape
    tract = torch.where(chance(rows, probability, features), uniform(rows, 0.92, 1.08, features), 1.0)
    frame = torch.arange(time, device=features.device) * plan.tempo.unsqueeze(1)
    frame = torch.minimum(frame, (plan.lengths // HOP - 1).clamp_min(0).unsqueeze(1))
    mel = (torch.arange(bins, device=features.device) * tract).clamp_max(bins - 1)
    grid = torch.stack(
        (
            (2 * mel / (bins - 1) - 1).unsqueeze(1).expand(-1, time, -1),
            (2 * frame / max(1, time - 1) - 1).unsqueeze(2).expand(-1, -1, bins),
        ),
        dim=-1,
    )
    moved = torch.nn.functional.grid_sample(
        features.unsqueeze(1), grid, align_corners=True, padding_mode="border"
    )
    return moved.squeeze(1) * valid_mask(plan.frames, time).unsqueeze(2)


def mask_features(features: Tensor, lengths: Tensor, strength: float = 1.0) -> Tensor:
    """SpecAugment: two bands of up to 20 mel bins, and up to 150 ms in every 1.5 s, are levelled."""
    rows, time, bins = features.shape
    valid = valid_mask(lengths, time).unsqueeze(2)
    mean = (features.sum((1, 2)) / (lengths.clamp_min(1) * bins)).view(rows, 1, 1)
    hidden = torch.zeros(rows, time, bins, dtype=torch.bool, device=features.device)
    axis = torch.arange(bins, device=features.device)
    for _ in range(2):
        width = uniform(rows, 0, 20 * strength, features)
        start = torch.rand_like(width) * (bins - width)
        hidden |= ((axis >= start) & (axis < start + width)).unsqueeze(1)
    axis = torch.arange(time, device=features.device)
    for window in range(0, time, 150):
        width = uniform(rows, 0, 15 * strength, features)
        start = window + torch.rand_like(width) * 150
        hidden |= ((axis >= start) & (axis < start + width)).unsqueeze(2)
    return torch.where(hidden & valid, mean, features)
