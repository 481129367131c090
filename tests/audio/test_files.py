"""Reading recordings: every format comes out right, anything else is refused in one line naming the file."""

import os

import numpy as np
import pytest
import soundfile

from rnnt_fastdecode.audio.files import audio_seconds, read_audio, resample
from rnnt_fastdecode.errors import ArgumentError, AudioError

RATE = 16000
SECONDS = 3.0
TONE_HZ = 440.0
FORMATS = {
    "wav": {},
    "flac": {},
    "ogg": {},
    "opus": {"format": "OGG", "subtype": "OPUS"},
    "mp3": {},
    "aiff": {},
    "au": {},
    "caf": {},
    "w64": {},
}


def tone(rate: int, seconds: float = SECONDS, channels: int = 1) -> np.ndarray:
    """A sine that swells: a variable bit rate then varies."""
    time = np.arange(int(rate * seconds)) / rate
    noise = np.random.default_rng(0).normal(size=len(time)) * 0.05 * (time / seconds) ** 2
    samples = 0.3 * np.sin(2 * np.pi * TONE_HZ * time) + noise
    return np.stack([samples] * channels, axis=1) if channels > 1 else samples


def write(folder, name: str, samples=None, rate: int = RATE, **options) -> str:
    path = os.path.join(folder, name)
    soundfile.write(path, tone(rate) if samples is None else samples, rate, **options)
    return path


def damaged(path: str, keep: float) -> str:
    """A copy of which only this fraction is there."""
    root, suffix = os.path.splitext(path)
    with open(path, "rb") as source, open(f"{root}-cut{suffix}", "wb") as target:
        data = source.read()
        target.write(data[: int(len(data) * keep)])
    return f"{root}-cut{suffix}"


def raw_file(folder, name: str, data: bytes) -> str:
    path = os.path.join(folder, name)
    with open(path, "wb") as target:
        target.write(data)
    return path


def assert_refused(path, *words: str) -> None:
    with pytest.raises(AudioError) as caught:
        read_audio(path, RATE)
    message = str(caught.value)
    assert os.path.basename(os.fsdecode(path)) in message
    assert "\n" not in message
    for word in words:
        assert word in message


def assert_tone(samples: np.ndarray, seconds: float = SECONDS, slack: float = 0.05) -> None:
    assert samples.dtype == np.float32 and samples.ndim == 1
    assert abs(len(samples) - RATE * seconds) <= slack * RATE
    spectrum = np.abs(np.fft.rfft(samples))
    assert abs(np.argmax(spectrum) * RATE / len(samples) - TONE_HZ) < 2.0


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("rate, channels", [(16000, 1), (48000, 2)])
def test_every_format_gives_the_same_tone(tmp_path, suffix, rate, channels):
    path = write(tmp_path, f"tone.{suffix}", tone(rate, channels=channels), rate, **FORMATS[suffix])
    assert_tone(read_audio(path, RATE))
    assert audio_seconds(path) == pytest.approx(SECONDS, abs=0.05)


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 96000, 192000])
def test_every_sample_rate_is_resampled(tmp_path, rate):
    assert_tone(read_audio(write(tmp_path, "tone.wav", rate=rate), RATE))


@pytest.mark.parametrize(
    "subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW"]
)
def test_every_sample_format_is_scaled_alike(tmp_path, subtype):
    samples = read_audio(write(tmp_path, "tone.wav", tone(RATE), subtype=subtype), RATE)
    assert np.abs(samples - tone(RATE)).max() < 0.02


def test_a_file_at_the_wanted_rate_is_not_changed(tmp_path):
    samples = tone(RATE).astype(np.float32)
    path = write(tmp_path, "tone.wav", samples, subtype="FLOAT")
    assert np.array_equal(read_audio(path, RATE), samples)


def test_stereo_of_24_bits_at_44100_hz_is_averaged(tmp_path):
    both = tone(44100, channels=2) * np.array([1.0, 0.5])
    path = write(tmp_path, "stereo.flac", both, 44100, subtype="PCM_24")
    expected = resample(both.mean(axis=1).astype(np.float32), 44100, RATE)
    assert np.abs(read_audio(path, RATE) - expected).max() < 1e-5


def test_many_channels_are_averaged(tmp_path):
    path = write(tmp_path, "array.wav", tone(RATE, channels=16))
    assert np.abs(read_audio(path, RATE) - tone(RATE)).max() < 1e-3


