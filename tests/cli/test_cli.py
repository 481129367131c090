"""The command line as a user meets it: results on stdout, one line for each fault, never a traceback."""

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile

from rnnt_fastdecode.cli import main


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_the_program_explains_itself(run, arguments):
    outcome = run(*arguments)
    assert outcome.code == 0 and "transcribe" in outcome.out and outcome.err == ""


def test_the_version_is_shown(run):
    outcome = run("--version")
    assert outcome.code == 0 and re.search(r"\d+\.\d+\.\d+", outcome.out)


def test_info_tells_what_works_here(run):
    outcome = run("info")
    assert outcome.code == 0
    for name in ("torch", "built", "CPU ops", "CUDA ops", "GPU", "decoding on CPU"):
        assert re.search(rf"^{name}", outcome.out, re.MULTILINE)
    assert re.search(r"^decoding on CPU: +C\+\+ loop", outcome.out, re.MULTILINE)


@pytest.mark.gpu
def test_info_tells_that_decoding_stays_on_the_gpu(run):
    outcome = run("info")
    assert outcome.code == 0
    assert re.search(r"^CUDA ops: +loaded$", outcome.out, re.MULTILINE)
    assert re.search(
        r"^decoding on GPU: one kernel with the weights in shared memory", outcome.out, re.MULTILINE
    )


def test_the_sample_is_transcribed_without_files(run, sample_text):
    outcome = run("transcribe", "--model", "bundled")
    assert outcome.code == 0
    assert outcome.out == sample_text + "\n"
    assert "rnnt-fastdecode transcribe recording.wav" in outcome.err


def test_one_recording_gives_one_bare_line(run, wav, tiny_model):
    path = wav("a.wav")
    outcome = run("transcribe", path)
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out == tiny_model.transcribe([path])[0].text + "\n"


def test_several_recordings_give_lines_with_names_in_order(run, wav, tiny_model):
    paths = [wav("long.wav", 3.0), wav("short.wav", 0.5, 1), wav("middle.wav", 1.5, 2)]
    outcome = run("transcribe", *paths, "--batch-size", "2")
    expected = [f"{path}\t{t.text}" for path, t in zip(paths, tiny_model.transcribe(paths), strict=True)]
    assert outcome.code == 0 and outcome.out.splitlines() == expected


def test_a_broken_file_costs_one_line_and_the_others_are_transcribed(run, wav, tmp_path):
    (tmp_path / "bad.wav").write_bytes(b"no recording")
    outcome = run("transcribe", wav("a.wav"), tmp_path / "bad.wav", tmp_path / "missing.wav", wav("b.wav"))
    assert outcome.code == 1
    assert [os.path.basename(line.split("\t")[0]) for line in outcome.out.splitlines()] == ["a.wav", "b.wav"]
    faults = outcome.err.splitlines()
    assert len(faults) == 2
    assert "bad.wav" in faults[0] + faults[1] and "missing.wav: No such file" in outcome.err
    assert all(line.startswith("rnnt-fastdecode: ") for line in faults)


def test_json_has_a_line_for_each_recording_with_words_and_errors(run, wav, tmp_path):
    (tmp_path / "bad.wav").write_bytes(b"")
    outcome = run("transcribe", wav("a.wav"), tmp_path / "bad.wav", "--format", "json")
    first, second = map(json.loads, outcome.out.splitlines())
    assert outcome.code == 1
    assert first["words"] and set(first["words"][0]) == {"text", "start", "end", "confidence"}
    assert "empty" in second["error"] and second["text"] == ""


@pytest.mark.parametrize("name", ["srt", "vtt"])
def test_subtitles_of_one_recording_go_to_stdout(run, wav, name):
    outcome = run("transcribe", wav("a.wav"), "--format", name)
    assert outcome.code == 0 and " --> " in outcome.out


def test_subtitles_of_several_recordings_need_a_folder(run, wav):
    outcome = run("transcribe", wav("a.wav"), wav("b.wav"), "--format", "srt")
    assert outcome.code == 1 and outcome.out == "" and "--output-dir" in outcome.err


def test_folders_are_searched_and_mirrored(run, wav, tmp_path):
    wav("in/x/one.wav"), wav("in/y/one.wav"), wav("in/two.FLAC")
    (tmp_path / "in" / "notes.txt").write_text("no recording")
    outcome = run("transcribe", tmp_path / "in", "--format", "vtt", "--output-dir", tmp_path / "out")
    assert (outcome.code, outcome.out, outcome.err) == (0, "", "")
    written = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.*"))
    assert written == ["two.vtt", "x/one.vtt", "y/one.vtt"]


def test_patterns_are_expanded(run, wav, tmp_path):
    wav("a1.wav"), wav("a2.wav"), wav("b.wav"), wav("deep/down/a3.wav")
    outcome = run("transcribe", tmp_path / "**" / "a*.wav")
    assert [line.split("\t")[0].rsplit("/", 1)[1] for line in outcome.out.splitlines()] == [
        "a1.wav",
        "a2.wav",
        "a3.wav",
    ]


def test_a_file_with_brackets_in_its_name_is_itself(run, wav):
    assert run("transcribe", wav("a[1].wav")).code == 0


def test_an_empty_folder_and_an_idle_pattern_cost_a_line_each(run, wav, tmp_path):
    (tmp_path / "empty").mkdir()
    outcome = run("transcribe", tmp_path / "empty", tmp_path / "*.nothing", wav("a.wav"))
    assert outcome.code == 1 and len(outcome.err.splitlines()) == 2 and outcome.out.count("\n") == 1


