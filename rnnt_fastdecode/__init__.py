"""Exact greedy decoding and cache-aware streaming for transducer speech recognition.

The names below are imported when they are first used, so that the command line starts without loading torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .encoder import FastConformer, FastConformerConfig
    from .errors import ArgumentError, AudioError, CaptureError, CheckpointError, RnntFastdecodeError
    from .models import SpeechModel, Transcript, load
    from .transducer import (
        CtcHead,
        DecodeResult,
        DecodeState,
        GreedyDecoder,
        GruPredictor,
        Joint,
        LstmPredictor,
        StatelessPredictor,
        TransducerHead,
    )

_HOMES = {
    "FastConformer": "encoder",
    "FastConformerConfig": "encoder",
    "ArgumentError": "errors",
    "AudioError": "errors",
    "CaptureError": "errors",
    "CheckpointError": "errors",
    "RnntFastdecodeError": "errors",
    "SpeechModel": "models",
    "Transcript": "models",
    "load": "models",
    "CtcHead": "transducer",
    "DecodeResult": "transducer",
    "DecodeState": "transducer",
    "GreedyDecoder": "transducer",
    "GruPredictor": "transducer",
    "Joint": "transducer",
    "LstmPredictor": "transducer",
    "StatelessPredictor": "transducer",
    "TransducerHead": "transducer",
}

__all__ = sorted(_HOMES)
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
