"""From recordings to words: batching, times, confidences, and faults that stay with their own recording."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch

from rnnt_fastdecode.encoder import FastConformerConfig
from rnnt_fastdecode.errors import ArgumentError
from rnnt_fastdecode.models import Hypothesis, transcription
from rnnt_fastdecode.models.tokenizer import CharacterTokenizer
from rnnt_fastdecode.models.transcription import Word, transcribe

RATE = 16000
FRAME = 1280
LETTERS = [" ", *"abcdefghijklmnopqrstuvwxyz"]


class PlantedModel:
    """Recognises what is planted: a recording's first sample times 1000 is the key of its hypothesis."""

    sample_rate, frame_seconds, default_head = RATE, FRAME / RATE, "rnnt"
    name, dtype, device = "planted", torch.float32, torch.device("cpu")
    tokenizer = CharacterTokenizer(LETTERS)
    encoder = SimpleNamespace(
        config=FastConformerConfig(4, 8, 1, 2, 8, contexts=((70, 13),), context_style="chunked_limited")
    )

    def __init__(self, planted: dict[int, Hypothesis]) -> None:
        self.planted = planted
        self.heads = {"rnnt": None, "tdt": None}
        self.calls: list[list[int]] = []
        self.most_rows = 1 << 30
        self.spoil = lambda keys, encoded: None

    def encode(self, samples, lengths, context=None):
        self.calls.append(lengths.tolist())
        self.context = context
        if len(lengths) > self.most_rows:
            raise torch.OutOfMemoryError("CUDA out of memory")
        keys = (samples[:, :1] * 1000).round()
        encoded = keys.unsqueeze(2).expand(-1, int(lengths.max()) // FRAME, 2).clone()
        self.spoil(keys.flatten().int().tolist(), encoded)
        return encoded, lengths // FRAME

    def decode(self, encoded, lengths, head=None):
        self.head = head
        return [self.planted.get(int(row[0, 0]), hypothesis("")) for row in encoded]


def hypothesis(text: str, frames=None, durations=None, log_probs=None) -> Hypothesis:
    count = len(text)
    return Hypothesis(
        [LETTERS.index(letter) for letter in text],
        list(frames or range(count)),
        list(durations or [0] * count),
        list(log_probs or [-0.1] * count),
    )


def clip(key: int, frames: int = 10) -> np.ndarray:
    return np.full(frames * FRAME, key / 1000, np.float32)


@pytest.fixture
def planted():
    return PlantedModel({key: hypothesis(word) for key, word in enumerate(["zero", "one", "two", "three"])})


@pytest.fixture
def damaged_file(tmp_path):
    path = tmp_path / "damaged.wav"
    path.write_bytes(b"no recording")
    return path


def test_no_files_give_no_transcripts(planted):
    assert transcribe(planted, []) == []


def test_results_come_in_the_order_of_the_files(planted):
    clips = [clip(3, 10), clip(1, 30), clip(0, 20), clip(2, 5)]
    assert [t.text for t in transcribe(planted, clips, batch_size=2)] == ["three", "one", "zero", "two"]


def test_recordings_of_similar_length_share_a_batch(planted):
    transcribe(planted, [clip(1, n) for n in (5, 50, 7, 40, 6)], batch_size=2)
    assert planted.calls == [[50 * FRAME, 40 * FRAME], [7 * FRAME, 6 * FRAME], [5 * FRAME]]


def test_long_recordings_are_not_batched(planted, monkeypatch):
    monkeypatch.setattr(transcription, "_BATCH_SECONDS", 2.0)
    transcribe(planted, [clip(1, 20), clip(1, 20), clip(1, 10), clip(1, 10)])
    assert [len(lengths) for lengths in planted.calls] == [1, 1, 2]


def test_a_broken_file_does_not_touch_the_others(planted, damaged_file):
    results = transcribe(planted, [clip(1), damaged_file, str(damaged_file) + ".missing", clip(2)])
    assert [r.text for r in results] == ["one", "", "", "two"]
    assert [r.error is None for r in results] == [True, False, False, True]
    assert "damaged.wav" in results[1].error and "No such file" in results[2].error
    assert results[1].file == str(damaged_file)


def test_a_file_is_named_as_it_was_given(planted, tmp_path):
    path = tmp_path / "tone.wav"
    soundfile.write(path, clip(1), RATE, subtype="FLOAT")
    assert [t.file for t in transcribe(planted, [path, clip(2)])] == [str(path), "<samples 1>"]
    assert transcribe(planted, path)[0].text == "one"


def test_results_are_handed_over_as_they_come(planted, damaged_file):
    seen = {}
    results = transcribe(planted, [clip(1), damaged_file, clip(2, 40)], on_result=seen.__setitem__)
    assert list(seen) == [1, 2, 0]
    assert [seen[i] for i in range(3)] == results


def test_words_of_rnnt_end_with_the_frame_of_their_last_token(planted):
    planted.planted[1] = hypothesis("go on", frames=[2, 2, 5, 6, 8], log_probs=[-0.2, -0.4, -9.0, -0.1, -0.1])
    (result,) = transcribe(planted, [clip(1, 20)])
    assert result.text == "go on"
    assert result.words == [
        Word("go", 0.16, 0.24, pytest.approx(math.exp(-0.3), abs=1e-4)),
        Word("on", 0.48, 0.72, pytest.approx(math.exp(-0.1), abs=1e-4)),
    ]
    assert result.score == pytest.approx(-9.8)
    assert result.tokens == [7, 15, 0, 15, 14]
    assert result.duration == pytest.approx(1.6)


def test_words_of_tdt_end_after_the_predicted_duration(planted):
    planted.planted[1] = hypothesis("go on", frames=[2, 3, 5, 6, 8], durations=[1, 2, 1, 2, 4])
    (result,) = transcribe(planted, [clip(1, 20)], head="tdt")
    assert [(w.start, w.end) for w in result.words] == [(0.16, 0.4), (0.48, 0.96)]


def test_no_word_outlasts_the_recording(planted):
    planted.planted[1] = hypothesis("go", frames=[2, 4], durations=[1, 4])
    (result,) = transcribe(planted, [clip(1, 5)])
    assert result.words[0].end == pytest.approx(0.4)


def test_audio_shorter_than_a_frame_gives_no_text(planted):
    results = transcribe(planted, [clip(1)[:1], clip(1)[: FRAME - 1], clip(2)])
    assert [r.text for r in results] == ["", "", "two"]
    assert [r.error for r in results] == [None, None, None]
    assert len(planted.calls) == 1


@pytest.mark.parametrize("most_rows", [1, 2, 3])
def test_a_batch_too_large_for_the_memory_is_halved(planted, most_rows):
    planted.most_rows = most_rows
    results = transcribe(planted, [clip(i % 4, 10 + i) for i in range(7)])
    assert [r.text for r in results] == ["zero", "one", "two", "three", "zero", "one", "two"]


def test_a_recording_too_large_for_the_memory_is_a_fault_of_its_own(planted):
    planted.most_rows = 0
    results = transcribe(planted, [clip(1), clip(2)])
    assert all("not enough memory" in r.error and r.text == "" for r in results)


def test_a_pass_that_cannot_fit_into_the_machine_is_not_begun(planted, monkeypatch):
    one_row = transcription.attention_bytes(planted, 1, 0.8)
    monkeypatch.setattr(transcription, "available_bytes", lambda device: 2 * one_row)
    results = transcribe(planted, [clip(1), clip(2), clip(3), clip(1, 100)])
    assert [r.text for r in results] == ["one", "two", "three", ""]
    assert "not enough memory on cpu for 8 s" in results[3].error
    assert max(len(lengths) for lengths in planted.calls) == 2


def test_other_runtime_errors_are_not_taken_for_a_lack_of_memory(planted):
    planted.spoil = lambda keys, encoded: 1 / 0
    with pytest.raises(ZeroDivisionError):
        transcribe(planted, [clip(1)])


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_encoder_output_that_is_not_finite_gives_an_error_not_text(planted, value):
    def spoil(keys, encoded):
        encoded[keys.index(2), 3] = value

    planted.spoil = spoil
    results = transcribe(planted, [clip(1), clip(2), clip(3)])
    assert [r.text for r in results] == ["one", "", "three"]
    assert "not finite" in results[1].error and "float32" in results[1].error


def test_padding_that_is_not_finite_does_no_harm(planted):
    def spoil(keys, encoded):
        encoded[keys.index(2), 5:] = math.nan

    planted.spoil = spoil
    assert [r.text for r in transcribe(planted, [clip(1, 10), clip(2, 5)])] == ["one", "two"]


def test_a_log_probability_that_is_not_finite_gives_an_error_not_text(planted):
    planted.planted[2] = hypothesis("two", log_probs=[-0.1, math.nan, -0.1])
    results = transcribe(planted, [clip(1), clip(2)])
    assert results[0].text == "one"
    assert results[1].text == "" and "not finite" in results[1].error


@pytest.mark.parametrize(
    "samples",
    [
        torch.from_numpy(clip(1)),
        torch.from_numpy(clip(1)).to(torch.bfloat16),
        clip(1).astype(np.float64),
        (clip(1) * 32768).astype(np.int16),
        (clip(1), RATE),
        (np.repeat(clip(1), 3), 48000),
        (torch.from_numpy(clip(1)), RATE),
    ],
)
def test_samples_in_memory_are_taken_in_every_usual_form(planted, samples):
    planted.planted = (
        {key: hypothesis("one") for key in (1, 2)} if isinstance(samples, tuple) else planted.planted
    )
    assert [t.text for t in transcribe(planted, [samples, samples])] == ["one", "one"]
    assert transcribe(planted, samples)[0].duration == pytest.approx(0.8, abs=0.001)


@pytest.mark.parametrize("samples", [np.zeros(0, np.float32), np.full(5000, np.nan, np.float32)])
def test_samples_that_are_no_audio_are_a_fault_of_their_own(planted, samples):
    results = transcribe(planted, [samples, clip(1)])
    assert "<samples 0>" in results[0].error and results[1].text == "one"


@pytest.mark.parametrize(
    "item",
    [np.zeros((2, 5000), np.float32), np.zeros(5000, np.int64), np.zeros(9, complex), 5, None, b"a.wav"],
)
def test_what_cannot_be_audio_is_refused_before_anything_runs(planted, item):
    with pytest.raises(ArgumentError, match=r"files\[1\]"):
        transcribe(planted, [clip(1), item])
    assert planted.calls == []


@pytest.mark.parametrize(
    "arguments, name",
    [
        ({"head": "aed"}, "head"),
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": 2.5}, "batch_size"),
        ({"context": (70,)}, "context"),
        ({"context": (70, 13.0)}, "context"),
        ({"context": (5, 3)}, "context"),
        ({"context": "full"}, "context"),
    ],
)
def test_impossible_arguments_are_refused_before_anything_runs(planted, arguments, name):
    with pytest.raises(ArgumentError, match=name):
        transcribe(planted, [clip(1)], **arguments)
    assert planted.calls == []


def test_head_and_context_reach_the_model(planted):
    transcribe(planted, [clip(1)], head="tdt", context=(70, 6))
    assert planted.head == "tdt" and planted.context == (70, 6)


@pytest.mark.parametrize("head", ["rnnt", "tdt", "ctc"])
def test_a_transcript_says_what_encoder_and_head_say(tiny_model, babble, head):
    clips = [babble(seconds, seed) for seed, seconds in enumerate((1.0, 2.5, 0.4))]
    results = tiny_model.transcribe(clips, head=head)
    for samples, result in zip(clips, results, strict=True):
        encoded, lengths = tiny_model.encode(torch.from_numpy(samples)[None], torch.tensor([len(samples)]))
        (expected,) = tiny_model.decode(encoded, lengths, head)
        assert result.tokens == expected.tokens
        assert result.text == tiny_model.tokenizer.decode(expected.tokens).strip()
        assert result.score == pytest.approx(sum(expected.log_probs), abs=1e-3)
        assert "".join(word.text for word in result.words) == result.text.replace(" ", "")
    assert any(result.tokens for result in results)


def test_the_batch_does_not_change_the_result(tiny_model, babble):
    clips = [babble(0.3 + 0.2 * seed, seed) for seed in range(6)]
    together = tiny_model.transcribe(clips, batch_size=6)
    alone = tiny_model.transcribe(clips, batch_size=1)
    assert [t.tokens for t in together] == [t.tokens for t in alone]


def test_weights_that_are_not_finite_give_errors_not_text(tiny_model_folder, babble):
    from rnnt_fastdecode import load

    model = load(tiny_model_folder, device="cpu")
    model.heads["rnnt"].joint.output.weight[3] = math.nan
    results = model.transcribe([babble(1.0)])
    assert results[0].text == "" and "not finite" in results[0].error


@pytest.mark.gpu
def test_a_recording_too_large_for_the_gpu_is_a_fault_of_its_own(tiny_model_folder, babble):
    from rnnt_fastdecode import load

    model = load(tiny_model_folder, device="cuda")
    minute = babble(60.0)
    hours = np.tile(minute, 240)
    results = model.transcribe([hours, minute], context=(-1, -1))
    assert "not enough memory on cuda" in results[0].error
    assert results[1].error is None and results[1].tokens


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("head", ["rnnt", "tdt", "ctc"])
def test_the_bundled_model_understands_its_sample(bundled_folder, sample_text, head, device):
    from rnnt_fastdecode import load

    (result,) = load(device=device).transcribe([bundled_folder / "sample.wav"], head=head)
    assert result.error is None
    assert result.text == sample_text
    assert [word.text for word in result.words] == sample_text.split()
    assert all(0 <= w.start < w.end <= result.duration and 0 < w.confidence <= 1 for w in result.words)
