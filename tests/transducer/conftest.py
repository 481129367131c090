"""Planted networks as modules, and what the reference decodes from them."""

import pytest
import torch

from benchmarks.modules import as_modules
from rnnt_fastdecode.reference import decode, planted

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture(params=DEVICES)
def device(request):
    return torch.device(request.param)


@pytest.fixture(scope="session")
def plant():
    """plant(**sizes): a planted network and its modules."""

    def make(**sizes):
        network = planted.plant(**sizes)
        return network, *as_modules(network.transducer)

    return make


@pytest.fixture(scope="session")
def expected():
    """expected(network, encoder, lengths, max_symbols): what the reference decodes, row by row."""

    def run(network, encoder, lengths, max_symbols=10):
        return [
            decode.greedy_decode(network.transducer, row, int(length), max_symbols)
            for row, length in zip(encoder, lengths, strict=True)
        ]

    return run


@pytest.fixture(scope="session")
def same():
    """same(result, decoded): the labels, frames and durations are identical, the log-probabilities close."""

    def check(result, decoded):
        for ours, theirs in zip(result.hypotheses(), decoded, strict=True):
            assert ours.tokens == theirs.tokens
            assert ours.frames == theirs.frames
            assert ours.durations == theirs.durations
            assert ours.log_probs == pytest.approx(theirs.log_probs, abs=2e-5)

    return check
