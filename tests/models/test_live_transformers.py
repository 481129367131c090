"""Fresh random models of the installed transformers, saved and loaded here, against transformers itself."""

import shutil
from pathlib import Path

import pytest
import torch
from models.fixture_tools import randomise, spread, tune_blank

from rnnt_fastdecode import load

transformers = pytest.importorskip("transformers", minversion="5.17")
if not hasattr(transformers, "NemotronAsrStreamingForRNNT"):
    pytest.skip("transformers without Nemotron streaming", allow_module_level=True)

FIXTURES = Path(__file__).parent / "fixtures"
# The first is longer than the left context of the streaming model, 71 frames.
SECONDS = (7.2, 2.5, 0.31)
ENCODER = {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "subsampling_conv_channels": 24,
    "num_mel_bins": 80,
}
TRANSDUCER = {"decoder_hidden_size": 48, "max_symbols_per_step": 3}
# The tokenizer of a fixture, the class, its encoder and its own settings.
MODELS = {
    "ctc": ("parakeet_ctc", "ParakeetForCTC", {"scale_input": False}, {}),
    "rnnt": ("parakeet_rnnt", "ParakeetForRNNT", {}, TRANSDUCER),
    "tdt": ("parakeet_tdt", "ParakeetForTDT", {"attention_bias": False}, TRANSDUCER),
    "streaming": ("nemotron_streaming", "NemotronAsrStreamingForRNNT", {"sliding_window": 71}, TRANSDUCER),
}


class Pair:
    """The same weights in transformers and here, and a ragged batch of audio."""

    def __init__(self, kind, folder):
        fixture, class_name, encoder, settings = MODELS[kind]
        self.head = "rnnt" if kind == "streaming" else kind
        shutil.copy(FIXTURES / fixture / "tokenizer.json", folder)
        model_class = getattr(transformers, class_name)
        vocab_size = model_class.config_class.from_pretrained(FIXTURES / fixture).vocab_size
        self.blank = vocab_size - 1
        ids = {"pad_token_id": self.blank if kind == "ctc" else 1}
        if kind != "ctc":
            ids["blank_token_id"] = self.blank
        config = model_class.config_class(
            encoder_config={**ENCODER, **encoder}, vocab_size=vocab_size, **ids, **settings
        )
        self.theirs = model_class(config).eval().requires_grad_(False)
        randomise(self.theirs, seed=3)
        self.lengths = torch.tensor([int(seconds * 16000) for seconds in SECONDS])
        noise = torch.randn(len(SECONDS), int(self.lengths.max()), generator=torch.Generator().manual_seed(1))
        swell = torch.sin(torch.arange(noise.shape[1]) / 1500.0).square() * 0.1
        self.samples = noise * swell
        self.theirs.save_pretrained(folder)
        features, frames = load(folder, device="cpu").features(self.samples, self.lengths)
        mask = torch.arange(features.shape[1]) < frames.unsqueeze(1)
        self.inputs = {"input_features": features, "attention_mask": mask}
        self.make_lively(getattr(config, "durations", ()))
        self.theirs.save_pretrained(folder)
        self.ours = load(folder, device="cpu")

    def make_lively(self, durations):
        encoded = self.theirs.encoder(**self.inputs)
        frames = encoded.last_hidden_state[encoded.attention_mask.bool()]
        if self.head == "ctc":
            output = self.theirs.ctc_head
            spread(output.weight, output.bias, frames, 2.0)
        else:
            output, projector = self.theirs.joint.head, self.theirs.encoder_projector
            projected = spread(projector.weight, projector.bias, frames, 1.0)
            spread(output.weight, output.bias, self.theirs.joint.activation(projected), 2.0)
            # generate() does not end a chain of labels with duration 0.
            output.bias[self.blank + 1 : self.blank + 2] -= 20.0
            self.theirs.generation_config.decoder_start_token_id = self.blank
            self.theirs.generation_config.suppress_tokens = list(
                range(self.blank + 1, self.blank + 1 + len(durations))
            )
        wanted = int(encoded.attention_mask[1].sum()) // 2
        tune_blank(output.bias, self.blank, lambda: len(self.generate(1)[0]), wanted)

    def row(self, row):
        count = int(self.inputs["attention_mask"][row].sum())
        return {key: value[row : row + 1, :count] for key, value in self.inputs.items()}

    def generate(self, row, **context):
        """Tokens and frames of one utterance alone: in a batch transformers goes on past the end of a row."""
        if self.head == "ctc":
            merged = torch.unique_consecutive(self.theirs.generate(**self.row(row))[0])
            return merged[merged != self.blank].tolist(), None
        output = self.theirs.generate(**self.row(row), max_length=2000, **context)
        tokens, durations = output.sequences[0, 1:], output.durations[0, 1:]
        kept = tokens != self.blank
        return tokens[kept].tolist(), (durations.cumsum(0) - durations)[kept].tolist()


@pytest.fixture(scope="module", params=MODELS)
def pair(request, tmp_path_factory):
    return Pair(request.param, tmp_path_factory.mktemp(request.param))


def contexts(pair):
    """Each context of ours with the argument that asks transformers for it."""
    for context in pair.ours.encoder.config.contexts:
        yield context, {"num_lookahead_tokens": context[1]} if context[1] >= 0 else {}


def test_encoder_output_equals_in_a_ragged_batch(pair):
    for context, argument in contexts(pair):
        theirs = pair.theirs.encoder(**pair.inputs, **argument)
        encoded, lengths = pair.ours.encode(pair.samples, pair.lengths, context)
        assert lengths.tolist() == theirs.attention_mask.sum(dim=1).tolist()
        for row, length in enumerate(lengths.tolist()):
            expected = theirs.last_hidden_state[row, :length]
            torch.testing.assert_close(encoded[row, :length], expected, rtol=0.0, atol=1e-4)


def test_tokens_and_frames_are_identical(pair):
    seen = set()
    for context, argument in contexts(pair):
        encoded, lengths = pair.ours.encode(pair.samples, pair.lengths, context)
        for row, hypothesis in enumerate(pair.ours.decode(encoded, lengths)):
            tokens, frames = pair.generate(row, **argument)
            assert hypothesis.tokens == tokens
            assert frames is None or hypothesis.frames == frames
            seen.update(tokens)
    assert len(seen) >= 5


def test_contexts_are_those_that_transformers_offers(pair):
    config = pair.ours.encoder.config
    if config.context_style == "regular":
        assert config.contexts == ((-1, -1),)
    else:
        assert config.contexts == ((70, 13), (70, 6), (70, 1), (70, 0))
