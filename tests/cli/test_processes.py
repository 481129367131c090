"""The command line as a process: pipes, terminals, locales, signals."""

import os
import signal
import time

import pytest

HELP_AND_MODULES = """
import sys
from rnnt_fastdecode.cli import main
try:
    main(["transcribe", "--help"])
finally:
    print("torch" in sys.modules)
"""


@pytest.fixture
def on_folder(tmp_path, tiny_model_folder):
    """Arguments that transcribe the test's folder, one recording after the other."""
    return ["transcribe", tmp_path, "--model", tiny_model_folder, "--device", "cpu", "--batch-size", "1"]


def test_help_starts_without_torch(start):
    process = start(program=HELP_AND_MODULES)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and "--lookahead" in out and out.endswith("False\n")


@pytest.mark.parametrize("locale", ["C.UTF-8", "C"])
def test_file_names_of_any_bytes_are_printed(start, on_folder, tmp_path, wav, locale):
    names = [b"caf\xe9.wav", "録音.wav".encode(), b"tab\tnew\nline.wav"]
    for index, name in enumerate(names):
        os.rename(wav(f"{index}.wav"), os.path.join(os.fsencode(tmp_path), name))
    environment = {"LC_ALL": locale, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    process = start(*on_folder, env=environment, text=False)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0 and err == b""
    assert len(out.splitlines()) == 3
    assert b"tab\\tnew\\nline.wav\t" in out


def test_a_reader_that_leaves_early_is_no_error(start, on_folder, wav):
    for index in range(4):
        wav(f"{index}.wav", 0.5)
    process = start(*on_folder)
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait(timeout=120) in (1, -signal.SIGPIPE)


def test_control_c_ends_with_one_line(start, on_folder, wav):
    for index in range(200):
        wav(f"{index}.wav", 2.0, index)
    # Whoever runs the tests may ignore the signal, as nohup does: a child would inherit that.
    process = start(*on_folder, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    assert process.stdout.readline()
    process.send_signal(signal.SIGINT)
    began = time.monotonic()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and time.monotonic() - began < 20
    assert err.strip() == "rnnt-fastdecode: interrupted"


def test_a_terminal_gets_a_progress_bar_and_a_pipe_none(start, on_folder, wav):
    pty = pytest.importorskip("pty")
    for index in range(6):
        wav(f"{index}.wav", 0.5, index)
    leader, follower = pty.openpty()
    process = start(*on_folder, stderr=follower)
    os.close(follower)
    out = process.stdout.read()
    seen = b""
    try:
        while part := os.read(leader, 65536):
            seen += part
    except OSError:
        # What reading a terminal gives once nobody writes to it any more.
        os.close(leader)
    process.stdout.close()
    assert process.wait(timeout=60) == 0
    assert b"Transcribing" in seen and b"6 of 6 recordings" in seen
    assert len(out.splitlines()) == 6 and "Transcribing" not in out and "\033" not in out

    piped = start(*on_folder)
    assert piped.communicate(timeout=60)[1] == ""
