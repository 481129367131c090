"""The transducer and CTC losses against sums over every path in float64."""

import math

import pytest
import torch

from training.losses import ctc_loss, lattice_edges, lattice_log_likelihood, transducer_loss

BLANK = 2


def paths_sum(logits, targets, durations):
    """log sum over all paths of one row, by enumeration: logits [T, U+1, V+N] float64."""
    frames, width, _ = logits.shape
    count = len(durations)
    tokens = logits[..., : logits.shape[-1] - count].log_softmax(-1)
    spans = logits[..., logits.shape[-1] - count :].log_softmax(-1) if count else None

    def total(t, u):
        if t == frames:
            return 1.0 if u == width - 1 else 0.0
        result = 0.0
        if not count:
            result += math.exp(tokens[t, u, BLANK]) * total(t + 1, u)
            if u < width - 1:
                result += math.exp(tokens[t, u, targets[u]]) * total(t, u + 1)
            return result
        for index, d in enumerate(durations):
            if t + d > frames:
                continue
            weight = math.exp(spans[t, u, index])
            if d > 0:
                result += weight * math.exp(tokens[t, u, BLANK]) * total(t + d, u)
            if u < width - 1:
                result += weight * math.exp(tokens[t, u, targets[u]]) * total(t + d, u + 1)
        return result

    return math.log(total(0, 0))


def random_case(num_durations, seed):
    generator = torch.Generator().manual_seed(seed)
    frames, labels = torch.tensor([4, 3, 1]), torch.tensor([3, 0, 2])
    logits = 2 * torch.randn(3, 4, 4, 5 + num_durations, generator=generator, dtype=torch.float64)
    targets = torch.tensor([[0, 0, 4], [1, 1, 1], [3, 1, 0]])
    return logits, targets, frames, labels


@pytest.mark.parametrize("num_durations", [0, 2, 5])
@pytest.mark.parametrize("seed", [0, 1])
def test_transducer_loss_is_the_sum_over_all_paths(num_durations, seed):
    logits, targets, frames, labels = random_case(num_durations, seed)
    loss = transducer_loss(logits.float(), targets, frames, labels, BLANK, num_durations)
    for row in range(3):
        t, u = int(frames[row]), int(labels[row])
        wanted = -paths_sum(logits[row, :t, : u + 1], targets[row].tolist(), range(num_durations))
        assert loss[row].item() == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("num_durations", [0, 3])
def test_gradient_of_the_lattice_matches_finite_differences(num_durations):
    logits, targets, frames, labels = random_case(num_durations, seed=3)
    blank, label = lattice_edges(logits, targets, BLANK, num_durations)
    blank = blank.double().requires_grad_()
    label = label.double().clamp_min(-50).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda *edges: lattice_log_likelihood(*edges, frames, labels), (blank, label), eps=1e-6, atol=1e-6
    )


def test_padding_has_no_influence_and_no_gradient():
    logits, targets, frames, labels = random_case(3, seed=4)
    logits = logits.float().requires_grad_()
    transducer_loss(logits, targets, frames, labels, BLANK, 3).sum().backward()
    assert logits.grad[1, 3:].abs().max() == 0
    assert logits.grad[2, :, 3:].abs().max() == 0
    assert logits.grad[0].abs().max() > 0


def test_row_without_frames_counts_nothing():
    logits, targets, _, labels = random_case(0, seed=5)
    logits = logits.float().requires_grad_()
    loss = transducer_loss(logits, targets, torch.tensor([0, 3, 1]), labels, BLANK)
    loss.sum().backward()
    assert loss[0] == 0
    assert torch.isfinite(logits.grad).all()
    assert logits.grad[0].abs().max() == 0


def test_ctc_loss_is_the_sum_over_all_alignments():
    generator = torch.Generator().manual_seed(6)
    logits = torch.randn(1, 4, 3, generator=generator, dtype=torch.float64)
    log_probs = logits[0].log_softmax(-1)
    total = 0.0
    for path in torch.cartesian_prod(*[torch.arange(3)] * 4).tolist():
        merged = [token for i, token in enumerate(path) if i == 0 or token != path[i - 1]]
        if [token for token in merged if token != BLANK] == [0, 1]:
            total += math.exp(sum(log_probs[t, token].item() for t, token in enumerate(path)))
    loss = ctc_loss(logits.float(), torch.tensor([[0, 1]]), torch.tensor([4]), torch.tensor([2]), BLANK)
    assert loss.item() == pytest.approx(-math.log(total), rel=1e-5)


def test_ctc_row_too_short_for_its_labels_counts_nothing():
    loss = ctc_loss(torch.zeros(1, 1, 3), torch.tensor([[0, 1]]), torch.tensor([1]), torch.tensor([2]), BLANK)
    assert loss.item() == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("num_durations", [0, 5])
def test_triton_lattice_equals_the_plain_one(num_durations):
    from training import lattice_triton

    generator = torch.Generator().manual_seed(7)
    batch, time, width = 5, 37, 21
    logits = 2 * torch.randn(batch, time, width, 9 + num_durations, generator=generator)
    targets = torch.randint(3, 9, (batch, width - 1), generator=generator)
    frames, labels = torch.tensor([37, 20, 1, 11, 37]), torch.tensor([20, 3, 0, 15, 1])
    blank, label = (x.detach().requires_grad_() for x in lattice_edges(logits, targets, BLANK, num_durations))
    wanted = lattice_log_likelihood(blank.double(), label.double(), frames, labels)
    (wanted * torch.arange(1, batch + 1)).sum().backward()
    on_gpu = [x.detach().cuda().requires_grad_() for x in (blank, label)]
    got = lattice_triton.log_likelihood(*on_gpu, frames.cuda(), labels.cuda())
    (got * torch.arange(1, batch + 1, device="cuda")).sum().backward()
    torch.testing.assert_close(got.cpu().double(), wanted, rtol=1e-5, atol=1e-4)
    for mine, reference in zip(on_gpu, (blank, label), strict=True):
        torch.testing.assert_close(mine.grad.cpu(), reference.grad, rtol=1e-3, atol=1e-4)
