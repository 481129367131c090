"""Small planted networks for the benchmark's helpers."""

import pytest
import torch

from benchmarks import cases
from benchmarks.modules import as_modules
from rnnt_fastdecode import GreedyDecoder
from rnnt_fastdecode.reference.planted import plant

SMALL = {"vocab_size": 33, "joint_width": 64, "hidden": 64, "encoder_width": 72, "num_layers": 2}


@pytest.fixture
def small(monkeypatch):
    """The benchmark's networks are small ones."""
    monkeypatch.setattr(cases, "SIZES", SMALL)


@pytest.fixture
def decoded():
    """decoded(model, chains, max_symbols): network, modules, a ragged batch, and what we decode of it."""

    def run(model, chains=0.0, max_symbols=10):
        planted = plant(**SMALL, durations=cases.DURATIONS[model])
        encoder = planted.encoder(7, 60, chains=chains, seed=1)
        lengths = torch.tensor([60, 0, 1, 41, 60, 33, 59])
        transducer = planted.transducer
        modules = as_modules(transducer)
        decoder = GreedyDecoder(*modules, transducer.blank_id, transducer.durations, max_symbols)
        hypotheses = decoder(encoder, lengths).hypotheses()
        assert sum(len(hypothesis.tokens) for hypothesis in hypotheses) > 20
        return planted, modules, encoder, lengths, hypotheses

    return run
