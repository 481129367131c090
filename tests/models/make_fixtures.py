"""Write the fixtures of tests/models: tiny random models saved by the real packages, and what those compute.

    python tests/models/make_fixtures.py nemo --nemo-root DIR [--prepare MODULE:FUNCTION]
    python tests/models/make_fixtures.py transformers

`nemo` needs NeMo 3.0.0 with its ASR dependencies, and Python 3.11. DIR is put on the path. FUNCTION is called
before the import, for an environment that lacks a package which NeMo imports and these models do not use.
`transformers` needs transformers 5.17 with librosa. Each fixture is a checkpoint and expected.safetensors:
features, encoder output, tokens, frames and durations of every utterance of waveform.py, computed in float32
on the CPU, one utterance at a time.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

import torch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("package", choices=("nemo", "transformers"))
    parser.add_argument("--nemo-root", help="folder that holds the nemo package")
    parser.add_argument("--prepare", help="MODULE:FUNCTION to call before NeMo is imported")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    sys.path.insert(0, str(Path(__file__).parent))
    if arguments.package == "transformers":
        importlib.import_module("transformers_fixtures").make_transformers()
        return
    if arguments.nemo_root:
        sys.path.insert(0, arguments.nemo_root)
    if arguments.prepare:
        module, _, function = arguments.prepare.partition(":")
        getattr(importlib.import_module(module), function)()
    importlib.import_module("nemo_fixtures").make_nemo()


if __name__ == "__main__":
    main()
