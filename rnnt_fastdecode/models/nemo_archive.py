"""NeMo's .nemo archives: a tar with model_config.yaml, model_weights.ckpt and the tokenizer's files."""

from __future__ import annotations

import io
import re
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
import yaml
from torch import Tensor

from ..errors import CheckpointError

CONFIG, WEIGHTS = "model_config.yaml", "model_weights.ckpt"


@dataclass
class NemoArchive:
    """What a .nemo file holds: configuration, weights by NeMo's names, tokenizer files by member name."""

    config: dict[str, Any]
    weights: dict[str, Tensor]
    files: dict[str, bytes]


def read_archive(path: Path) -> NemoArchive:
    """Read a .nemo file without unpacking it; CheckpointError for anything broken. No pickled code is run."""
    source = str(path)
    try:
        archive, compressed = _open(path)
        with archive:
            members = {member.name.removeprefix("./"): member for member in archive if member.isfile()}
            for name in (CONFIG, WEIGHTS):
                if name not in members:
                    raise CheckpointError(f"{source}: not a .nemo file, {name} is missing")
            files = {
                name: _stream(archive, member).read()
                for name, member in members.items()
                if name == CONFIG or name.endswith((".model", ".txt"))
            }
            config = _parse_yaml(files[CONFIG], source)
            stream = _stream(archive, members[WEIGHTS])
            # torch.load jumps about in the file, which a gzip stream answers by decompressing from the start.
            weights = _load_weights(io.BytesIO(stream.read()) if compressed else stream, source)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise CheckpointError(f"{source}: not a readable .nemo file ({_first_line(error)})") from error
    return NemoArchive(config, weights, files)


def _open(path: Path) -> tuple[tarfile.TarFile, bool]:
    """NeMo writes plain tar; older versions wrote gzip."""
    try:
        return tarfile.open(path, "r:"), False
    except tarfile.ReadError:
        return tarfile.open(path, "r:gz"), True


def _stream(archive: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    stream = archive.extractfile(member)
    if stream is None:
        raise EOFError(f"{member.name} cannot be read")
    return stream


def _load_weights(stream: IO[bytes], source: str) -> dict[str, Tensor]:
    try:
        weights = torch.load(stream, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(f"{source}: {WEIGHTS} cannot be read ({_first_line(error)})") from error
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise CheckpointError(f"{source}: {WEIGHTS} must hold a dict of tensors")
    return dict(weights)


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _parse_yaml(data: bytes, source: str) -> dict[str, Any]:
    try:
        content = yaml.safe_load(data)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{source}: {CONFIG} is not YAML ({_first_line(error)})") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{source}: {CONFIG} must hold a mapping")
    return _interpolate(content, content)


def _interpolate(value: Any, root: dict[str, Any], depth: int = 0) -> Any:
    """Replace OmegaConf's ${a.b.c}; what cannot be resolved stays as it is."""
    if isinstance(value, dict):
        return {key: _interpolate(item, root, depth) for key, item in value.items()}
    if isinstance(value, list):
        return [_interpolate(item, root, depth) for item in value]
    match = re.fullmatch(r"\$\{([\w.]+)\}", value) if isinstance(value, str) else None
    if match is None or depth > 8:
        return value
    found: Any = root
    for part in match[1].split("."):
        if not isinstance(found, dict) or part not in found:
            return value
        found = found[part]
    return _interpolate(found, root, depth + 1)
