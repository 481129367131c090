"""The examples of the README run as they stand."""

import re
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

README = ROOT / "README.md"
EXAMPLES = re.findall(
    r"<!-- runs in the tests -->\n```python\n(.*?)```", README.read_text("utf-8"), re.DOTALL
)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.splitlines()[-1][:40])
def test_an_example_runs(example, tmp_path, monkeypatch, bundled_folder):
    monkeypatch.chdir(tmp_path)
    if "sample.wav" in example:
        shutil.copy(bundled_folder / "sample.wav", tmp_path)
    exec(compile(example, str(README), "exec"), {})


def test_there_are_examples():
    assert len(EXAMPLES) == 3
