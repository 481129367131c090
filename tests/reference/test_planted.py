"""Planted networks do what they are for: labels at a known rate, bursts, and decisions with a margin."""

from collections import Counter

import pytest
import torch

from rnnt_fastdecode.reference.decode import greedy_decode
from rnnt_fastdecode.reference.planted import plant


@pytest.mark.parametrize(
    ("kind", "layers"), [("lstm", 1), ("gru", 1), ("gru", 2), ("stateless", 1), ("stateless_relu", 1)]
)
def test_a_frame_that_carries_a_label_emits_it_once(kind, layers):
    planted = plant(vocab_size=65, joint_width=256, predictor_kind=kind, num_layers=layers)
    encoder = planted.encoder(2, 40, rate=0.25, chains=0.0, seed=1)
    for row in range(2):
        result = greedy_decode(planted.transducer, encoder[row])
        assert max(Counter(result.frames).values()) == 1
        assert 4 <= len(result.tokens) <= 16
        assert min(result.margins) > 0.1


def test_chains_give_bursts_up_to_max_symbols():
    planted = plant(vocab_size=17, joint_width=64)
    encoder = planted.encoder(4, 40, chains=0.1, seed=2)
    sizes = Counter()
    for row in range(4):
        sizes.update(Counter(greedy_decode(planted.transducer, encoder[row], max_symbols=6).frames).values())
    assert sizes[1] > 10 and sizes[6] > 0 and any(1 < size < 6 for size in sizes)


@pytest.mark.parametrize("durations", [(), (0, 1, 2, 3, 4)])
@pytest.mark.parametrize("blank_id", [None, 0, 5])
def test_a_ring_of_successors_emits_max_symbols_on_every_chain_frame(durations, blank_id):
    planted = plant(vocab_size=65, joint_width=256, durations=durations, blank_id=blank_id, ring=True)
    encoder = planted.encoder(1, 12, rate=0.0, chains=1.0, seed=4)
    result = greedy_decode(planted.transducer, encoder[0], max_symbols=70)
    assert Counter(result.frames) == dict.fromkeys(range(12), 70)
    assert len(set(result.tokens)) == 64
    assert min(result.margins) > 1.0


def test_a_ring_changes_nothing_outside_of_bursts():
    plain, ringed = (plant(seed=7, ring=ring) for ring in (False, True))
    first, second = (network.encoder(1, 60, chains=0.0, seed=1) for network in (plain, ringed))
    assert torch.equal(first, second)
    results = [greedy_decode(network.transducer, first[0]) for network in (plain, ringed)]
    assert results[0].tokens == results[1].tokens and len(results[0].tokens) > 5
    assert results[0].frames == results[1].frames


def test_tdt_uses_many_durations():
    planted = plant(joint_width=64, durations=(0, 1, 2, 3, 4))
    encoder = planted.encoder(6, 60, seed=3)
    used = Counter()
    for row in range(6):
        used.update(greedy_decode(planted.transducer, encoder[row]).durations)
    assert len(used) >= 3


def test_the_same_seed_gives_the_same_network():
    first, second = plant(seed=7), plant(seed=7)
    assert torch.equal(first.transducer.weight, second.transducer.weight)
    assert torch.equal(first.encoder(2, 5, seed=1), second.encoder(2, 5, seed=1))


def test_widths_must_fit():
    with pytest.raises(ValueError, match="at least joint_width"):
        plant(joint_width=64, hidden=32)
