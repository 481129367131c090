"""Safetensors files, whole or in shards."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..errors import CheckpointError

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"


def read_safetensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of model.safetensors or of the shards its index names; CheckpointError if one is broken."""
    if (folder / WHOLE).exists():
        return _load(folder / WHOLE)
    index = folder / INDEX
    if not index.exists():
        raise CheckpointError(f"{folder}: neither {WHOLE} nor {INDEX} is there")
    try:
        shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{index}: not an index of safetensors files") from error
    tensors: dict[str, Tensor] = {}
    for shard in shards:
        if Path(shard).name != shard:
            raise CheckpointError(f"{index}: shard {shard!r} must be a file name in the same folder")
        tensors.update(_load(folder / shard))
    return tensors


def _load(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        reason = "missing" if isinstance(error, FileNotFoundError) else f"not a safetensors file ({error})"
        raise CheckpointError(f"{path}: {reason}") from error
