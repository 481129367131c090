"""Transducer decoding: modules, state, greedy decoder, results."""

from .decoder import GreedyDecoder
from .modules import CtcHead, GruPredictor, Joint, LstmPredictor, StatelessPredictor, TransducerHead
from .results import DecodeResult, Hypothesis
from .state import DecodeState

__all__ = [
    "CtcHead",
    "DecodeResult",
    "DecodeState",
    "GreedyDecoder",
    "GruPredictor",
    "Hypothesis",
    "Joint",
    "LstmPredictor",
    "StatelessPredictor",
    "TransducerHead",
]
