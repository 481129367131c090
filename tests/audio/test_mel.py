"""Log-mel: filters, frames, normalisation, padding. Equality with NeMo: models/test_fixture_parity.py."""

import math

import numpy as np
import pytest
import torch

from rnnt_fastdecode import ArgumentError
from rnnt_fastdecode.audio.mel import LogMel, MelConfig, slaney_filterbank


def noise(*lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    samples = torch.randn(len(lengths), max(lengths), generator=generator) * 0.1
    return samples, torch.tensor(lengths)


def log_mel_by_hand(samples, config):
    """The definition, frame by frame in float64, without normalisation: [S] -> [S // hop, F]."""
    x = np.asarray(samples, dtype=np.float64)
    x = np.concatenate((x[:1], x[1:] - config.preemphasis * x[:-1]))
    x = np.pad(x, config.n_fft // 2)
    window = np.zeros(config.n_fft)
    offset = (config.n_fft - config.window) // 2
    window[offset : offset + config.window] = np.hanning(config.window)
    filters = slaney_filterbank(config).double().numpy()
    frames = [
        np.abs(np.fft.rfft(window * x[t * config.hop : t * config.hop + config.n_fft])) ** 2
        for t in range(len(samples) // config.hop)
    ]
    return np.log(np.stack(frames) @ filters.T + config.log_guard)


@pytest.mark.parametrize("num_mels", [80, 128])
def test_features_follow_the_definition(num_mels):
    config = MelConfig(num_mels=num_mels, normalize=None)
    samples, lengths = noise(8000)
    features, frames = LogMel(config)(samples, lengths)
    assert frames.tolist() == [50]
    assert features.dtype == torch.float32
    np.testing.assert_allclose(features[0].numpy(), log_mel_by_hand(samples[0], config), atol=1e-4)


def test_filters_have_equal_area_and_cover_the_band():
    config = MelConfig(num_mels=40)
    filters = slaney_filterbank(config)
    assert filters.shape == (40, 257)
    hz_per_bin = config.sample_rate / config.n_fft
    areas = filters.sum(dim=1) * hz_per_bin
    # Narrow filters are sampled coarsely; wide ones come out as the unit area they are built for.
    torch.testing.assert_close(areas[20:], torch.ones(20), rtol=0.01, atol=0.0)
    peaks = filters.argmax(dim=1).float() * hz_per_bin
    assert (peaks.diff() >= 0).all() and peaks[-1] < 8000


def test_a_tone_lands_in_its_filter():
    config = MelConfig(normalize=None)
    time = torch.arange(16000) / 16000
    features, _ = LogMel(config)(torch.sin(2 * math.pi * 2000 * time)[None], torch.tensor([16000]))
    loudest = features[0, 50].argmax().item()
    weights = slaney_filterbank(config)[:, round(2000 / (16000 / 512))]
    assert weights[loudest] == weights.max()


def test_band_limits_are_respected():
    filters = slaney_filterbank(MelConfig(num_mels=10, low_hz=500.0, high_hz=4000.0))
    bins = torch.arange(257) * 16000 / 512
    assert filters[:, (bins < 500) | (bins > 4000)].abs().max() == 0
    assert (filters.sum(dim=1) > 0).all()


def test_per_feature_normalisation_covers_valid_frames_only():
    samples, lengths = noise(16000, 9000)
    features, frames = LogMel(MelConfig())(samples, lengths)
    for row, length in enumerate(frames.tolist()):
        valid = features[row, :length]
        torch.testing.assert_close(valid.mean(dim=0), torch.zeros(80), rtol=0.0, atol=1e-5)
        torch.testing.assert_close(valid.std(dim=0), torch.ones(80), rtol=0.0, atol=1e-3)
        assert features[row, length:].abs().sum() == 0


@pytest.mark.parametrize("normalize", [None, "per_feature"])
@pytest.mark.parametrize("garbage", [5.0, float("nan")])
def test_samples_beyond_the_length_do_not_matter(normalize, garbage):
    mel = LogMel(MelConfig(normalize=normalize))
    samples, lengths = noise(16000, 9111, 170, 0)
    clean = [
        mel(samples[row : row + 1, :length], lengths[row : row + 1]) for row, length in enumerate(lengths)
    ]
    for row, length in enumerate(lengths.tolist()):
        samples[row, length:] = garbage
    features, frames = mel(samples, lengths)
    for row, (alone, count) in enumerate(clean):
        assert frames[row] == count[0]
        torch.testing.assert_close(features[row, : count[0]], alone[0], rtol=0.0, atol=1e-5)
        assert features[row, count[0] :].abs().sum() == 0


def test_short_and_empty_audio():
    mel = LogMel(MelConfig())
    for length, expected in ((0, 0), (1, 0), (159, 0), (160, 1), (321, 2)):
        features, frames = mel(torch.full((1, length), 0.1), torch.tensor([length]))
        assert features.shape == (1, expected, 80) and frames.tolist() == [expected]
        assert torch.isfinite(features).all()
    features, frames = mel(torch.zeros(0, 1000), torch.zeros(0, dtype=torch.int64))
    assert features.shape == (0, 6, 80) and frames.shape == (0,)


def test_one_frame_alone_is_normalised_to_zero():
    features, _ = LogMel(MelConfig())(*noise(200))
    assert features.abs().sum() == 0


def test_half_precision_modules_still_compute_in_float32():
    samples, lengths = noise(4000)
    expected, _ = LogMel(MelConfig())(samples, lengths)
    mel = LogMel(MelConfig()).half().bfloat16()
    assert mel.filterbank.dtype == mel.window.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        features, _ = mel(samples, lengths)
    assert torch.equal(features, expected)


def test_a_given_filterbank_and_window_are_used():
    config = MelConfig(num_mels=10, normalize=None)
    samples, lengths = noise(4000)
    plain, _ = LogMel(config)(samples, lengths)
    doubled, _ = LogMel(config, slaney_filterbank(config) * 2.0)(samples, lengths)
    torch.testing.assert_close(doubled - plain, torch.full_like(plain, math.log(2.0)), rtol=0.0, atol=1e-3)
    flat, _ = LogMel(config, window=torch.ones(400))(samples, lengths)
    assert (flat - plain).abs().max() > 0.1


def test_nothing_is_saved_with_the_module():
    assert not LogMel(MelConfig()).state_dict()


@pytest.mark.parametrize(
    ("samples", "lengths", "message"),
    [
        (torch.zeros(160), torch.tensor([160]), r"samples must be \[B, S\] floating point"),
        (torch.zeros(1, 160, dtype=torch.int16), torch.tensor([160]), "samples must be .* torch.int16"),
        (torch.zeros(1, 160), torch.tensor([160], dtype=torch.int32), r"lengths must be \[1\] int64"),
        (torch.zeros(2, 160), torch.tensor([160]), r"lengths must be \[2\] int64"),
    ],
)
def test_wrong_arguments_are_named(samples, lengths, message):
    with pytest.raises(ArgumentError, match=message):
        LogMel(MelConfig())(samples, lengths)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hop": 0}, "hop must be at least 1"),
        ({"window": 600}, "window must be at most n_fft 512"),
        ({"normalize": "all"}, "normalize must be None or 'per_feature'"),
    ],
)
def test_impossible_configurations_are_refused(settings, message):
    with pytest.raises(ArgumentError, match=message):
        MelConfig(**settings)


def test_a_filterbank_of_the_wrong_shape_is_refused():
    with pytest.raises(ArgumentError, match=r"filterbank must be \[80, 257\], got \[81, 257\]"):
        LogMel(MelConfig(), torch.zeros(81, 257))
