"""The bundled model's shape, as modules to train and as the configuration shipped with the weights."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rnnt_fastdecode.audio.mel import MelConfig
from rnnt_fastdecode.encoder import FastConformer, FastConformerConfig
from rnnt_fastdecode.encoder.subsampling import subsampled_length
from rnnt_fastdecode.transducer.modules import CtcHead, Joint, LstmPredictor, TransducerHead

from .augment import chance
from .data import Plan
from .losses import ctc_loss, transducer_loss

LEFT_CONTEXT = 70
LOOKAHEADS = (13, 6, 1, 0)
DURATIONS = (0, 1, 2, 3, 4)
FEATURES = MelConfig(num_mels=80, normalize=None)
LOSS_WEIGHTS = {"rnnt": 1.0, "tdt": 1.0, "ctc": 1.0}
# What log-mel features of speech without normalisation look like, roughly.
FEATURE_MEAN, FEATURE_STD = -9.0, 4.0


@dataclass(frozen=True)
class Shape:
    """Sizes of the model; `pieces` is the size of the vocabulary without the blank."""

    pieces: int
    d_model: int = 256
    num_layers: int = 6
    num_heads: int = 4
    d_ff: int = 1024
    predictor: int = 256
    joint: int = 256


def encoder_config(shape: Shape, dropout: float = 0.0) -> FastConformerConfig:
    return FastConformerConfig(
        feat_in=FEATURES.num_mels,
        d_model=shape.d_model,
        num_layers=shape.num_layers,
        num_heads=shape.num_heads,
        d_ff=shape.d_ff,
        causal_subsampling=True,
        conv_norm="layer_norm",
        causal_conv=True,
        context_style="chunked_limited",
        contexts=tuple((LEFT_CONTEXT, lookahead) for lookahead in LOOKAHEADS),
        dropout=dropout,
    )


def transducer_head(shape: Shape, durations: tuple[int, ...]) -> TransducerHead:
    vocab = shape.pieces + 1
    predictor = LstmPredictor(vocab, shape.predictor, 1, shape.joint)
    joint = Joint(shape.d_model, shape.joint, vocab, len(durations))
    return TransducerHead(predictor, joint, blank_id=shape.pieces, durations=durations)


class TrainingModel(nn.Module):
    """Encoder and heads under the names that the shipped weights have."""

    def __init__(self, shape: Shape, dropout: float = 0.0) -> None:
        super().__init__()
        self.shape = shape
        self.encoder = FastConformer(encoder_config(shape, dropout))
        self.heads = nn.ModuleDict(
            {
                "rnnt": transducer_head(shape, ()),
                "tdt": transducer_head(shape, DURATIONS),
                "ctc": CtcHead(shape.d_model, shape.pieces + 1, shape.pieces),
            }
        )
        self.dropout = nn.Dropout(dropout)
        # Features are not normalised: the first convolution starts as if they were.
        first = self.encoder.subsampling.conv_in
        with torch.no_grad():
            first.weight /= FEATURE_STD
            first.bias -= FEATURE_MEAN * first.weight.sum((1, 2, 3))

    def forward(self, features: Tensor, plan: Plan, context: tuple[int, int]) -> Tensor:
        """Losses a label of "rnnt", "tdt" and "ctc", [3]: features [B, T, F] of the batch `plan`."""
        encoded, frames = self.encoder(features, plan.frames, context)
        encoded = self.dropout(encoded)
        targets, labels = plan.targets, plan.target_lengths
        total = plan.host_target_lengths.sum().clamp_min(1)
        losses = []
        for name in ("rnnt", "tdt"):
            head = self.heads[name]
            prediction = head.predictor(self._history(targets))
            logits = head.joint(head.joint.encoder_projection(encoded).unsqueeze(2), prediction.unsqueeze(1))
            loss = transducer_loss(logits, targets, frames, labels, head.blank_id, len(head.durations))
            losses.append(loss.sum() / total)
        head = self.heads["ctc"]
        host_frames = subsampled_length(plan.host_frames, self.encoder.config.causal_subsampling)
        loss = ctc_loss(head(encoded), targets, host_frames, plan.host_target_lengths, head.blank_id)
        return torch.stack([*losses, loss.sum() / total])

    def _history(self, targets: Tensor) -> Tensor:
        """What the predictor sees: blank, then the labels, a few of them false so that audio counts more."""
        false = torch.randint_like(targets, self.shape.pieces)
        seen = torch.where(chance(targets.numel(), 0.08, targets).view_as(targets), false, targets)
        return torch.cat(
            (torch.full_like(seen[:, :1], self.shape.pieces), seen if self.training else targets), dim=1
        )


def bundle_config(shape: Shape, name: str) -> dict[str, Any]:
    """config.json of the native checkpoint format."""
    vocab = shape.pieces + 1
    transducer = {
        "type": "transducer",
        "predictor": {"type": "lstm", "hidden": shape.predictor, "num_layers": 1},
        "joint_width": shape.joint,
        "activation": "relu",
        "vocab_size": vocab,
        "blank_id": shape.pieces,
        "max_symbols": 10,
    }
    return {
        "format": "rnnt_fastdecode-1",
        "name": name,
        "features": asdict(FEATURES),
        "encoder": asdict(encoder_config(shape)),
        "heads": {
            "rnnt": {**transducer, "durations": []},
            "tdt": {**transducer, "durations": list(DURATIONS)},
            "ctc": {"type": "ctc", "vocab_size": vocab, "blank_id": shape.pieces},
        },
        "default_head": "rnnt",
        "tokenizer": {"type": "sentencepiece", "file": "tokenizer.model"},
    }
