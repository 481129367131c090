"""Whole models: checkpoints, tokenizers, `load`."""

from .checkpoint import load
from .model import Hypothesis, SpeechModel
from .tokenizer import Tokenizer
from .transcription import Transcript, Word

__all__ = ["Hypothesis", "SpeechModel", "Tokenizer", "Transcript", "Word", "load"]
