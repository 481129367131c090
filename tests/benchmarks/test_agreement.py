"""The comparison of decoders: what is decoded, how rows that differ are judged, and that the script runs."""

import json

import pytest
import torch

from benchmarks import agreement, cases, own_decoders, scenes
from benchmarks.float64 import Float64Decoder, Paths
from benchmarks.own_decoders import Engines
from benchmarks.tally import Tally, departures, first_difference, near_tie, no_max_symbols, stale_durations
from rnnt_fastdecode.reference.decode import greedy_decode
from rnnt_fastdecode.reference.planted import plant

CPU = torch.device("cpu")
BOUND = near_tie(torch.float32)
TINY = ["--device", "cpu", "--utterances", "40", "--batch", "6"]


def row(*labels):
    """A row of (token, frame, duration) labels."""
    columns = [list(column) for column in zip(*labels, strict=True)] or [[], [], []]
    return tuple(columns)


PATH = row((5, 0, 1), (6, 1, 0), (7, 1, 2))


class TestFloat64:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    @pytest.mark.parametrize(
        "sizes, max_symbols",
        [
            ({}, 10),
            ({"durations": (0, 1, 2, 3, 4), "num_layers": 1}, 10),
            ({"durations": (0, 2, 4, 8), "blank_id": 0}, 2),
            ({"ring": True}, 3),
            ({"durations": (2,), "hidden": 80}, 10),
        ],
    )
    def test_it_is_the_reference(self, sizes, max_symbols, dtype):
        planted = plant(seed=3, **sizes)
        encoder = planted.encoder(5, 50, chains=0.1, seed=4).to(dtype)
        lengths = torch.tensor([50, 0, 1, 37, 49])
        paths = Float64Decoder(planted.transducer, CPU, dtype, max_symbols)(encoder, lengths)
        exact = planted.transducer.to(dtype).to(torch.float64)
        assert sum(len(path[0]) for path in paths.rows) > 20
        for frames, length, path, margins in zip(encoder, lengths, paths.rows, paths.margins, strict=True):
            want = greedy_decode(exact, frames.double(), int(length), max_symbols)
            durations = want.durations if "durations" in sizes else None
            assert path == (want.tokens, want.frames, durations)
            assert margins == pytest.approx(want.margins, rel=1e-9, abs=1e-12)

    def test_other_predictors_are_refused(self):
        with pytest.raises(ValueError, match="lstm, got gru"):
            Float64Decoder(plant(predictor_kind="gru").transducer, CPU, torch.float32)

    def test_a_batch_without_frames_has_no_labels(self):
        decoder = Float64Decoder(plant().transducer, CPU, torch.float32)
        assert decoder(torch.zeros(2, 3, 64), torch.zeros(2)) == Paths(
            [([], [], None)] * 2, [[float("inf")]] * 2
        )


