"""Predictor modules: what they compute in training is what the ops step through."""

import pytest
import torch

from rnnt_fastdecode import ArgumentError, GruPredictor, LstmPredictor, StatelessPredictor, ops
from rnnt_fastdecode.transducer.weights import pack_predictor

VOCAB, HIDDEN, JOINT, BLANK = 9, 12, 7, 8
PREDICTORS = {
    "lstm": lambda: LstmPredictor(VOCAB, HIDDEN, 3, JOINT),
    "gru": lambda: GruPredictor(VOCAB, HIDDEN, 3, JOINT),
    "stateless": lambda: StatelessPredictor(VOCAB, HIDDEN, 2, JOINT),
    "stateless_relu": lambda: StatelessPredictor(VOCAB, HIDDEN, 3, JOINT, "relu"),
}


@pytest.mark.parametrize("kind", PREDICTORS)
def test_teacher_forcing_equals_the_steps_of_the_op(kind, device):
    torch.manual_seed(0)
    predictor = PREDICTORS[kind]()
    labels = torch.cat((torch.full((4, 1), BLANK), torch.randint(0, VOCAB, (4, 6))), dim=1)
    with torch.no_grad():
        want = predictor(labels)
    packed = pack_predictor(predictor.to(device))
    state, output = packed.zero_state(4, BLANK), torch.empty(4, JOINT, device=device)
    assert packed.kind == kind
    for step in range(labels.shape[1]):
        ops.predictor_step_(packed.kind, packed.weights, labels[:, step].int().to(device), state, output)
        torch.testing.assert_close(output.cpu(), want[:, step], rtol=0, atol=2e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", PREDICTORS)
def test_the_biases_of_gates_are_kept_in_float32(kind, dtype):
    packed = pack_predictor(PREDICTORS[kind]().to(dtype))
    dtypes = [weight.dtype for weight in packed.weights]
    assert dtypes == ([dtype, dtype, torch.float32, dtype, dtype] if kind in ("lstm", "gru") else [dtype] * 3)


@pytest.mark.parametrize("change", [{"bidirectional": True}, {"bias": False}, {"input_size": HIDDEN + 1}])
@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_networks_that_the_ops_do_not_have_are_refused(kind, change):
    predictor = PREDICTORS[kind]()
    rnn = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU}[kind]
    setattr(predictor, kind, rnn(**{"input_size": HIDDEN, "hidden_size": HIDDEN, **change}))
    with pytest.raises(ArgumentError, match=f"predictor.{kind} must be unidirectional with biases"):
        pack_predictor(predictor)
