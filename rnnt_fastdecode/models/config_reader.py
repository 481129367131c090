"""Read a checkpoint's configuration with errors that name the file, the field and what was expected."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import CheckpointError

_REQUIRED = object()


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; CheckpointError if there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = "missing" if isinstance(error, FileNotFoundError) else f"not readable JSON ({error})"
        raise CheckpointError(f"{path}: {reason}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: must hold a JSON object")
    return content


def is_frame_counts(value: Any) -> bool:
    """Whether `value` is a list or tuple of integers of at least 0."""
    return isinstance(value, (list, tuple)) and all(type(item) is int and item >= 0 for item in value)


class Config:
    """A mapping out of a configuration file that knows its own path in it."""

    def __init__(self, values: Mapping[str, Any], source: str, where: str = "") -> None:
        self.values = values
        self.source = source
        self.where = where

    def error(self, key: str, expected: str, got: Any) -> CheckpointError:
        return CheckpointError(f"{self.source}: {self.where}{key} must be {expected}, got {got!r}")

    def get(self, key: str, default: Any = None) -> Any:
        return self.values.get(key, default)

    def __iter__(self) -> Iterator[str]:
        return iter(self.values)

    def section(self, key: str, default: Any = _REQUIRED) -> Config:
        """The mapping under `key`; an absent or null one is `default`."""
        value = self.values.get(key)
        if value is None and default is not _REQUIRED:
            value = default
        if not isinstance(value, Mapping):
            raise self.error(key, "a mapping", value)
        return Config(value, self.source, f"{self.where}{key}.")

    def text(self, key: str) -> str:
        value = self.values.get(key)
        if not isinstance(value, str):
            raise self.error(key, "a string", value)
        return value

    def integer(self, key: str, default: Any = _REQUIRED) -> int:
        value = self.values.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.error(key, "an integer", None if value is _REQUIRED else value)
        return value

    def flag(self, key: str, default: bool) -> bool:
        value = self.values.get(key, default)
        if not isinstance(value, bool):
            raise self.error(key, "true or false", value)
        return value

    def number(self, key: str, default: Any = _REQUIRED) -> float:
        value = self.values.get(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self.error(key, "a number", None if value is _REQUIRED else value)
        return float(value)

    def expect(
        self, key: str, accept: Callable[[Any], bool], expected: str, default: Any = _REQUIRED
    ) -> None:
        """Raise CheckpointError unless the value of `key` is one that this package implements."""
        value = self.values.get(key, default)
        if value is _REQUIRED or not accept(value):
            raise self.error(key, expected, None if value is _REQUIRED else value)