class TestTally:
    @pytest.mark.parametrize(
        "other, place",
        [
            (PATH, None),
            (row((4, 0, 1)), 0),
            (row((5, 0, 1), (6, 1, 0), (7, 2, 2)), 2),
            (row((5, 0, 1), (6, 1, 1), (7, 1, 2)), 1),
            (row((5, 0, 1), (6, 1, 0)), 2),
            (row(), 0),
        ],
    )
    def test_rows_part_at_the_first_label_that_differs(self, other, place):
        assert first_difference(PATH, other) == first_difference(other, PATH) == place

    def test_a_departure_is_judged_by_the_margin_where_it_happens(self):
        margins = [[1.0, 1e-7, 1.0, 2.0]]
        late = row((5, 0, 1), (6, 1, 0), (7, 1, 2), (8, 9, 0))
        other_duration = row((5, 0, 1), (6, 1, 1), (7, 1, 2))
        paths = Paths([PATH], margins)
        assert departures([PATH], paths) == [None]
        assert departures([late], paths) == [2.0]
        assert departures([other_duration], paths) == [1e-7]
        assert departures([other_duration], paths, durations=False) == [None]

    def count(self, ours, theirs, left, fault=None):
        tally = Tally()
        tally.add([ours], [theirs], left, BOUND, {"batch": 3}, fault)
        return tally

    @pytest.mark.parametrize(
        "theirs, kind",
        [
            (row((5, 0, 1), (6, 1, 0), (8, 1, 2)), "tokens"),
            (row((5, 0, 1), (6, 1, 0), (7, 3, 2)), "frames"),
            (row((5, 0, 1), (6, 1, 0), (7, 1, 1)), "durations"),
        ],
    )
    def test_a_row_differs_in_one_way(self, theirs, kind):
        tally = self.count(PATH, theirs, [[None], [1e-9]])
        found = {name: getattr(tally, name) for name in ("identical", "tokens", "frames", "durations")}
        assert found == {"identical": 0, "tokens": 0, "frames": 0, "durations": 0, kind: 1}
        assert (tally.utterances, tally.labels, tally.near_ties, tally.beyond) == (1, 3, 1, 0)

    def test_all_departures_must_be_near_ties(self):
        assert self.count(PATH, row(), [[1e-9], [BOUND / 2]]).near_ties == 1
        far = self.count(PATH, row(), [[1e-9], [2 * BOUND]])
        assert (far.near_ties, far.beyond, far.widest["beyond"]) == (0, 1, 2 * BOUND)
        assert far.examples == [{"batch": 3, "row": 0, "margins": [1e-9, 2 * BOUND], "explained": False}]

    def test_only_the_rows_that_the_other_has_count(self):
        tally = Tally()
        tally.add([PATH] * 5, [PATH] * 2, [[None] * 5], BOUND, {})
        assert (tally.utterances, tally.labels, tally.identical) == (2, 6, 2)

    def test_stale_durations_are_counted_by_their_name(self):
        stale = row((5, 0, 1), (6, 1, 0), (7, 1, 4))
        tally = self.count(PATH, stale, [[None], [None]], stale_durations)
        assert list(tally.faults.values()) == [1] and "16097" in next(iter(tally.faults))
        assert tally.near_ties == tally.beyond == 0 and tally.durations == 1
        assert self.count(PATH, row(), [[None], [9.0]], stale_durations).beyond == 1

    def test_a_burst_without_end_is_a_fault_only_after_its_last_label(self):
        ours = row((5, 0, 1), (6, 1, 0), (7, 1, 0), (8, 2, 1))
        burst = row((5, 0, 1), (6, 1, 0), (7, 1, 0), (8, 1, 0))
        early = row((5, 0, 1), (6, 1, 0), (9, 1, 0), (8, 2, 1))
        assert "max_symbols" in no_max_symbols(2)(ours, burst)
        assert no_max_symbols(2)(ours, early) == no_max_symbols(3)(ours, burst) == ""


class TestScenes:
    def test_shares_are_of_one_whole(self):
        for of_model in scenes.SCENES.values():
            assert sum(scene.share for scene in of_model) == pytest.approx(1)

    def test_utterances_are_as_many_as_asked_for_and_follow_from_the_seed(self, small):
        scene = scenes.SCENES["tdt"][0]
        planted = scene.network("tdt")
        first, second = (list(scenes.batches(scene, planted, 50, 12)) for _ in range(2))
        assert 50 <= sum(len(batch.lengths) for batch in first) < 62
        assert max(first, key=lambda batch: batch.encoder.numel()) is first[0]
        assert first[0].lengths[:3].tolist() == [150, 0, 1]
        for one, other in zip(first, second, strict=True):
            assert one.seed == other.seed and torch.equal(one.encoder, other.encoder)
        assert len({batch.seed for batch in first}) == len(first)

    def test_bursts_reach_max_symbols(self, small):
        scene = next(scene for scene in scenes.SCENES["rnnt"] if scene.ring)
        planted = scene.network("rnnt")
        engines = Engines(planted.transducer, CPU, torch.float32, scene.max_symbols)
        most = 0
        for index, batch in enumerate(scenes.batches(scene, planted, 40, 6)):
            for _, frames, _ in engines(batch.encoder, batch.lengths, index)["cpu"]:
                most = max([most, *(frames.count(frame) for frame in frames)])
        assert most == scene.max_symbols


def test_every_window_gets_its_turn_and_chunks_are_cut_at_random(monkeypatch):
    monkeypatch.setattr(own_decoders, "WINDOWS", (2, 5, 7))
    planted = plant(durations=(0, 1, 3))
    engines = Engines(planted.transducer, CPU, torch.float32, 10)
    for index in range(6):
        encoder = planted.encoder(5, 30, chains=0.1, seed=index)
        found = engines(encoder, torch.tensor([30, 0, 1, 12, 30]), index)
        assert found["chunks"] == found["cpu"] and len(found["cpu"][0][0]) > 1
    assert engines.windows == {"cpu 2": 10, "cpu 5": 10, "cpu 7": 10}


@pytest.fixture
def compare(small, tmp_path):
    """compare(*options) runs the script with small networks and gives its tallies and its other rows."""
    output = tmp_path / "folder" / "agreement.json"

    def run(*options):
        agreement.main([*TINY, *options, "--output", str(output), "--commit", "abc"])
        record = json.loads(output.read_text())
        assert record["where"]["commit"] == "abc"
        tallies = {(r["model"], r["dtype"], r["ours"], r["other"]): r for r in record["rows"] if "ours" in r}
        return tallies, [r for r in record["rows"] if "ours" not in r]

    return run


