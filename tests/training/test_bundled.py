"""The bundled model: its size, and that every head reads the sample at every look-ahead."""

from pathlib import Path

import pytest

import rnnt_fastdecode

FOLDER = Path(rnnt_fastdecode.__file__).parent / "models" / "bundled"
SAMPLE_TEXT = "enter seven two five march third nineteen ninety eight t o r c h"


@pytest.fixture(scope="module")
def model():
    return rnnt_fastdecode.load("bundled", dtype="float32", device="cpu")


def test_it_is_small_and_complete():
    names = {path.name for path in FOLDER.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.model", "MODEL_CARD.md", "sample.wav"} <= names
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 25e6


@pytest.mark.parametrize("head", ["rnnt", "tdt", "ctc"])
@pytest.mark.parametrize("lookahead", [13, 6, 1, 0])
def test_it_reads_its_sample(model, head, lookahead):
    (transcript,) = model.transcribe([FOLDER / "sample.wav"], head=head, context=(70, lookahead))
    assert transcript.text == SAMPLE_TEXT
    assert [word.text for word in transcript.words] == SAMPLE_TEXT.split()
