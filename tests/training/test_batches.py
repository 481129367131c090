"""Batches: rows hold the clips that their labels name, and augmentation keeps them in bounds."""

import numpy as np
import pytest
import torch

from training.augment import assemble, augment_samples, mask_features, warp_features
from training.corpora import SAMPLE_RATE, Store, StoreWriter
from training.data import BUCKET_SECONDS, HOP, Row, Sampler, make_group, make_plan

LABELS = np.array([1, 2, 3])


def make_store(folder, clips=12):
    rng = np.random.default_rng(0)
    with StoreWriter(folder / "clips") as store:
        for i in range(clips):
            store.add(
                f"s{i % 3}",
                f"text {i}",
                rng.integers(-9000, 9000, SAMPLE_RATE // 2 + 100 * i).astype(np.int16),
            )
    return Store.read(folder / "clips")


def row(pieces, length, rate=1.0, tempo=1.0):
    return Row(pieces, rate, tempo, length, LABELS)


def test_store_gives_back_what_was_written(tmp_path):
    store = make_store(tmp_path)
    assert store.sizes.tolist() == [SAMPLE_RATE // 2 + 100 * i for i in range(12)]
    assert store.texts[4] == "text 4"
    assert store.clips_of(("s1",), inside=True).tolist() == [1, 4, 7, 10]
    assert store.starts[-1] + store.sizes[-1] == store.pcm.size


def test_row_at_rate_one_is_the_recording(tmp_path):
    pcm = torch.from_numpy(np.array(make_store(tmp_path).pcm))
    plan = make_plan([row([(5, 400, 0), (1000, 300, 450)], 800), row([(0, 200, 100)], 700)], 1600)
    rows = assemble(pcm, plan) * 32768
    assert rows.shape == (2, 1600)
    torch.testing.assert_close(rows[0, :400], pcm[5:405].float())
    torch.testing.assert_close(rows[0, 450:750], pcm[1000:1300].float())
    torch.testing.assert_close(rows[1, 100:300], pcm[0:200].float())
    assert rows[0, 400:450].abs().max() == rows[0, 750:].abs().max() == rows[1, 300:].abs().max() == 0


def test_rate_moves_pitch_and_length_together():
    time = torch.arange(8000) / SAMPLE_RATE
    pcm = (9000 * torch.sin(2 * torch.pi * 500 * time)).to(torch.int16)
    rows = assemble(pcm, make_plan([row([(0, 8000, 0)], 6400, rate=1.25)], 8000))
    wanted = 9000 / 32768 * torch.sin(2 * torch.pi * 625 * time[:6300])
    assert (rows[0, :6300] - wanted).abs().max() < 2e-3
    assert rows[0, 6400:].abs().max() == 0


def test_sampler_fills_batches_of_one_bucket(tmp_path):
    store = make_store(tmp_path)

    def tokenise(texts):
        return [[int(text.split()[1])] * 2 for text in texts]

    group = make_group("clips", store, np.arange(12), 0, tokenise, (0.5, 0.5))
    sampler = Sampler([group], lambda progress: {"clips": 1.0}, batch_seconds=12, seed=3)
    plans = iter(sampler)
    for _ in range(20):
        plan = next(plans)
        bucket = [int(seconds * SAMPLE_RATE) for seconds in BUCKET_SECONDS].index(plan.width)
        assert len(plan.lengths) == int(12 / BUCKET_SECONDS[bucket])
        assert int(plan.lengths.max()) <= plan.width
        assert int(plan.frames.max()) <= plan.width // HOP
        assert plan.target_lengths.tolist() == (2 * torch.bincount(plan.row)).tolist()
        for piece in range(len(plan.row)):
            clip = int(np.searchsorted(store.starts, int(plan.start[piece])))
            assert clip in plan.targets[plan.row[piece]].tolist()


@pytest.mark.parametrize("silent", [False, True])
def test_augmented_rows_are_finite_bounded_and_silent_beyond_their_end(silent):
    torch.manual_seed(0)
    samples = torch.zeros(6, 24_000) if silent else 0.3 * torch.randn(6, 24_000)
    lengths = torch.tensor([24_000, 20_000, 16_000, 9_000, 400, 24_000])
    heard = augment_samples(samples, lengths)
    assert torch.isfinite(heard).all()
    assert heard.abs().max() <= 1.001
    assert heard[4, 400:].abs().max() == 0


def test_warped_and_masked_features_keep_their_shape_and_padding():
    torch.manual_seed(1)
    plan = make_plan([row([(0, 16_000, 0)], 16_000, tempo=1.1), row([(0, 8000, 0)], 8000, tempo=0.9)], 24_000)
    features = torch.randn(2, 150, 80)
    moved = mask_features(warp_features(features, plan), plan.frames)
    assert moved.shape == features.shape
    assert plan.frames.tolist() == [90, 55]
    assert moved[0, 90:].abs().max() == moved[1, 55:].abs().max() == 0


def test_rows_that_would_not_fit_are_played_faster():
    plan = make_plan([row([(0, 24_000, 0)], 24_000, tempo=0.87)], 24_000)
    assert plan.frames.tolist() == [150]
    assert plan.tempo.item() == pytest.approx(1.0)
