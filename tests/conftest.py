"""What all tests share: skipping without a GPU, the folder of real recordings, a tiny model."""

import importlib
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
# Behind everything else: an installed package goes before the source tree, which has `training` besides.
sys.path.append(str(ROOT))


def pytest_collection_modifyitems(config, items):
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked and not importlib.import_module("torch").cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture
def apart(tmp_path):
    """Options for a subprocess that must import the package under test, installed or not, from where it is.

    In the working folder, which Python searches first, could lie a source tree whose ops are not built.
    """
    package = Path(importlib.import_module("rnnt_fastdecode").__file__).parent.parent
    return {"cwd": tmp_path, "env": {**os.environ, "PYTHONPATH": str(package)}}


@pytest.fixture(scope="module")
def one_thread():
    """For tiny models: their matrices are too small to be worth sharing."""
    torch = importlib.import_module("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def recordings_folder():
    """Real recordings, not part of the repository: the folder that RNNT_FASTDECODE_TEST_DATA names."""
    folder = os.environ.get("RNNT_FASTDECODE_TEST_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("RNNT_FASTDECODE_TEST_DATA names no folder with recordings")
    return Path(folder)


@pytest.fixture(scope="session")
def sample_text():
    """What is said in the built-in sample."""
    return "enter seven two five march third nineteen ninety eight t o r c h"


@pytest.fixture(scope="session")
def bundled_folder():
    """The model that comes with the package."""
    return Path(importlib.import_module("rnnt_fastdecode.models").__file__).parent / "bundled"


def tiny_checkpoint(folder: Path, seed: int = 0) -> Path:
    """Write a native checkpoint with random weights: three heads, characters, in float32."""
    import torch
    from safetensors.torch import save_file

    from rnnt_fastdecode import (
        CtcHead,
        FastConformer,
        FastConformerConfig,
        Joint,
        LstmPredictor,
        TransducerHead,
    )
    from rnnt_fastdecode.audio.mel import LogMel, MelConfig

    letters = [" ", *"abcdefghijklmnopqrstuvwxyz'"]
    vocab_size, width, blank_id = len(letters) + 1, 16, len(letters)
    features = MelConfig(num_mels=16, normalize=None)
    encoder = FastConformerConfig(
        feat_in=16,
        d_model=width,
        num_layers=2,
        num_heads=2,
        d_ff=32,
        subsampling_channels=8,
        conv_norm="layer_norm",
        causal_conv=True,
        causal_subsampling=True,
        context_style="chunked_limited",
        contexts=((70, 13), (70, 6), (70, 1), (70, 0)),
    )
    transducer = {
        "type": "transducer",
        "predictor": {"type": "lstm", "hidden": width, "num_layers": 1},
        "joint_width": width,
        "activation": "relu",
        "vocab_size": vocab_size,
        "blank_id": blank_id,
        "max_symbols": 3,
    }
    torch.manual_seed(seed)
    modules = torch.nn.ModuleDict(
        {
            "features": LogMel(features),
            "encoder": FastConformer(encoder),
            "heads": torch.nn.ModuleDict(
                {
                    "rnnt": TransducerHead(
                        LstmPredictor(vocab_size, width, 1, width), Joint(width, width, vocab_size), blank_id
                    ),
                    "tdt": TransducerHead(
                        LstmPredictor(vocab_size, width, 1, width),
                        Joint(width, width, vocab_size, num_durations=5),
                        blank_id,
                        (0, 1, 2, 3, 4),
                    ),
                    "ctc": CtcHead(width, vocab_size, blank_id),
                }
            ),
        }
    )
    with torch.no_grad():
        for head in ("rnnt", "tdt"):
            # Blank wins often enough that time goes on, and letters often enough that there is text.
            modules["heads"][head].joint.output.weight.mul_(6.0)
            modules["heads"][head].joint.output.bias[blank_id] += 1.0
        modules["heads"]["ctc"].output.weight.mul_(6.0)
    config = {
        "format": "rnnt_fastdecode-1",
        "name": "tiny",
        "features": asdict(features),
        "encoder": asdict(encoder),
        "heads": {
            "rnnt": {**transducer, "durations": []},
            "tdt": {**transducer, "durations": [0, 1, 2, 3, 4]},
            "ctc": {"type": "ctc", "vocab_size": vocab_size, "blank_id": blank_id},
        },
        "default_head": "rnnt",
        "tokenizer": {"type": "characters", "labels": letters},
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(
        {key: value.contiguous() for key, value in modules.state_dict().items()}, folder / "model.safetensors"
    )
    return folder


@pytest.fixture(scope="session")
def tiny_model_folder(tmp_path_factory):
    """A native checkpoint with random weights."""
    return tiny_checkpoint(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def tiny_model(tiny_model_folder):
    """That checkpoint, loaded on the CPU."""
    from rnnt_fastdecode import load

    return load(tiny_model_folder, device="cpu")


@pytest.fixture(scope="session")
def babble():
    """babble(seconds, seed): float32 samples at 16 kHz whose sound changes all the time."""

    def make(seconds: float, seed: int = 0, rate: int = 16000) -> np.ndarray:
        random = np.random.default_rng(seed)
        count = round(seconds * rate)
        steps = np.arange(0, count + rate, rate // 10)
        pitch = np.interp(np.arange(count), steps, random.uniform(80, 3000, len(steps)))
        loudness = np.interp(np.arange(count), steps, random.uniform(0, 0.5, len(steps)))
        return (loudness * np.sin(2 * np.pi * np.cumsum(pitch) / rate)).astype(np.float32)

    return make
