"""FastConformer: configuration, layers and the offline pass."""

from .config import FastConformerConfig
from .fastconformer import FastConformer

__all__ = ["FastConformer", "FastConformerConfig"]
