"""A whole model on a GPU gives what it gives on the CPU."""

import pytest
import torch

from rnnt_fastdecode import load

pytestmark = pytest.mark.gpu


@pytest.fixture
def audio(babble):
    return [babble(seconds, seed) for seed, seconds in enumerate((1.3, 0.05, 2.0, 0.7))]


@pytest.fixture(autouse=True)
def true_float32():
    """The comparison is about our code, not about TF32 in the encoder's libraries."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def test_features_and_encoder_output_are_close(tiny_model_folder, audio):
    lengths = torch.tensor([len(samples) for samples in audio])
    samples = torch.zeros(len(audio), int(lengths.max()))
    for row, clip in zip(samples, audio, strict=True):
        row[: len(clip)] = torch.from_numpy(clip)
    outputs = []
    for device in ("cpu", "cuda"):
        model = load(tiny_model_folder, device=device)
        features, frames = model.features(samples.to(device), lengths.to(device))
        encoded, encoded_frames = model.encode(samples, lengths)
        valid = torch.arange(encoded.shape[1]) < encoded_frames.cpu().unsqueeze(1)
        outputs.append((features.cpu(), frames.cpu(), encoded.cpu()[valid]))
    torch.testing.assert_close(outputs[1], outputs[0], rtol=0, atol=2e-4)


@pytest.mark.parametrize("head", ["rnnt", "tdt", "ctc"])
def test_transcripts_are_those_of_the_cpu(head, tiny_model_folder, audio):
    transcripts = [load(tiny_model_folder, device=d).transcribe(audio, head=head) for d in ("cpu", "cuda")]
    assert sum(len(transcript.tokens) for transcript in transcripts[0]) > 0
    for on_cpu, on_gpu in zip(*transcripts, strict=True):
        assert on_gpu.tokens == on_cpu.tokens
        assert [(w.text, w.start, w.end) for w in on_gpu.words] == [
            (w.text, w.start, w.end) for w in on_cpu.words
        ]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_half(dtype, tiny_model_folder, audio):
    model = load(tiny_model_folder, dtype=dtype, device="cuda")
    encoded, _ = model.encode(torch.from_numpy(audio[0])[None], torch.tensor([len(audio[0])]))
    assert encoded.dtype == dtype and encoded.isfinite().all()
    assert all(transcript.error is None for transcript in model.transcribe(audio))


def test_the_bundled_model_decodes_its_sample_without_the_host(bundled_folder):
    sample = bundled_folder / "sample.wav"
    model = load(device="cuda")
    assert model.transcribe(sample)[0].text == load(device="cpu").transcribe(sample)[0].text
    assert model._decoders[model.default_head].path == "cuda resident"
