"""Log-mel features, equal to those of NeMo 3.0.0 and of the feature extractors of transformers 5.17."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import ArgumentError

# Added to the standard deviation before the division, as in NeMo and transformers.
STD_GUARD = 1e-5

# Slaney's mel scale: linear with 200/3 Hz per mel up to 1 kHz, then 27 mels per factor of 6.4.
_HZ_PER_MEL = 200.0 / 3.0
_LOG_START_HZ = 1000.0
_LOG_START_MEL = _LOG_START_HZ / _HZ_PER_MEL
_LOG_STEP = math.log(6.4) / 27.0


@dataclass(frozen=True)
class MelConfig:
    """How audio becomes log-mel features.

    Attributes
    ----------
    sample_rate: samples per second of the audio.
    n_fft: points of the Fourier transform.
    window: samples under the symmetric Hann window.
    hop: samples from frame to frame.
    num_mels: mel bins F.
    preemphasis: x[n] - preemphasis * x[n - 1] before the transform; 0 = none.
    log_guard: added to the mel energy before the logarithm.
    normalize: "per_feature" (mean 0 and standard deviation 1 of each bin over an utterance) or None.
    low_hz, high_hz: band of the mel filters; high_hz None = half the sample rate.
    """

    sample_rate: int = 16000
    n_fft: int = 512
    window: int = 400
    hop: int = 160
    num_mels: int = 80
    preemphasis: float = 0.97
    log_guard: float = 2.0**-24
    normalize: str | None = "per_feature"
    low_hz: float = 0.0
    high_hz: float | None = None

    def __post_init__(self) -> None:
        for name in ("sample_rate", "n_fft", "window", "hop", "num_mels"):
            if getattr(self, name) < 1:
                raise ArgumentError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.window > self.n_fft:
            raise ArgumentError(f"window must be at most n_fft {self.n_fft}, got {self.window}")
        if self.normalize not in (None, "per_feature"):
            raise ArgumentError(f"normalize must be None or 'per_feature', got {self.normalize!r}")


def slaney_filterbank(config: MelConfig) -> Tensor:
    """Triangular filters of equal area on Slaney's mel scale: [F, n_fft // 2 + 1] float32."""
    high_hz = config.high_hz if config.high_hz is not None else config.sample_rate / 2
    edges = torch.linspace(
        _hz_to_mel(config.low_hz), _hz_to_mel(high_hz), config.num_mels + 2, dtype=torch.float64
    )
    edges = torch.where(
        edges < _LOG_START_MEL,
        edges * _HZ_PER_MEL,
        _LOG_START_HZ * torch.exp(_LOG_STEP * (edges - _LOG_START_MEL)),
    )
    bins = torch.linspace(0.0, config.sample_rate / 2, config.n_fft // 2 + 1, dtype=torch.float64)
    left, centre, right = (edges[i : i + config.num_mels].unsqueeze(1) for i in range(3))
    triangle = torch.minimum((bins - left) / (centre - left), (right - bins) / (right - centre)).clamp(
        min=0.0
    )
    return (triangle * (2.0 / (right - left))).float()


class LogMel(nn.Module):
    """Batched log-mel features in float32.

    The filterbank and the window stay float32 whatever type the module is moved to: half precision belongs to
    the encoder, and rounding these two would change every feature.
    """

    filterbank: Tensor
    window: Tensor

    def __init__(
        self, config: MelConfig, filterbank: Tensor | None = None, window: Tensor | None = None
    ) -> None:
        """A given `filterbank` [F, n_fft // 2 + 1] or `window` [window] replaces the computed one."""
        super().__init__()
        self.config = config
        if filterbank is None:
            filterbank = slaney_filterbank(config)
        if window is None:
            window = torch.hann_window(config.window, periodic=False)
        for name, value, shape in (
            ("filterbank", filterbank, (config.num_mels, config.n_fft // 2 + 1)),
            ("window", window, (config.window,)),
        ):
            if tuple(value.shape) != shape:
                raise ArgumentError(f"{name} must be {list(shape)}, got {list(value.shape)}")
            self.register_buffer(name, value.float(), persistent=False)

    def _apply(self, fn, recurse=True):  # type: ignore[no-untyped-def]
        filterbank, window = self.filterbank, self.window
        super()._apply(fn, recurse)
        self.filterbank = filterbank.to(self.filterbank.device)
        self.window = window.to(self.window.device)
        return self

    def forward(self, samples: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Features of a batch of utterances.

        Parameters
        ----------
        samples: [B, S] floating point in -1..1; samples from `lengths` on are ignored.
        lengths: [B] int64, valid samples of each row, 0 <= lengths <= S.

        Returns
        -------
        features: [B, T, F] float32, T = S // hop; frames beyond a row's length are 0.
        lengths: [B] int64, valid frames, lengths // hop.

        Raises
        ------
        ArgumentError: wrong shape or dtype.
        """
        if samples.ndim != 2 or not samples.is_floating_point():
            raise ArgumentError(
                f"samples must be [B, S] floating point, got {list(samples.shape)} {samples.dtype}"
            )
        if lengths.shape != samples.shape[:1] or lengths.dtype != torch.int64:
            raise ArgumentError(
                f"lengths must be [{samples.shape[0]}] int64, got {list(lengths.shape)} {lengths.dtype}"
            )
        config = self.config
        frames = samples.shape[1] // config.hop
        out_lengths = lengths // config.hop
        if samples.shape[0] == 0 or frames == 0:
            return samples.new_zeros(
                samples.shape[0], frames, config.num_mels, dtype=torch.float32
            ), out_lengths
        with torch.autocast(samples.device.type, enabled=False):
            energy = self.filterbank @ self._power(samples.float(), lengths)[..., :frames]
            features = torch.log(energy + config.log_guard).transpose(1, 2)
        valid = torch.arange(frames, device=samples.device) < out_lengths.unsqueeze(1)
        if config.normalize == "per_feature":
            features = _normalize_per_feature(features, valid)
        return features.masked_fill(~valid.unsqueeze(2), 0.0), out_lengths

    def _power(self, samples: Tensor, lengths: Tensor) -> Tensor:
        """[B, S] -> [B, n_fft // 2 + 1, S // hop + 1] power, frames centred on multiples of hop."""
        config = self.config
        valid = torch.arange(samples.shape[1], device=samples.device) < lengths.unsqueeze(1)
        if config.preemphasis:
            emphasised = samples[:, 1:] - config.preemphasis * samples[:, :-1]
            samples = torch.cat((samples[:, :1], emphasised), dim=1)
        spectrum = torch.stft(
            samples.masked_fill(~valid, 0.0),
            n_fft=config.n_fft,
            hop_length=config.hop,
            win_length=config.window,
            window=self.window,
            center=True,
            pad_mode="constant",
            return_complex=True,
        )
        return spectrum.real.square() + spectrum.imag.square()


def _normalize_per_feature(features: Tensor, valid: Tensor) -> Tensor:
    """Mean 0 and unbiased standard deviation 1 over a row's valid frames; one frame alone becomes 0."""
    mask = valid.unsqueeze(2)
    count = valid.sum(dim=1).clamp(min=1)[:, None, None]
    centred = features - features.masked_fill(~mask, 0.0).sum(dim=1, keepdim=True) / count
    variance = centred.masked_fill(~mask, 0.0).square().sum(dim=1, keepdim=True) / (count - 1).clamp(min=1)
    return centred / (variance.sqrt() + STD_GUARD)


def _hz_to_mel(hz: float) -> float:
    if hz < _LOG_START_HZ:
        return hz / _HZ_PER_MEL
    return _LOG_START_MEL + math.log(hz / _LOG_START_HZ) / _LOG_STEP
