"""The figures of `rnnt-fastdecode bench`: what rows are made of, how often they are timed, what is kept."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from rnnt_fastdecode import ArgumentError, bench

CPU = torch.device("cpu")


def test_rows_repeat_the_audio_from_places_of_their_own():
    samples = np.arange(10, dtype=np.float32)
    rows = bench.audio_rows(samples, 5, 23).tolist()
    assert rows[0] == [float(i % 10) for i in range(23)]
    starts = [int(row[0]) for row in rows]
    assert len(set(starts)) == 5
    assert all(row == [float((s + i) % 10) for i in range(23)] for s, row in zip(starts, rows, strict=True))


def test_no_audio_is_refused():
    with pytest.raises(ArgumentError, match="no samples"):
        bench.audio_rows(np.zeros(0, dtype=np.float32), 1, 10)


def test_a_time_is_the_median_of_the_repeats(monkeypatch):
    clock = iter([0, 1, 0, 5, 0, 2, 0, 100, 0, 3])
    monkeypatch.setattr(bench.time, "perf_counter", lambda: next(clock) / 1e3)
    calls = []
    assert bench.milliseconds(lambda: calls.append(1), CPU, repeats=5, warmup=2) == pytest.approx(3.0)
    assert len(calls) == 7


def test_long_calls_are_repeated_less_often(monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr(bench.time, "perf_counter", lambda: next(clock))
    calls = []
    bench.milliseconds(lambda: calls.append(1), CPU, repeats=20, warmup=1, seconds=2.5, least=2)
    assert len(calls) == 1 + 3


def test_a_measurement_tells_the_labels_of_the_model(tiny_model, babble):
    samples = babble(2.0)
    row = bench.measure(tiny_model, samples, batch=2, frames=20, head="rnnt", repeats=1)
    length = round(20 * tiny_model.frame_seconds * tiny_model.sample_rate)
    encoded, lengths = tiny_model.encode(bench.audio_rows(samples, 2, length), torch.tensor([length] * 2))
    labels = tiny_model.decode(encoded[:, :20], lengths.clamp(max=20), "rnnt")
    assert row.labels_per_frame == pytest.approx(sum(len(h.tokens) for h in labels) / 40)
    assert row.labels_per_frame > 0 and row.path == "cpu"


@pytest.mark.parametrize("batch, frames", [(0, 5), (2, 0)])
def test_empty_batches_are_refused(tiny_model, babble, batch, frames):
    with pytest.raises(ArgumentError, match="batch and frames must be at least 1"):
        bench.measure(tiny_model, babble(1.0), batch, frames)


def test_without_a_name_the_default_head_is_measured_or_else_the_first_transducer(tiny_model, monkeypatch):
    assert bench.transducer_head(tiny_model)[0] == "rnnt"
    monkeypatch.setattr(tiny_model, "default_head", "ctc")
    assert bench.transducer_head(tiny_model)[0] == "rnnt"
    assert bench.transducer_head(tiny_model, "tdt")[1].durations == (0, 1, 2, 3, 4)


def test_a_head_that_decodes_no_transducer_is_refused(tiny_model, monkeypatch):
    with pytest.raises(ArgumentError, match=r"head ctc; tiny has heads \['ctc', 'rnnt', 'tdt'\]"):
        bench.transducer_head(tiny_model, "ctc")
    only_ctc = torch.nn.ModuleDict({"ctc": tiny_model.heads["ctc"]})
    monkeypatch.setitem(tiny_model._modules, "heads", only_ctc)
    with pytest.raises(ArgumentError, match="no RNN-T or TDT head"):
        bench.transducer_head(tiny_model)


def test_a_record_on_disk_is_as_new_as_its_last_save(tmp_path):
    path = tmp_path / "record.json"
    record = bench.Record(path, {"device": "x"}, {"kind": "test"})
    for count in range(3):
        record.rows.append({"count": count})
        record.save()
        assert json.loads(path.read_text()) == record.content()
    assert [child.name for child in tmp_path.iterdir()] == ["record.json"]


def test_a_record_never_takes_the_place_of_a_device():
    bench.Record(Path(os.devnull), {}, {}).save()
    assert not os.path.isfile(os.devnull)


def test_a_record_without_a_path_stays_in_memory():
    record = bench.Record(None, {}, {})
    record.rows.append({"a": 1})
    record.save()
    assert record.content()["rows"] == [{"a": 1}]
