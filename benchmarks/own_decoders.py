"""Our decoder on every engine with every window, whole and in chunks; the one on the CPU; the reference."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from rnnt_fastdecode import ArgumentError, DecodeResult, GreedyDecoder
from rnnt_fastdecode.reference.decode import Transducer, greedy_decode

from .modules import as_modules
from .report import Row

WINDOWS = (1, 2, 3, 4, 5, 6, 7, 8, 16)
# What a window that is too wide for the largest batch is tried with.
_FEWER_ROWS = (160, 32, 8, 1)
_MOST_CHUNKS = 5
_REFERENCE_ROWS = 16


def _rows(result: DecodeResult, has_durations: bool) -> list[Row]:
    return [(h.tokens, h.frames, h.durations if has_durations else None) for h in result.hypotheses()]


class Engines:
    """Every engine on a device: on a GPU "auto", "resident" and "graph", on a CPU "cpu"; and "chunks".

    Each call uses the window that has had the fewest utterances; "auto" chooses its own. Chunks go from one
    engine to the other. windows: utterances of each engine and window. limits: the most rows that a window
    takes, where those are fewer than `make_ready` was given.
    """

    def __init__(
        self, transducer: Transducer, device: torch.device, dtype: torch.dtype, max_symbols: int
    ) -> None:
        self._has_durations = bool(transducer.durations)
        self.windows: Counter[str] = Counter()
        self.limits: dict[str, int] = {}
        modules = [module.to(device, dtype) for module in as_modules(transducer)]
        parts = (*modules, transducer.blank_id, transducer.durations, max_symbols)
        # Of each engine: decoders, and the most rows that they take.
        self._decoders: dict[str, list[tuple[GreedyDecoder, int]]] = {}
        if device.type == "cpu":
            self._decoders["cpu"] = [(GreedyDecoder(*parts, window), sys.maxsize) for window in WINDOWS]
            return
        self._decoders["auto"] = [(GreedyDecoder(*parts), sys.maxsize)]
        for engine in ("resident", "graph"):
            self._decoders[engine] = []
            for window in WINDOWS:
                try:
                    self._decoders[engine].append((GreedyDecoder(*parts, window, engine), sys.maxsize))
                except ArgumentError:
                    self.limits[f"{engine} {window}"] = 0

    @property
    def first(self) -> str:
        """The engine that the others are compared with."""
        return next(iter(self._decoders))

    def make_ready(self, encoder: Tensor) -> None:
        """Allocate all for batches up to this one: NeMo's graphs may write to what is allocated later."""
        for engine, decoders in self._decoders.items():
            for place, (decoder, _) in enumerate(decoders):
                most = self._most_rows(decoder, encoder)
                decoders[place] = decoder, most
                if most < len(encoder):
                    self.limits[self._name(engine, decoder)] = most

    @staticmethod
    def _name(engine: str, decoder: GreedyDecoder) -> str:
        return engine if engine == "auto" else f"{engine} {decoder.rules.window}"

    @staticmethod
    def _most_rows(decoder: GreedyDecoder, encoder: Tensor) -> int:
        for rows in (len(encoder), *(rows for rows in _FEWER_ROWS if rows < len(encoder))):
            try:
                decoder(encoder[:rows], torch.zeros(rows, dtype=torch.int64)).hypotheses()
            except ArgumentError:
                continue
            return rows
        return 0

    def __call__(self, encoder: Tensor, lengths: Tensor, index: int) -> dict[str, list[Row]]:
        """The rows of each engine that takes the batch, number `index`."""
        chosen = {}
        for engine, decoders in self._decoders.items():
            able = [
                (self._name(engine, decoder), decoder) for decoder, most in decoders if most >= len(lengths)
            ]
            if able:
                name, chosen[engine] = min(able, key=lambda pair: self.windows[pair[0]])
                self.windows[name] += len(lengths)
        results = {engine: decoder(encoder, lengths) for engine, decoder in chosen.items()}
        found = {engine: _rows(result, self._has_durations) for engine, result in results.items()}
        found["chunks"] = self._in_chunks(list(chosen.values()), encoder, lengths, index)
        return found

    def _in_chunks(
        self, decoders: Sequence[GreedyDecoder], encoder: Tensor, lengths: Tensor, seed: int
    ) -> list[Row]:
        """Every row cut at places of its own, some chunks empty, decoded with carried state."""
        generator = torch.Generator().manual_seed(seed)
        count = 1 + int(torch.randint(1, _MOST_CHUNKS, (1,), generator=generator))
        inner = torch.rand(len(lengths), count - 1, generator=generator).sort(dim=1).values
        cuts = (inner.to(lengths.device) * (lengths.unsqueeze(1) + 1)).long()
        cuts = torch.cat([torch.zeros_like(lengths).unsqueeze(1), cuts, lengths.unsqueeze(1)], dim=1)
        everyone = torch.arange(len(lengths), device=lengths.device).unsqueeze(1)
        state, parts = None, []
        for part in range(count):
            begin, valid = cuts[:, part], cuts[:, part + 1] - cuts[:, part]
            frame = begin.unsqueeze(1) + torch.arange(int(valid.max()), device=lengths.device)
            chunk = encoder[everyone, frame.clamp(max=encoder.shape[1] - 1)]
            result = decoders[(seed + part) % len(decoders)](chunk, valid, state)
            state = result.state
            parts.append(result.hypotheses())
        return [
            (
                [token for piece in pieces for token in piece.tokens],
                [frame for piece in pieces for frame in piece.frames],
                [d for piece in pieces for d in piece.durations] if self._has_durations else None,
            )
            for pieces in zip(*parts, strict=True)
        ]


class CpuDecoder:
    """Our decoder on the CPU."""

    def __init__(
        self, transducer: Transducer, device: torch.device, dtype: torch.dtype, max_symbols: int
    ) -> None:
        modules = [module.to("cpu", dtype) for module in as_modules(transducer)]
        rules = transducer.blank_id, transducer.durations, max_symbols
        self._decoder = GreedyDecoder(*modules, *rules)
        self._has_durations = bool(transducer.durations)

    def __call__(self, encoder: Tensor, lengths: Tensor) -> DecodeResult:
        return self._decoder(encoder.cpu(), lengths.cpu())

    def rows(self, result: DecodeResult) -> list[Row]:
        return _rows(result, self._has_durations)


class ReferenceDecoder:
    """`rnnt_fastdecode.reference`, in float64 for half types, on the CPU: the first rows of a batch only."""

    def __init__(
        self, transducer: Transducer, device: torch.device, dtype: torch.dtype, max_symbols: int
    ) -> None:
        self._arithmetic = torch.float32 if dtype == torch.float32 else torch.float64
        self._transducer = transducer.to(torch.device("cpu")).to(dtype).to(self._arithmetic)
        self._max_symbols = max_symbols

    def __call__(self, encoder: Tensor, lengths: Tensor) -> list[Row]:
        rows = encoder[:_REFERENCE_ROWS].cpu().to(self._arithmetic)
        decoded = [
            greedy_decode(self._transducer, row, int(length), self._max_symbols)
            for row, length in zip(rows, lengths, strict=False)
        ]
        has_durations = bool(self._transducer.durations)
        return [(d.tokens, d.frames, d.durations if has_durations else None) for d in decoded]

    def rows(self, output: list[Row]) -> list[Row]:
        return output
