"""Checkpoints made from the fixtures with something changed, and what a test says about them."""

import io
import json
import shutil
import tarfile
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from rnnt_fastdecode import CheckpointError, load

FIXTURES = Path(__file__).parent / "fixtures"


def unpack(name):
    with tarfile.open(FIXTURES / name / "model.nemo") as archive:
        return {
            member.name.removeprefix("./"): archive.extractfile(member).read()
            for member in archive
            if member.isfile()
        }


def pack(path, members, mode="w"):
    with tarfile.open(path, mode) as archive:
        for name, data in members.items():
            entry = tarfile.TarInfo(f"./{name}")
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return path


def edited_nemo(path, name="nemo_tdt", config=None, weights=None):
    """A copy of a fixture with its configuration and its weights changed by the two functions."""
    members = unpack(name)
    if config is not None:
        values = yaml.safe_load(members["model_config.yaml"])
        config(values)
        members["model_config.yaml"] = yaml.safe_dump(values).encode()
    if weights is not None:
        state = torch.load(io.BytesIO(members["model_weights.ckpt"]), weights_only=True)
        state = weights(state) or state
        buffer = io.BytesIO()
        torch.save(state, buffer)
        members["model_weights.ckpt"] = buffer.getvalue()
    return pack(path, members)


def edited_folder(path, name, config=None, weights=None):
    shutil.copytree(FIXTURES / name, path)
    if config is not None:
        values = json.loads((path / "config.json").read_text())
        config(values)
        (path / "config.json").write_text(json.dumps(values))
    if weights is not None:
        state = load_file(path / "model.safetensors")
        save_file(weights(state) or state, path / "model.safetensors")
    return path


def assert_works(model):
    samples = torch.sin(torch.arange(16000) * 0.1)[None]
    encoded, lengths = model.encode(samples, torch.tensor([16000]))
    assert encoded.dtype == model.dtype
    for head in model.heads:
        assert len(model.decode(encoded, lengths, head)) == 1


def assert_refused(path, *parts):
    """One line that names the path."""
    with pytest.raises(CheckpointError) as caught:
        load(path, device="cpu")
    message = str(caught.value)
    assert "\n" not in message and str(path) in message
    for part in parts:
        assert part in message
