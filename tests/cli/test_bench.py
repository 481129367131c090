"""`rnnt-fastdecode bench` as a user meets it: a table on stdout, JSON where wanted, one line for a fault."""

import json

import pytest
from cli.conftest import Outcome

from rnnt_fastdecode.cli import main


def test_a_table_has_a_line_for_each_batch(run):
    outcome = run("bench", "--batch", "1,3", "--seconds", "1.6")
    heading, names, *lines = outcome.out.splitlines()
    assert (outcome.code, outcome.err) == (0, "")
    assert heading.startswith("tiny, rnnt head, float32, on ") and "1.6 s of audio, 20 frames" in heading
    assert names.split()[:3] == ["B", "decode", "ms"]
    assert [line.split()[0] for line in lines] == ["1", "3"]
    assert all(line.endswith("  cpu") for line in lines)


def test_json_holds_the_figures_and_where_they_come_from(run, wav, tmp_path):
    output = tmp_path / "figures.json"
    recording = wav("a.wav", 1.0)
    outcome = run(
        "bench", recording, "--batch", "2", "--frames", "7", "--head", "tdt", "--dtype", "float32",
        "--json", output,
    )  # fmt: skip
    assert outcome.code == 0
    record = json.loads(output.read_text())
    assert set(record["where"]) >= {"device", "torch", "rnnt_fastdecode"}
    assert record["settings"] == {
        "model": "tiny", "head": "tdt", "dtype": "float32", "recordings": [recording],
    }  # fmt: skip
    (row,) = record["rows"]
    assert (row["batch"], row["frames"], row["path"]) == (2, 7, "cpu")
    assert row["seconds"] == pytest.approx(7 * 0.08)
    assert row["decode_ms"] > 0 and row["first_ms"] > 0 and row["encode_ms"] > 0
    assert row["ms_per_utterance"] == pytest.approx(row["decode_ms"] / 2)
    assert row["decode_rtfx"] == pytest.approx(2 * row["seconds"] / row["decode_ms"] * 1e3)
    assert row["decode_share"] == pytest.approx(row["decode_ms"] / row["encode_ms"])


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--batch", "1,x"], "--batch '1,x'; expected batch sizes such as 1,8,32"),
        (["--batch", "0"], "--batch '0'"),
        (["--frames", "0"], "--frames"),
        (["--seconds", "1", "--frames", "5"], "--seconds and --frames exclude each other"),
        (["--head", "ctc"], "--head"),
        (["--json", "no/such/folder/x.json"], "--json no/such/folder/x.json: No such file"),
        (["--model", "no-such-model"], "no-such-model"),
        (["missing.wav"], "missing.wav: No such file"),
    ],
)
def test_a_wrong_argument_costs_one_line(run, arguments, words):
    outcome = run("bench", *arguments)
    assert outcome.code == 1 and outcome.out == ""
    assert len(outcome.err.splitlines()) == 1 and words in outcome.err


def test_a_batch_beyond_the_memory_ends_with_one_line_and_keeps_the_others(run, monkeypatch, tmp_path):
    monkeypatch.setattr("rnnt_fastdecode.bench.attention_bytes", lambda model, rows, seconds: rows)
    monkeypatch.setattr("rnnt_fastdecode.bench.available_bytes", lambda device: 2)
    output = tmp_path / "figures.json"
    outcome = run("bench", "--batch", "1,3", "--frames", "5", "--json", output)
    assert outcome.code == 1 and len(outcome.out.splitlines()) == 3
    assert outcome.err.startswith("rnnt-fastdecode: --batch 3: not enough memory on cpu")
    assert len(json.loads(output.read_text())["rows"]) == 1


@pytest.mark.gpu
def test_the_gpu_is_measured_without_asking(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["bench", "--batch", "1,4", "--seconds", "2"])
    outcome = Outcome(stopped.value.code, *capsys.readouterr())
    assert outcome.code == 0 and len(outcome.out.splitlines()) == 4
    assert all("cuda" in line for line in outcome.out.splitlines()[2:])
