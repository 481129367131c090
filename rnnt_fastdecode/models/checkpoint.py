"""`load`: find out what a path is and build the model."""

from __future__ import annotations

from os import PathLike
from pathlib import Path

import torch

from ..errors import CheckpointError
from .blueprint import Blueprint, build
from .config_reader import read_json
from .model import SpeechModel
from .native import FORMAT, read_native
from .nemo import read_nemo
from .transformers import read_transformers

BUNDLED = Path(__file__).parent / "bundled"


def load(
    path_or_name: str | PathLike[str] = "bundled",
    dtype: torch.dtype | str = "auto",
    device: torch.device | str | None = None,
) -> SpeechModel:
    """Load a speech recogniser for inference; NeMo and transformers need not be installed.

    Parameters
    ----------
    path_or_name: a .nemo file, a directory saved by transformers (Parakeet CTC, RNN-T, TDT; Nemotron
        streaming), a directory of this package, or "bundled" for the model that comes with it.
    dtype: "auto" keeps the type the weights are stored in; or torch.float32, torch.bfloat16, torch.float16 or
        their names. Features are always computed in float32.
    device: None = the GPU if there is one and the CUDA ops are built, else the CPU.

    Raises
    ------
    CheckpointError: the path is missing, broken, of an unknown kind or architecture, or its weights do not
        fit its configuration.
    ArgumentError: `dtype` or `device` is not one.
    """
    path = BUNDLED if path_or_name == "bundled" else Path(path_or_name)
    return build(read_blueprint(path), dtype, device)


def read_blueprint(path: Path) -> Blueprint:
    """What the checkpoint at `path` says, whichever format it has."""
    if path.is_file():
        return read_nemo(path)
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such file or directory")
    values = read_json(path / "config.json")
    if "format" not in values:
        return read_transformers(path, values)
    if values["format"] != FORMAT:
        raise CheckpointError(f"{path / 'config.json'}: format must be {FORMAT!r}, got {values['format']!r}")
    return read_native(path, values)