def test_a_folder_that_cannot_be_read_costs_a_line(run, wav, tmp_path, monkeypatch):
    scandir = os.scandir
    wav("in/a.wav"), wav("in/secret/b.wav")

    def guarded(folder):
        if os.path.basename(folder) == "secret":
            raise PermissionError(13, "Permission denied", folder)
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", guarded)
    outcome = run("transcribe", tmp_path / "in")
    assert outcome.code == 1 and outcome.out.count("\n") == 1
    assert len(outcome.err.splitlines()) == 1 and "secret: Permission denied" in outcome.err


def test_nothing_to_do_needs_no_model(run, tmp_path):
    outcome = run("transcribe", tmp_path, "--model", tmp_path / "no-model")
    assert outcome.code == 1 and "no-model" not in outcome.err


def test_output_goes_to_a_file(run, wav, tmp_path):
    outcome = run("transcribe", wav("a.wav"), wav("b.wav"), "--output", tmp_path / "all.txt")
    assert (outcome.code, outcome.out) == (0, "")
    assert len((tmp_path / "all.txt").read_text().splitlines()) == 2


def test_a_recording_is_never_overwritten(run, wav):
    path = wav("a.wav")
    before = Path(path).read_bytes()
    outcome = run("transcribe", path, "--output", path)
    assert outcome.code == 1 and "--output" in outcome.err
    assert Path(path).read_bytes() == before


def test_two_recordings_never_share_an_output_file(run, wav, tmp_path):
    outcome = run("transcribe", wav("x/a.wav"), wav("y/a.wav"), "--output-dir", tmp_path / "out")
    assert outcome.code == 1 and "both" in outcome.err and not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", ["--output", "--output-dir"])
def test_an_output_that_cannot_be_written_costs_a_line(run, wav, tmp_path, option):
    (tmp_path / "file").write_text("")
    outcome = run("transcribe", wav("a.wav"), option, tmp_path / "file" / "below")
    assert outcome.code == 1 and len(outcome.err.splitlines()) == 1 and option in outcome.err


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--head", "aed"], "--head"),
        (["--format", "doc"], "--format"),
        (["--batch-size", "0"], "--batch-size"),
        (["--dtype", "int8"], "--dtype"),
        (["--no-such-option"], "--no-such-option"),
        (["--context", "70"], "--context"),
        (["--context", "a,b"], "--context"),
        (["--context", "-5,0"], "context"),
        (["--context", "70,13", "--lookahead", "6"], "--lookahead and --context"),
        (["--lookahead", "5"], "(13, 6, 1, 0)"),
        (["--output", "a", "--output-dir", "b"], "--output and --output-dir"),
        (["--model", "no-such-model"], "no-such-model"),
    ],
)
def test_a_wrong_argument_costs_one_line(run, wav, arguments, words):
    outcome = run("transcribe", wav("a.wav"), *arguments)
    assert outcome.code == 1 and outcome.out == ""
    assert len(outcome.err.splitlines()) == 1 and words in outcome.err
    assert outcome.err.startswith("rnnt-fastdecode: ")


@pytest.mark.parametrize("device", ["tpu9000", "cuda:99", "meta"])
def test_a_device_that_is_not_there_costs_one_line(capsys, wav, tiny_model_folder, device):
    with pytest.raises(SystemExit) as stopped:
        main(["transcribe", wav("a.wav"), "--model", str(tiny_model_folder), "--device", device])
    lines = capsys.readouterr().err.splitlines()
    assert stopped.value.code == 1 and len(lines) == 1
    assert lines[0].startswith("rnnt-fastdecode: device ") and device in lines[0]


def test_an_unknown_command_costs_one_line(run):
    outcome = run("transscribe")
    assert outcome.code == 1 and len(outcome.err.splitlines()) == 1 and "transscribe" in outcome.err


def test_an_unexpected_error_costs_one_line(run, wav, monkeypatch):
    def fail(*arguments):
        raise RuntimeError("something\nhappened")

    monkeypatch.setattr("rnnt_fastdecode.models.transcription.transcribe", fail)
    outcome = run("transcribe", wav("a.wav"))
    assert outcome.code == 1
    assert outcome.err.startswith("rnnt-fastdecode: RuntimeError: something happened (")


@pytest.mark.parametrize("lookahead, context", [("6", "70,6"), ("0", "70,0")])
def test_lookahead_chooses_among_the_contexts_of_the_model(run, wav, lookahead, context):
    path = wav("a.wav", 4.0)
    chosen = run("transcribe", path, "--lookahead", lookahead, "--format", "json")
    assert chosen.code == 0
    assert chosen.out == run("transcribe", path, "--context", context, "--format", "json").out


def test_many_recordings_of_any_rate_and_format_in_one_call(run, tmp_path, babble):
    for rate in (8000, 22050, 48000):
        for suffix in ("wav", "flac", "ogg", "mp3"):
            stereo = np.stack([babble(1.0, rate=rate)] * 2, axis=1)
            soundfile.write(tmp_path / f"{rate}.{suffix}", stereo, rate)
    outcome = run("transcribe", tmp_path, "--format", "json")
    records = [json.loads(line) for line in outcome.out.splitlines()]
    assert outcome.code == 0 and len(records) == 12
    assert all(abs(record["duration"] - 1.0) < 0.1 for record in records)
