"""NVIDIA NeMo's label-looping decoder with the weights of a planted network, in any of its three modes."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor

from rnnt_fastdecode.reference.decode import Transducer

from .report import Row

# What `force_cuda_graphs_mode` calls them; eager decoding has no graphs.
MODES = {"full": "full_graph", "partial": "no_while_loops", "eager": None}


def prepare(hook: str | None) -> None:
    """Call MODULE:FUNCTION, which makes `import nemo` work where NeMo is not installed."""
    if hook:
        module, _, function = hook.partition(":")
        getattr(importlib.import_module(module), function)()


class NemoDecoder:
    """GreedyBatched{RNNT,TDT}LabelLoopingComputer, blank last, on `device` in `dtype`.

    mode: "full": one graph with conditional nodes, "partial": graphs without them, "eager": no graphs, the
    only one without a GPU. Eager TDT decoding gives wrong durations in a batch (NeMo issue 16097).
    """

    def __init__(
        self,
        transducer: Transducer,
        device: torch.device,
        dtype: torch.dtype,
        max_symbols: int = 10,
        mode: str = "full",
    ) -> None:
        from nemo.collections.asr.modules.rnnt import RNNTDecoder, RNNTJoint
        from nemo.collections.asr.parts.submodules.transducer_decoding import (
            rnnt_label_looping,
            tdt_label_looping,
        )

        embedding, weight, bias, projection, projection_bias = transducer.predictor_weights
        layers, _, width = weight.shape
        hidden = width // 2
        joint_width, encoder_width = transducer.encoder_weight.shape
        labels = transducer.vocab_size - 1
        if transducer.blank_id != labels:
            raise ValueError("NeMo's blank is the last token")
        predictor = RNNTDecoder(
            prednet={"pred_hidden": hidden, "pred_rnn_layers": layers, "dropout": 0.0},
            vocab_size=labels,
            blank_as_pad=True,
        ).eval()
        joint = RNNTJoint(
            jointnet={
                "encoder_hidden": encoder_width,
                "pred_hidden": hidden,
                "joint_hidden": joint_width,
                "activation": transducer.activation,
            },
            num_classes=labels,
            num_extra_outputs=len(transducer.durations),
        ).eval()
        lstm = predictor.prediction["dec_rnn"].lstm
        pairs = [
            (predictor.prediction["embed"].weight, embedding),
            (joint.pred.weight, projection),
            (joint.pred.bias, projection_bias),
            (joint.enc.weight, transducer.encoder_weight),
            (joint.enc.bias, transducer.encoder_bias),
            (joint.joint_net[-1].weight, transducer.weight),
            (joint.joint_net[-1].bias, transducer.bias),
        ]
        for layer in range(layers):
            pairs += [
                (getattr(lstm, f"weight_ih_l{layer}"), weight[layer, :, :hidden]),
                (getattr(lstm, f"weight_hh_l{layer}"), weight[layer, :, hidden:]),
                (getattr(lstm, f"bias_ih_l{layer}"), bias[layer]),
                (getattr(lstm, f"bias_hh_l{layer}"), torch.zeros_like(bias[layer])),
            ]
        with torch.no_grad():
            for parameter, value in pairs:
                parameter.copy_(value)
        options: dict[str, Any] = {
            "decoder": predictor.to(device, dtype),
            "joint": joint.to(device, dtype),
            "blank_index": labels,
            "max_symbols_per_step": max_symbols,
            "allow_cuda_graphs": MODES[mode] is not None,
        }
        if transducer.durations:
            self._computer = tdt_label_looping.GreedyBatchedTDTLabelLoopingComputer(
                durations=list(transducer.durations), include_duration=True, **options
            )
        else:
            self._computer = rnnt_label_looping.GreedyBatchedRNNTLabelLoopingComputer(**options)
        if MODES[mode] is not None:
            # Forced, so that a silent fall-back to a slower mode cannot pass as the fast one.
            self._computer.force_cuda_graphs_mode(MODES[mode])

    @torch.inference_mode()
    def __call__(self, encoder_output: Tensor, lengths: Tensor) -> tuple[Any, int]:
        """NeMo's hypotheses, and of how many rows: graphs give as many as the largest batch so far had."""
        return self._computer(x=encoder_output, out_len=lengths)[0], len(lengths)

    @staticmethod
    def rows(output: tuple[Any, int]) -> list[Row]:
        """Tokens, frames and, for TDT, durations of each row."""
        hypotheses, batch = output
        tables = hypotheses.transcript, hypotheses.timestamps, hypotheses.token_durations
        tokens, frames, durations = (None if table is None else table.cpu() for table in tables)
        return [
            (
                tokens[row, :count].tolist(),
                frames[row, :count].tolist(),
                None if durations is None else durations[row, :count].tolist(),
            )
            for row, count in enumerate(hypotheses.current_lengths[:batch].tolist())
        ]