def test_reading_in_blocks_leaves_no_seams(tmp_path):
    samples = tone(48000, 20.0).astype(np.float32)
    path = write(tmp_path, "long.wav", samples, 48000, subtype="FLOAT")
    assert np.abs(read_audio(path, RATE) - resample(samples, 48000, RATE)).max() < 1e-6


@pytest.mark.parametrize(
    "name", ["été.wav", "録音 1.flac", "a b'c\"d.wav", "-dash.wav", "new\nline.wav", "x.raw"]
)
def test_any_file_name_will_do(tmp_path, name):
    path = os.path.join(tmp_path, name)
    os.rename(write(tmp_path, "tone.wav"), path)
    assert_tone(read_audio(path, RATE))


def test_a_file_name_that_is_not_utf8_will_do(tmp_path):
    path = os.path.join(os.fsencode(tmp_path), b"caf\xe9.wav")
    os.rename(write(tmp_path, "tone.wav"), path)
    assert_tone(read_audio(path, RATE))
    assert_tone(read_audio(os.fsdecode(path), RATE))


@pytest.mark.parametrize("rate", [16000, 44100])
def test_a_single_sample_is_a_recording(tmp_path, rate):
    samples = read_audio(write(tmp_path, "one.wav", np.array([0.5]), rate), RATE)
    assert len(samples) <= 1


@pytest.mark.parametrize("mode", ["CONSTANT", "VARIABLE", "AVERAGE"])
@pytest.mark.parametrize("rate, channels", [(16000, 1), (44100, 2)])
def test_mp3_without_a_header_frame_is_read_to_its_end(tmp_path, mode, rate, channels):
    samples = tone(rate, 10.0, channels)
    path = write(tmp_path, "full.mp3", samples, rate, bitrate_mode=mode, compression_level=0.5)
    with open(path, "rb") as source:
        data = source.read()
    assert b"Xing" in data[:64] or b"Info" in data[:64]
    second = data.index(data[:2], 4)
    path = raw_file(tmp_path, "bare.mp3", data[second:])
    assert_tone(read_audio(path, RATE), 10.0)
    assert audio_seconds(path) == pytest.approx(10.0, abs=0.1)


def test_mp3_tags_are_skipped(tmp_path):
    with open(write(tmp_path, "tone.mp3"), "rb") as source:
        data = source.read()
    tag = b"ID3\x04\x00\x00\x00\x00\x02\x00" + bytes(256)
    assert_tone(read_audio(raw_file(tmp_path, "tagged.mp3", tag + data + b"TAG".ljust(128)), RATE))


def test_mp3_files_joined_end_to_end_are_read_to_the_end(tmp_path):
    with open(write(tmp_path, "tone.mp3"), "rb") as source:
        data = source.read()
    # The second file's header frame and both files' padding are heard as silence.
    assert_tone(read_audio(raw_file(tmp_path, "joined.mp3", data + data), RATE), 2 * SECONDS, slack=0.25)


def test_flac_of_unknown_length_is_read_to_its_end(tmp_path):
    with open(write(tmp_path, "tone.flac"), "rb") as source:
        data = bytearray(source.read())
    # Bytes 13 to 17 of STREAMINFO, which follows "fLaC" and a four-byte block header, hold the sample count.
    data[21] &= 0xF0
    data[22:26] = bytes(4)
    path = raw_file(tmp_path, "piped.flac", bytes(data))
    assert_tone(read_audio(path, RATE))
    assert audio_seconds(path) == 0.0


@pytest.mark.parametrize("size", [0xFFFFFFFF, 0x7FFFF000])
def test_wav_written_to_a_pipe_is_read_to_its_end(tmp_path, size):
    with open(write(tmp_path, "tone.wav"), "rb") as source:
        data = bytearray(source.read())
    data[4:8] = data[40:44] = size.to_bytes(4, "little")
    assert_tone(read_audio(raw_file(tmp_path, "piped.wav", bytes(data)), RATE))


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("keep", [0.99, 0.5, 0.1])
def test_a_truncated_file_is_refused(tmp_path, suffix, keep):
    path = write(tmp_path, f"tone.{suffix}", tone(48000), 48000, **FORMATS[suffix])
    assert_refused(damaged(path, keep))


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_damaged_file_never_crashes(tmp_path, suffix):
    with open(write(tmp_path, f"tone.{suffix}", **FORMATS[suffix]), "rb") as source:
        whole = source.read()
    random = np.random.default_rng(1)
    for trial in range(20):
        data = bytearray(whole)
        for place in random.integers(0, len(data) if trial % 2 else min(len(data), 200), size=8):
            data[place] = random.integers(256)
        try:
            samples = read_audio(raw_file(tmp_path, f"damaged.{suffix}", bytes(data)), RATE)
        except AudioError as error:
            assert "damaged." in str(error)
        else:
            assert np.isfinite(samples).all()


