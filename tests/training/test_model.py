"""The training model, and that what is exported is what was trained."""

import json
import sys

import numpy as np
import pytest
import torch

import rnnt_fastdecode
from rnnt_fastdecode.audio.mel import LogMel
from training import export
from training.data import Row, make_plan
from training.evaluate import recognise
from training.model import FEATURES, LOOKAHEADS, Shape, TrainingModel, bundle_config

sentencepiece = pytest.importorskip("sentencepiece")
SIZES = {"d_model": 32, "num_layers": 2, "num_heads": 2, "d_ff": 48, "predictor": 16, "joint": 24}


def tiny_model(pieces):
    torch.manual_seed(0)
    model = TrainingModel(Shape(pieces, **SIZES)).eval()
    with torch.no_grad():
        for head in ("rnnt", "tdt"):
            # Random weights hardly ever choose the blank; this keeps the hypotheses short and varied.
            model.heads[head].joint.output.bias[pieces] += 0.5
    return model


def test_losses_are_finite_and_every_weight_gets_a_gradient():
    model = tiny_model(20).train()
    rows = [
        Row([(0, 20_000, 0)], 1.0, 1.0, 20_000, np.array([1, 2, 3])),
        Row([], 1.0, 1.0, 12_000, np.array([4])),
    ]
    rows[1].pieces.append((0, 12_000, 0))
    plan = make_plan(rows, 24_000)
    losses = model(torch.randn(2, 150, 80) - 9, plan, (70, 1))
    losses.sum().backward()
    assert losses.shape == (3,)
    assert torch.isfinite(losses).all()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


def test_exported_model_decodes_as_the_trained_one(tmp_path, monkeypatch):
    text = [f"{a}{b} {c}" for a in "abcd" for b in "efgh" for c in "ijkl"]
    with (tmp_path / "tokenizer.model").open("wb") as out:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(text), model_writer=out, vocab_size=20, minloglevel=2,
            hard_vocab_limit=False, bos_id=-1, eos_id=-1, unk_id=0,
        )  # fmt: skip
    pieces = sentencepiece.SentencePieceProcessor(
        model_file=str(tmp_path / "tokenizer.model")
    ).get_piece_size()
    model = tiny_model(pieces)
    torch.save({key: value.half() for key, value in model.state_dict().items()}, tmp_path / "average.pt")
    monkeypatch.setattr(export, "Shape", lambda count: Shape(count, **SIZES))
    paths = [str(tmp_path / name) for name in ("average.pt", "tokenizer.model", "bundle")]
    monkeypatch.setattr(sys, "argv", ["export", *paths])
    export.main()

    loaded = rnnt_fastdecode.load(tmp_path / "bundle", dtype="float32", device="cpu")
    model.load_state_dict({key: value.half().float() for key, value in model.state_dict().items()})
    generator = np.random.default_rng(1)
    clips = [generator.normal(0, 3000, size).astype(np.int16) for size in (16_000, 9000, 30_000)]
    for lookahead in LOOKAHEADS:
        wanted = recognise(model, LogMel(FEATURES), clips, lookahead)
        lengths = torch.tensor([clip.size for clip in clips])
        samples = torch.zeros(3, 30_000)
        for i, clip in enumerate(clips):
            samples[i, : clip.size] = torch.from_numpy(clip.astype(np.float32) / 32768)
        encoded, frames = loaded.encode(samples, lengths, (70, lookahead))
        for head, rows in wanted.items():
            assert [hypothesis.tokens for hypothesis in loaded.decode(encoded, frames, head)] == rows
        assert any(wanted["rnnt"])


def test_configuration_is_plain_json():
    config = bundle_config(Shape(256), "bundled")
    assert json.loads(json.dumps(config))["encoder"]["contexts"] == [[70, right] for right in LOOKAHEADS]
