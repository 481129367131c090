"""The bundled model on recordings of people, which are not part of the repository."""

import csv
import tarfile

import pytest

from rnnt_fastdecode import load
from training.evaluate import word_error_rate

EVERY = 4


@pytest.fixture(scope="module")
def bundled_model():
    return load("bundled", dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def an4(recordings_folder, tmp_path_factory):
    """Each fourth recording of the AN4 test set: {path: what is said}."""
    folder = tmp_path_factory.mktemp("an4")
    with open(recordings_folder / "an4_test.tsv", encoding="utf-8", newline="") as table:
        said = {row["file"]: row["text"] for row in list(csv.DictReader(table, delimiter="\t"))[::EVERY]}
    with tarfile.open(recordings_folder / "an4_test.tar") as archive:
        for member in archive:
            if member.name.rsplit("/", 1)[-1] in said:
                (folder / member.name.rsplit("/", 1)[-1]).write_bytes(archive.extractfile(member).read())
    return {folder / name: text.lower() for name, text in said.items()}


@pytest.mark.parametrize("head", ["rnnt", "tdt", "ctc"])
def test_unseen_speakers_are_understood(bundled_model, an4, head):
    results = bundled_model.transcribe(list(an4), head=head)
    assert all(result.error is None for result in results)
    errors, words = word_error_rate(list(an4.values()), [result.text for result in results])
    assert errors <= 0.08 * words


def test_recordings_at_other_rates_with_two_channels_are_transcribed(bundled_model, recordings_folder):
    results = bundled_model.transcribe(sorted((recordings_folder / "samples").iterdir()))
    assert [round(result.duration, 1) for result in results] == [3.3, 3.3, 11.0]
    assert all(result.error is None and len(result.words) > 3 for result in results)
