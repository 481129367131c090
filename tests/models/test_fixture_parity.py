"""Checkpoints saved by NeMo 3.0.0 and transformers 5.17 give here what they give there (make_fixtures.py)."""

import json
from pathlib import Path

import pytest
import torch
from models.waveform import synthetic_utterances
from safetensors import safe_open

from rnnt_fastdecode import load

FIXTURES = Path(__file__).parent / "fixtures"
NAMES = sorted(folder.name for folder in FIXTURES.iterdir())
TOLERANCE = 1e-4


class Golden:
    """A fixture: its model, the utterances as a batch, and what the real package computed from them."""

    def __init__(self, name):
        folder = FIXTURES / name
        checkpoint = folder / "model.nemo"
        self.model = load(checkpoint if checkpoint.exists() else folder, device="cpu")
        with safe_open(folder / "expected.safetensors", "pt") as file:
            self.tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            self.texts = json.loads(file.metadata()["texts"])
        audio = synthetic_utterances()
        self.lengths = torch.tensor([len(samples) for samples in audio])
        self.samples = torch.full((len(audio), int(self.lengths.max())), 0.3)
        for row, samples in zip(self.samples, audio, strict=True):
            row[: len(samples)] = torch.from_numpy(samples)

    def contexts(self):
        """The (left, right) contexts computed there, each with its name in the file."""
        names = sorted({key.split(".")[1] for key in self.tensors if key.startswith("encoded.")})
        return [(name, tuple(int(part) for part in name.split(","))) for name in names]

    def expected(self, kind, *parts):
        return self.tensors.get(".".join((kind, *map(str, parts))))


@pytest.fixture(scope="module", params=NAMES)
def golden(request):
    return Golden(request.param)


def test_features_equal(golden):
    features, lengths = golden.model.features(golden.samples, golden.lengths)
    for row, length in enumerate(lengths.tolist()):
        expected = golden.expected("features", row)
        assert length == len(expected)
        torch.testing.assert_close(features[row, :length], expected, rtol=0.0, atol=TOLERANCE)


def test_encoder_output_equals_in_a_ragged_batch(golden):
    for name, context in golden.contexts():
        encoded, lengths = golden.model.encode(golden.samples, golden.lengths, context)
        for row, length in enumerate(lengths.tolist()):
            expected = golden.expected("encoded", name, row)
            assert length == len(expected)
            torch.testing.assert_close(encoded[row, :length], expected, rtol=0.0, atol=TOLERANCE)


def test_no_context_means_the_default_one(golden):
    left, right = golden.model.encoder.config.contexts[0]
    encoded, lengths = golden.model.encode(golden.samples, golden.lengths)
    expected = golden.expected("encoded", f"{left},{right}", 0)
    torch.testing.assert_close(encoded[0, : lengths[0]], expected, rtol=0.0, atol=TOLERANCE)


def test_decoded_tokens_frames_and_durations_are_identical(golden):
    compared = 0
    for name, context in golden.contexts():
        encoded, lengths = golden.model.encode(golden.samples, golden.lengths, context)
        for head in golden.model.heads:
            for row, hypothesis in enumerate(golden.model.decode(encoded, lengths, head)):
                for kind in ("tokens", "frames", "durations"):
                    expected = golden.expected(kind, head, name, row)
                    if expected is not None:
                        assert getattr(hypothesis, kind) == expected.tolist(), (kind, head, name, row)
                        compared += len(expected)
    assert compared > 30


def test_text_is_identical(golden):
    encoded, lengths = golden.model.encode(golden.samples, golden.lengths)
    hypotheses = golden.model.decode(encoded, lengths)
    assert [golden.model.tokenizer.decode(hypothesis.tokens) for hypothesis in hypotheses] == golden.texts


def test_words_spell_the_text(golden):
    encoded, lengths = golden.model.encode(golden.samples, golden.lengths)
    for hypothesis, text in zip(golden.model.decode(encoded, lengths), golden.texts, strict=True):
        words = golden.model.tokenizer.words(hypothesis.tokens)
        assert " ".join(word for word, _, _ in words).split() == text.split()
        bounds = [index for _, start, end in words for index in (start, end)]
        assert bounds == sorted(bounds)


def test_fixtures_hold_labels_between_blanks(golden):
    labels = torch.cat([value for key, value in golden.tensors.items() if key.startswith("tokens")])
    frames = [value for key, value in golden.tensors.items() if key.startswith("frames")]
    assert len(labels.unique()) >= 10
    if frames:
        steps = torch.cat([value.diff() for value in frames])
        assert (steps > 1).any()


def test_every_kind_of_head_and_predictor_is_covered():
    models = {
        name: load(FIXTURES / name / "model.nemo", device="cpu") for name in NAMES if name.startswith("nemo_")
    }
    assert {head for model in models.values() for head in model.heads} == {"rnnt", "tdt", "ctc"}
    assert models["nemo_tdt"].heads["tdt"].durations == (0, 1, 2, 4)
    assert models["nemo_tdt"].heads["tdt"].max_symbols == 4
    assert models["nemo_hybrid_streaming"].default_head == "rnnt"