def test_ours_are_the_reference_s(compare, capsys):
    tallies, others = compare("--peers", "reference", "--dtypes", "fp32", "bf16")
    assert len(tallies) == 2 * 2 * len([("cpu", "float64"), ("cpu", "reference")] * 2 + ["float64", "chunks"])
    for (_, dtype, *_), tally in tallies.items():
        assert tally["utterances"] >= 40 and tally["labels"] > 100 and tally["beyond"] == 0
        assert dtype != "fp32" or tally["identical"] == tally["utterances"]
    assert all(other["seconds"]["reference"] > 0 and other["refused"] == {} for other in others)
    assert "cpu+chunks" in capsys.readouterr().out


def test_a_peer_without_time_left_rests(compare):
    tallies, _ = compare(
        "--peers", "reference", "--models", "rnnt", "--dtypes", "fp32", "--seconds", "reference=0"
    )
    assert all("reference" not in pair for pair in tallies)


def test_a_mistake_of_ours_is_an_error(compare, monkeypatch):
    right = Engines.__call__

    def wrong(self, encoder, lengths, index):
        found = right(self, encoder, lengths, index)
        found["chunks"][0][0].append(1)
        found["chunks"][0][1].append(1)
        return found

    monkeypatch.setattr(Engines, "__call__", wrong)
    with pytest.raises(SystemExit, match="rows differ where rounding does not explain it"):
        compare("--peers", "--models", "rnnt", "--dtypes", "fp32")


def check_peer(compare, peer):
    """fp32 with a peer on the CPU: identical but for the peer's known faults."""
    tallies, others = compare("--peers", peer, "--dtypes", "fp32")
    for model in ("rnnt", "tdt"):
        for name in ("cpu", "chunks", "float64"):
            tally = tallies[model, "fp32", name, peer]
            assert tally["labels"] > 100 and tally["near_ties"] == tally["beyond"] == 0
            assert tally["utterances"] == tally["identical"] + sum(tally["faults"].values())
    return tallies, others


def test_transformers_decodes_the_same(compare):
    pytest.importorskip("transformers", minversion="5.17")
    tallies, others = check_peer(compare, "transformers")
    assert tallies["rnnt", "fp32", "cpu", "transformers"]["faults"] == {}
    assert tallies["rnnt", "fp32", "cpu", "transformers"]["cut"] > 0
    assert any("durations 0, 1, 2" in word for words in others[1]["refused"].values() for word in words)


def test_nemo_decodes_the_same(compare):
    pytest.importorskip("nemo.collections.asr.modules.rnnt", reason="needs NeMo", exc_type=ImportError)
    tallies, others = check_peer(compare, "nemo-eager")
    assert tallies["rnnt", "fp32", "cpu", "nemo-eager"]["faults"] == {}
    (fault,) = tallies["tdt", "fp32", "cpu", "nemo-eager"]["faults"]
    assert "16097" in fault
    assert any("blank is the last" in word for words in others[0]["refused"].values() for word in words)


@pytest.mark.gpu
def test_every_engine_of_a_gpu_decodes_the_same(compare):
    tallies, others = compare("--device", "cuda", "--peers", "cpu", "reference")
    for model in ("rnnt", "tdt"):
        for dtype in ("fp32", "bf16", "fp16"):
            for engine in ("auto", "resident", "graph", "chunks"):
                for other in ("float64", "cpu", "reference"):
                    tally = tallies[model, dtype, engine, other]
                    assert tally["labels"] > 100 and tally["beyond"] == 0
                    assert dtype != "fp32" or tally["identical"] == tally["utterances"]
    for other in others:
        assert {name.split()[0] for name in other["windows"]} == {"auto", "resident", "graph"}


def test_options_name_peers_and_their_time():
    options = agreement.arguments(["--device", "cpu", "--seconds", "7", "transformers=3"])
    assert options.seconds == {"reference": 7, "transformers": 3, "nemo-eager": 7}
    assert options.batch == 64 and set(options.dtypes) == {"fp32", "bf16", "fp16"}
    on_gpu = agreement.arguments(["--device", "cuda"])
    assert on_gpu.peers[-1] == "nemo" and on_gpu.batch == 2048 and set(on_gpu.peers) < set(agreement.PEERS)
    assert set(cases.PEERS) < set(agreement.PEERS)
