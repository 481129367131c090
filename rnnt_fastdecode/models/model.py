"""A whole speech recogniser: log-mel, encoder, heads, tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ..audio.mel import LogMel
from ..encoder import FastConformer
from ..errors import ArgumentError
from ..transducer import GreedyDecoder
from ..transducer.modules import CtcHead, TransducerHead
from ..transducer.results import Hypothesis
from .ctc import decode_ctc
from .tokenizer import Tokenizer
from .transcription import AudioInput, Transcript, transcribe

SUBSAMPLING = 8


class SpeechModel(nn.Module):
    """A speech recogniser as `load` returns it: in eval mode, for inference only.

    Attributes
    ----------
    features: LogMel, always float32.
    encoder: FastConformer.
    heads: ModuleDict from "rnnt", "tdt" and "ctc" to the heads that the checkpoint holds.
    default_head: the head used where none is asked for.
    tokenizer: Tokenizer.
    name: name of the model.
    sample_rate: samples per second of the audio it takes.
    frame_seconds: duration of an encoder frame.
    """

    def __init__(
        self,
        features: LogMel,
        encoder: FastConformer,
        heads: dict[str, TransducerHead | CtcHead],
        default_head: str,
        tokenizer: Tokenizer,
        name: str,
    ) -> None:
        super().__init__()
        if default_head not in heads:
            raise ArgumentError(f"default_head must be one of {sorted(heads)}, got {default_head!r}")
        self.features = features
        self.encoder = encoder
        self.heads = nn.ModuleDict(heads)
        self.default_head = default_head
        self.tokenizer = tokenizer
        self.name = name
        self.sample_rate = features.config.sample_rate
        self.frame_seconds = SUBSAMPLING * features.config.hop / features.config.sample_rate
        self._decoders: dict[str, GreedyDecoder] = {}

    @property
    def dtype(self) -> torch.dtype:
        return self.encoder.subsampling.out.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.encoder.subsampling.out.weight.device

    def _apply(self, fn, recurse=True):  # type: ignore[no-untyped-def]
        # Decoders hold their own copies of the weights, in the old dtype and on the old device.
        self._decoders.clear()
        return super()._apply(fn, recurse)

    @torch.no_grad()
    def encode(
        self, samples: Tensor, lengths: Tensor, context: tuple[int, int] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Audio to encoder output.

        Parameters
        ----------
        samples: [B, S] floating point in -1..1 at `sample_rate`, on any device.
        lengths: [B] int64, valid samples of each row.
        context: (left, right) attention context in encoder frames; None = the model's own.

        Returns
        -------
        encoded: [B, T, D] in the model's dtype; frames beyond a row's length are undefined.
        lengths: [B] int64, valid encoder frames.

        Raises
        ------
        ArgumentError: wrong shape, dtype, context, or a length beyond S.
        """
        if samples.ndim == 2 and lengths.numel() > 0:
            _check_lengths(lengths, samples.shape[1], "samples")
        features, frames = self.features(samples.to(self.device), lengths.to(self.device))
        return self.encoder(features.to(self.dtype), frames, context)

    @torch.no_grad()
    def decode(self, encoded: Tensor, lengths: Tensor, head: str | None = None) -> list[Hypothesis]:
        """Encoder output [B, T, D] with `lengths` [B] to one Hypothesis for each row, greedily.

        Raises ArgumentError if the model has no such head, or a length lies beyond T.
        """
        name = self.default_head if head is None else head
        if name not in self.heads:
            raise ArgumentError(f"head must be one of {sorted(self.heads)}, got {name!r}")
        module = self.heads[name]
        if isinstance(module, CtcHead):
            if lengths.numel() > 0:
                _check_lengths(lengths, encoded.shape[1], "frames")
            return decode_ctc(module, encoded, lengths)
        if name not in self._decoders:
            assert isinstance(module, TransducerHead)
            self._decoders[name] = GreedyDecoder.from_head(module)
        return self._decoders[name](encoded, lengths).hypotheses()

    def transcribe(
        self,
        files: AudioInput | Sequence[AudioInput],
        head: str | None = None,
        batch_size: int = 16,
        context: tuple[int, int] | None = None,
        on_result: Callable[[int, Transcript], None] | None = None,
    ) -> list[Transcript]:
        """Transcribe recordings; see `rnnt_fastdecode.models.transcription.transcribe`."""
        return transcribe(self, files, head, batch_size, context, on_result)


def _check_lengths(lengths: Tensor, limit: int, unit: str) -> None:
    least, most = (int(value) for value in torch.stack(lengths.aminmax()).tolist())
    if least < 0 or most > limit:
        raise ArgumentError(
            f"lengths must lie between 0 and {limit} {unit}, got {least if least < 0 else most}"
        )
