"""Calling the command line, in this process and in others."""

import os
import subprocess
import sys
from dataclasses import dataclass

import pytest
import soundfile

from rnnt_fastdecode.cli import main

PROGRAM = "from rnnt_fastdecode.cli import main; main()"


@dataclass
class Outcome:
    code: int
    out: str
    err: str


@pytest.fixture
def run(capsys, tiny_model_folder):
    """run(*arguments) calls the program in this process, with the tiny model on the CPU."""

    def call(*arguments) -> Outcome:
        if arguments and arguments[0] in ("transcribe", "bench"):
            arguments = (*arguments, "--device", "cpu")
            if "--model" not in arguments:
                arguments = (*arguments, "--model", tiny_model_folder)
        with pytest.raises(SystemExit) as stopped:
            main([os.fspath(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Outcome(stopped.value.code, captured.out, captured.err)

    return call


@pytest.fixture
def start(apart):
    """start(*arguments, **options) starts the program as a process and gives its Popen."""

    def call(*arguments, program=PROGRAM, env=None, **options) -> subprocess.Popen:
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **options}
        command = [sys.executable, "-c", program, *arguments]
        return subprocess.Popen(command, cwd=apart["cwd"], env={**apart["env"], **(env or {})}, **options)

    return call


@pytest.fixture
def wav(tmp_path, babble):
    """wav(name, seconds) writes a recording and gives its path."""

    def write(name: str, seconds: float = 1.0, seed: int = 0) -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, babble(seconds, seed), 16000)
        return str(path)

    return write
