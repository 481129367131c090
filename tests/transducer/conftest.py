"""Planted networks as modules, and what the reference decodes from them."""

import pytest
import torch

from rnnt_fastdecode import Joint, LstmPredictor, StatelessPredictor
from rnnt_fastdecode.reference import decode, planted

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture(params=DEVICES)
def device(request):
    return torch.device(request.param)


def as_modules(transducer):
    """The reference's weights in an LstmPredictor or StatelessPredictor and a Joint."""
    weights = transducer.predictor_weights
    joint_width, encoder_width = transducer.encoder_weight.shape
    joint = Joint(
        encoder_width,
        joint_width,
        transducer.vocab_size,
        len(transducer.durations),
        transducer.activation,
    )
    if transducer.predictor_kind == "lstm":
        embedding, weight, bias, projection, projection_bias = weights
        layers, _, width = weight.shape
        hidden = width // 2
        predictor = LstmPredictor(transducer.vocab_size, hidden, layers, joint_width)
        state = {"embedding.weight": embedding}
        for layer in range(layers):
            state[f"lstm.weight_ih_l{layer}"] = weight[layer, :, :hidden]
            state[f"lstm.weight_hh_l{layer}"] = weight[layer, :, hidden:]
            state[f"lstm.bias_ih_l{layer}"] = bias[layer]
            state[f"lstm.bias_hh_l{layer}"] = torch.zeros_like(bias[layer])
    else:
        tables, projection, projection_bias = weights
        context, vocab_size, hidden = tables.shape
        activation = "relu" if transducer.predictor_kind == "stateless_relu" else None
        predictor = StatelessPredictor(vocab_size, hidden, context, joint_width, activation)
        state = {"tables": tables}
    predictor.load_state_dict({**state, "projection.weight": projection, "projection.bias": projection_bias})
    joint.load_state_dict(
        {
            "encoder_projection.weight": transducer.encoder_weight,
            "encoder_projection.bias": transducer.encoder_bias,
            "output.weight": transducer.weight,
            "output.bias": transducer.bias,
        }
    )
    return predictor, joint


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
