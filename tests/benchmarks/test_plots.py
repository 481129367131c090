"""Plots are drawn from a record alone, a file for each question."""

import sys

import pytest

from benchmarks import plots

WHERE = {"device": "a GPU", "commit": "abc"}


def row(batch, peers, **more):
    base = {"model": "rnnt", "dtype": "bf16", "frames": 150, "lengths": "equal", "floor_ms": None}
    return {**base, "batch": batch, "ours_ms": 0.5 * batch, "peers": peers, **more}


@pytest.fixture
def record():
    rows = [
        row(1, {"nemo": {"ms": 8.0}}),
        row(8, {"nemo": {"ms": 9.0}, "transformers": {"error": "failed"}}, floor_ms=0.1),
        row(8, {}, model="tdt", dtype="fp32"),
        row(8, {}, lengths="ragged"),
        row(8, {}, frames=750),
    ]
    return {"where": WHERE, "settings": {"kind": "decode"}, "rows": rows}


@pytest.fixture
def matplotlib():
    return pytest.importorskip("matplotlib")


def test_a_series_has_a_point_where_it_was_measured(record):
    rows = record["rows"][:2]
    assert plots.series(rows[::-1], "ours", lambda row: row["batch"]) == [(1, 0.5), (8, 4.0)]
    assert plots.series(rows, "nemo", lambda row: row["batch"]) == [(1, 8.0), (8, 9.0)]
    assert plots.series(rows, "floor", lambda row: row["batch"]) == [(8, 0.1)]
    assert plots.series(rows, "transformers", lambda row: row["batch"]) == []


def test_every_shape_has_a_file_with_its_peers(matplotlib, record, tmp_path):
    paths = plots.draw(record, tmp_path / "plots")
    names = ["decode_T150_equal.svg", "decode_T150_ragged.svg", "decode_T750_equal.svg"]
    assert [path.name for path in paths] == names
    text = paths[0].read_text()
    for words in ("RNN-T, bf16", "TDT, fp32", "NeMo, full graph", "floor", "a GPU, commit abc", "batch size"):
        assert words in text
    assert "transformers" not in text
    assert "NeMo" not in paths[1].read_text()


def test_adversarial_rows_are_drawn_over_their_share(matplotlib, tmp_path):
    rows = [row(32, {"nemo": {"ms": 30.0}}, adversarial_share=share) for share in (0.0, 1 / 32, 1.0)]
    record = {"where": WHERE, "settings": {"kind": "adversarial"}, "rows": rows}
    (path,) = plots.draw(record, tmp_path)
    assert path.name == "adversarial.svg" and "1/32" in path.read_text()


def test_the_same_record_gives_the_same_file(matplotlib, record, tmp_path):
    first, second = (plots.draw(record, tmp_path / name)[0].read_bytes() for name in ("a", "b"))
    assert first == second


def test_without_matplotlib_a_line_says_what_to_install(monkeypatch, record, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(SystemExit, match="pip install matplotlib"):
        plots.draw(record, tmp_path)
