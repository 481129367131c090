"""The weights of a planted network as the modules that users have."""

from __future__ import annotations

import torch

from rnnt_fastdecode import GruPredictor, Joint, LstmPredictor, StatelessPredictor
from rnnt_fastdecode.reference.decode import Transducer


def as_modules(transducer: Transducer) -> tuple[LstmPredictor | GruPredictor | StatelessPredictor, Joint]:
    """The reference's weights in a predictor of its kind and a Joint."""
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
    elif transducer.predictor_kind == "gru":
        embedding, weight, bias, projection, projection_bias = weights
        layers, hidden = weight.shape[0], weight.shape[3]
        predictor = GruPredictor(transducer.vocab_size, hidden, layers, joint_width)
        state = {"embedding.weight": embedding}
        for layer in range(layers):
            for index, side in enumerate(("ih", "hh")):
                state[f"gru.weight_{side}_l{layer}"] = weight[layer, index]
                state[f"gru.bias_{side}_l{layer}"] = bias[layer, index]
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
