"""Work counted from a result is the work that the op's loop does; the floor is what its formula says."""

import pytest
import torch
from op_cases import Loop

from benchmarks import work
from benchmarks.modules import as_modules
from rnnt_fastdecode.reference.planted import plant
from rnnt_fastdecode.transducer import Hypothesis

MAX_SYMBOLS = 4


def hypothesis(frames, durations=None):
    return Hypothesis([1] * len(frames), list(frames), list(durations or [0] * len(frames)), [])


def steps_of(transducer, modules, encoder, hypotheses):
    if not transducer.durations:
        return None
    durations = transducer.durations
    return work.tdt_blank_steps(*modules, transducer.blank_id, durations, encoder, hypotheses)


@pytest.mark.parametrize("window", [1, 3, 6, 60])
@pytest.mark.parametrize("model", ["rnnt", "tdt"])
def test_rounds_are_those_of_the_op_loop(decoded, model, window):
    planted, modules, encoder, lengths, hypotheses = decoded(model, chains=0.1, max_symbols=MAX_SYMBOLS)
    steps = steps_of(planted.transducer, modules, encoder, hypotheses)
    counted = work.count(hypotheses, lengths.tolist(), window, MAX_SYMBOLS, steps)
    loop = Loop(planted.transducer, encoder, lengths, 600, max_symbols=MAX_SYMBOLS, window=window)
    rounds = 1
    while loop.rounds(1):
        rounds += 1
    assert counted.rounds == rounds


@pytest.mark.parametrize("model", ["rnnt", "tdt"])
def test_looks_are_the_frames_that_a_window_of_one_judges(decoded, model):
    planted, modules, encoder, lengths, hypotheses = decoded(model, chains=0.1, max_symbols=MAX_SYMBOLS)
    steps = steps_of(planted.transducer, modules, encoder, hypotheses)
    counted = work.count(hypotheses, lengths.tolist(), 6, MAX_SYMBOLS, steps)
    loop = Loop(planted.transducer, encoder, lengths, 600, max_symbols=MAX_SYMBOLS, window=1)
    looks, active = 0, int((lengths > 0).sum())
    while active:
        looks += active
        active = loop.rounds(1)
    assert counted.looks == looks
    assert counted.labels == sum(len(h.tokens) for h in hypotheses)
    assert counted.frames == int(lengths.sum())


def test_a_label_ends_its_round_and_a_last_look_finds_the_end():
    assert work.walk(hypothesis([0, 5, 5]), length=10, window=4, max_symbols=10) == (3 + 3, 10 + 3)
    assert work.walk(hypothesis([0, 5, 5]), length=10, window=10, max_symbols=10) == (4, 10 + 3)


def test_max_symbols_moves_on_without_a_blank():
    assert work.walk(hypothesis([0, 0, 1, 1]), length=2, window=5, max_symbols=2) == (4, 4)


def test_durations_skip_frames_and_reset_the_count_of_symbols():
    row = hypothesis([0, 0, 3, 3], [0, 3, 0, 4])
    assert work.walk(row, length=7, window=5, max_symbols=2, blank_steps=[1] * 7) == (4, 4)


def test_a_blank_that_would_jump_over_a_label_ends_there():
    assert work.walk(hypothesis([2], [1]), length=4, window=4, max_symbols=9, blank_steps=[4] * 4) == (2, 3)


def test_rows_without_labels_have_blank_steps_too():
    transducer = plant(durations=(0, 2, 3)).transducer
    encoder = torch.zeros(2, 5, 64)
    steps = steps_of(transducer, as_modules(transducer), encoder, [hypothesis([])] * 2)
    assert [len(row) for row in steps] == [5, 5]
    # A blank of duration 0 moves one frame on.
    assert set(steps[0]) <= {1, 2, 3}


def test_an_empty_batch_is_no_work():
    assert work.count([hypothesis([])], [0], 6, 10) == work.Work(0, 0, 0, 0, 0)


@pytest.mark.parametrize("dtype, flops", [(torch.float32, 60e12), (torch.bfloat16, 790e12)])
def test_the_floor_is_memory_and_arithmetic_and_barriers(dtype, flops):
    predictor, joint = as_modules(
        plant(vocab_size=33, joint_width=64, hidden=80, encoder_width=72).transducer
    )
    done = work.Work(rounds=99, least_rounds=50, looks=1000, labels=300, frames=700)
    step = 2 * 2 * 4 * 80 * 80 + 80 * 64
    read = dtype.itemsize * (step + 64 * 72 + 33 * 64 + 700 * 72)
    multiplied = 2 * (700 * 64 * 72 + 1000 * 33 * 64 + 300 * step)
    seconds = read / 4.3e12 + multiplied / flops + 50 * 4 * 0.95e-6
    found = work.floor_milliseconds(predictor.to(dtype), joint.to(dtype), done)
    assert found == pytest.approx(1e3 * seconds, rel=1e-9)


def test_a_stateless_predictor_has_two_products_in_a_round():
    predictor, joint = as_modules(plant(predictor_kind="stateless").transducer)
    slow, fast = (work.Work(0, rounds, 0, 0, 0) for rounds in (1001, 1))
    difference = work.floor_milliseconds(predictor, joint, slow) - work.floor_milliseconds(
        predictor, joint, fast
    )
    assert difference == pytest.approx(1000 * 2 * 0.95e-3)
