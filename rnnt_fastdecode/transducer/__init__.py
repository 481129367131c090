"""Transducer decoding: modules, state, greedy decoder, results."""

from .modules import CtcHead, Joint, LstmPredictor, StatelessPredictor, TransducerHead

__all__ = ["CtcHead", "Joint", "LstmPredictor", "StatelessPredictor", "TransducerHead"]
