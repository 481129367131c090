"""The decode benchmark: which cases run, what a row holds, and what is left when something fails."""

import json

import pytest
import torch

from benchmarks import cases, decode
from benchmarks.modules import as_modules
from rnnt_fastdecode import GreedyDecoder
from rnnt_fastdecode.transducer import Hypothesis

CPU = torch.device("cpu")
TINY = ["--device", "cpu", "--dtypes", "fp32", "--batch", "1", "3", "--frames", "20", "--repeats", "1"]


class Echo:
    """A peer that gives what our decoder gives."""

    def __init__(self, transducer, device, dtype):
        modules = (module.to(dtype) for module in as_modules(transducer))
        self.decoder = GreedyDecoder(*modules, transducer.blank_id, transducer.durations)

    def __call__(self, encoder, lengths):
        return self.decoder(encoder, lengths)

    def rows(self, result):
        return [(h.tokens, h.frames, h.durations) for h in result.hypotheses()]


class Failing(Echo):
    def __call__(self, encoder, lengths):
        if encoder.shape[0] == 3:
            raise RuntimeError("no room")
        return super().__call__(encoder, lengths)


class Interrupted(Echo):
    def __call__(self, encoder, lengths):
        raise KeyboardInterrupt


@pytest.fixture
def bench(small, monkeypatch, tmp_path):
    """bench(*options, **peers) runs the benchmark with small networks and these peers, and gives its rows."""
    output = tmp_path / "folder" / "record.json"

    def run(*options, **peers):
        monkeypatch.setattr(cases, "PEERS", peers)
        decode.main([*TINY, "--peers", *peers, *options, "--output", str(output), "--commit", "abc"])
        return json.loads(output.read_text())["rows"]

    run.output = output
    return run


def test_every_case_has_a_row_and_a_single_row_is_never_ragged(bench):
    rows = bench()
    found = [(row["model"], row["batch"], row["lengths"]) for row in rows]
    shapes = [(1, "equal"), (3, "equal"), (3, "ragged")]
    assert found == [(model, *shape) for model in ("rnnt", "tdt") for shape in shapes]
    for row in rows:
        assert row["ours_ms"] > 0 and row["path"] == "cpu" and row["peers"] == {}
        assert row["rounds"] >= row["least_rounds"] > 0
        # The floor is an H200's.
        assert row["floor_ms"] is None and row["distance"] is None


def test_a_peer_gets_time_ratio_and_agreement(bench, capsys):
    rows = bench("--models", "tdt", echo=Echo)
    for row in rows:
        peer = row["peers"]["echo"]
        assert peer["ratio"] == pytest.approx(peer["ms"] / row["ours_ms"])
        assert peer["agreeing_rows"] == peer["agreeing_durations"] == row["batch"]
    assert "echo" in capsys.readouterr().out


def test_slow_peers_run_where_they_were_asked_for(bench, monkeypatch):
    monkeypatch.setattr(cases, "SLOW_PEERS", {"slow"})
    options = ["--models", "rnnt", "--slow-batch", "3", "--slow-frames", "20", "--slow-lengths", "ragged"]
    rows = bench(*options, fast=Echo, slow=Echo)
    assert [list(row["peers"]) for row in rows] == [["fast"], ["fast"], ["fast", "slow"]]


def test_a_peer_that_fails_costs_its_own_figures_only(bench, capsys):
    rows = bench("--models", "rnnt", "--lengths", "equal", failing=Failing, echo=Echo)
    assert "ms" in rows[0]["peers"]["failing"]
    assert rows[1]["peers"]["failing"] == {"error": "RuntimeError: no room"}
    assert rows[1]["peers"]["echo"]["agreeing_rows"] == 3
    assert "no room" in capsys.readouterr().out


def test_a_run_that_is_killed_keeps_what_it_has(bench):
    with pytest.raises(KeyboardInterrupt):
        bench("--models", "rnnt", "--lengths", "equal", echo=Echo, interrupted=Interrupted)
    record = json.loads(bench.output.read_text())
    assert record["where"]["commit"] == "abc"
    (row,) = record["rows"]
    assert list(row["peers"]) == ["echo"]


def test_adversarial_shares_are_those_that_were_asked_for(bench):
    rows = bench("--adversarial", "--batch", "4", "--shares", "0", "0.5", "1", "--frames", "6", echo=Echo)
    shares = [row["adversarial_share"] for row in rows]
    assert shares == [0.0, 0.5, 1.0] * 2
    for row in rows:
        assert row["peers"]["echo"]["agreeing_rows"] == 4
        if row["adversarial_share"] > 0:
            assert row["rounds"] == row["least_rounds"] == 6 * cases.MAX_SYMBOLS
    assert rows[2]["labels_per_frame"] == rows[5]["labels_per_frame"] == cases.MAX_SYMBOLS


def test_rows_that_are_not_adversarial_are_found():
    good, short = Hypothesis([1] * 6, [0, 0, 1, 1, 2, 2], [0] * 6, []), Hypothesis([1], [0], [0], [])
    cases.check_bursts([good], 3, max_symbols=2)
    with pytest.raises(RuntimeError, match="row 1 emits 1 labels on 1 frames, expected 2 on each of 3"):
        cases.check_bursts([good, short], 3, max_symbols=2)


def test_an_utterance_is_the_same_in_every_batch(small):
    planted = cases.network("rnnt")
    few, many = (cases.utterances(planted, batch, 5, CPU) for batch in (2, 40))
    assert torch.equal(few, many[:2]) and many.shape == (40, 5, 72)
    assert not torch.equal(many[0], many[32])


def test_ragged_lengths_fill_the_batch_in_one_row_at_least():
    lengths = cases.row_lengths("ragged", 50, 100)
    assert lengths[0] == 100 and int(lengths.min()) >= 50 and len(set(lengths.tolist())) > 10
    assert cases.row_lengths("equal", 2, 9).tolist() == [9, 9]


def test_quick_and_adversarial_only_change_defaults():
    quick = decode.arguments(["--quick", "--batch", "7"])
    assert (quick.batch, quick.dtypes, quick.frames) == ([7], ["bf16"], [150])
    both = decode.arguments(["--quick", "--adversarial", "--device", "cuda"])
    assert (both.batch, both.repeats, both.peers) == ([32], 5, ["nemo"])
    assert decode.arguments(["--device", "cpu"]).peers == ["nemo-eager", "transformers"]