def test_damage_between_mp3_frames_is_refused(tmp_path):
    with open(write(tmp_path, "tone.mp3"), "rb") as source:
        data = source.read()
    half = len(data) // 2
    assert_refused(raw_file(tmp_path, "broken.mp3", data[:half] + b"x" * 1000 + data[half:]), "MP3 frame")


def test_ogg_streams_joined_end_to_end_are_refused(tmp_path):
    with open(write(tmp_path, "tone.ogg"), "rb") as source:
        data = source.read()
    assert_refused(raw_file(tmp_path, "chain.ogg", data + data), "several Ogg streams")


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3", "raw", "vox", "gsm"])
def test_text_is_refused_whatever_its_name(tmp_path, suffix):
    assert_refused(raw_file(tmp_path, f"text.{suffix}", b"this is not a recording\n" * 200), "expected a WAV")


def test_text_that_begins_like_mpeg_is_refused_without_a_word_on_stderr(tmp_path, capfd):
    assert_refused(raw_file(tmp_path, "utf16.wav", "no recording".encode("utf-16") * 9000), "expected a WAV")
    assert_refused(raw_file(tmp_path, "noise.mp3", b"\xff\xfb\x90\x44" + bytes(range(256)) * 400))
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("suffix", ["wav", "mp3", "flac"])
def test_an_empty_file_is_refused(tmp_path, suffix):
    assert_refused(raw_file(tmp_path, f"empty.{suffix}", b""), "empty")


@pytest.mark.parametrize("suffix", ["wav", "aiff"])
def test_a_file_without_samples_is_refused(tmp_path, suffix):
    assert_refused(write(tmp_path, f"nothing.{suffix}", np.zeros(0)), "no samples")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
def test_samples_that_are_not_finite_are_refused(tmp_path, value):
    samples = tone(RATE)
    samples[1000] = value
    assert_refused(write(tmp_path, "nan.wav", samples, subtype="DOUBLE"), "NaN or infinite")


def test_a_missing_file_is_refused(tmp_path):
    assert_refused(tmp_path / "missing.wav", "No such file")


def test_a_folder_is_refused(tmp_path):
    assert_refused(tmp_path, "is a folder")


def test_a_named_pipe_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe.wav")
    assert_refused(tmp_path / "pipe.wav", "pipe")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read every file")
def test_a_forbidden_file_is_refused(tmp_path):
    path = write(tmp_path, "secret.wav")
    os.chmod(path, 0)
    assert_refused(path, "Permission denied")


def test_a_name_with_a_null_byte_is_refused():
    with pytest.raises(AudioError, match="null"):
        read_audio("a\0b.wav", RATE)


def test_an_absurd_length_in_the_header_does_not_cost_memory(tmp_path):
    with open(write(tmp_path, "tone.flac"), "rb") as source:
        data = bytearray(source.read())
    data[21] |= 0x0F
    data[22:26] = b"\xff" * 4
    assert_refused(raw_file(tmp_path, "absurd.flac", bytes(data)))


def test_an_absurd_sample_rate_is_refused(tmp_path):
    assert_refused(write(tmp_path, "slow.wav", np.zeros(100), 1), "1 samples a second")


def test_a_recording_longer_than_allowed_is_refused(tmp_path):
    path = write(tmp_path, "tone.flac")
    with pytest.raises(AudioError, match="longer than 2 s"):
        read_audio(path, RATE, max_seconds=2.0)


@pytest.mark.parametrize("rate", [0, -16000, 16000.0, 10**9])
def test_an_impossible_target_rate_is_refused(tmp_path, rate):
    with pytest.raises(ArgumentError, match="sample_rate"):
        read_audio(write(tmp_path, "tone.wav"), rate)


def test_no_file_stays_open(tmp_path):
    good, bad = write(tmp_path, "tone.wav"), damaged(write(tmp_path, "tone.flac"), 0.5)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        read_audio(good, RATE)
        assert_refused(bad)
        assert_refused(raw_file(tmp_path, "text.wav", b"no recording"))
    assert len(os.listdir("/proc/self/fd")) == before
