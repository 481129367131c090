"""Times our decoder and its peers on the same utterances, one shape after the other."""

from __future__ import annotations

import argparse
from typing import Any

import torch
from torch import Tensor

from rnnt_fastdecode import GreedyDecoder
from rnnt_fastdecode.bench import Record, milliseconds, timed
from rnnt_fastdecode.reference.planted import Planted
from rnnt_fastdecode.transducer import Hypothesis

from . import cases, work
from .modules import as_modules
from .report import agreement

# Repeats of the slow peers; of the others, too, where that many take long.
LEAST_REPEATS = 3

Variant = tuple[Tensor, dict[str, Any]]


class Bench:
    """Keeps a row for each case in a record, and prints it.

    options: peers, repeats, and slow_batch, slow_frames and slow_lengths, the cases that slow peers run.
    """

    def __init__(self, device: torch.device, options: argparse.Namespace, record: Record) -> None:
        self.device, self.options, self.record = device, options, record
        self._has_floor = "H200" in record.where["device"]

    def shape(self, planted: Planted, encoder: Tensor, variants: list[Variant]) -> list[list[Hypothesis]]:
        """Decode encoder output [B, T, D] with several lengths [B], each with the keys of its row.

        Ours come first: NeMo's graphs may write to memory that others own by then. Returns what we decoded.
        """
        decoded = [self._ours(planted, encoder, lengths, case) for lengths, case in variants]
        rows = self.record.rows[-len(variants) :]
        for name in self.options.peers:
            wanted = [i for i, row in enumerate(rows) if self._is_wanted(name, row)]
            if not wanted:
                continue
            try:
                decoder = cases.PEERS[name](planted.transducer, self.device, encoder.dtype)
                for i in wanted:
                    found = self._peer(name, decoder, encoder, variants[i][0], decoded[i])
                    rows[i]["peers"][name] = {**found, "ratio": found["ms"] / rows[i]["ours_ms"]}
                    self.record.save()
            except Exception as error:
                # A peer that fails, perhaps for want of memory, costs its own figures only.
                for i in wanted:
                    rows[i]["peers"].setdefault(name, {"error": f"{type(error).__name__}: {error}"})
                self.record.save()
        for row in rows:
            print("\n".join(table_lines(row)), flush=True)
        return decoded

    def _ours(
        self, planted: Planted, encoder: Tensor, lengths: Tensor, case: dict[str, Any]
    ) -> list[Hypothesis]:
        transducer = planted.transducer
        predictor, joint = (module.to(self.device, encoder.dtype) for module in as_modules(transducer))
        blank_id, durations = transducer.blank_id, transducer.durations
        decoder = GreedyDecoder(predictor, joint, blank_id, durations, cases.MAX_SYMBOLS)
        result, first_ms = timed(lambda: decoder(encoder, lengths), self.device)
        hypotheses = result.hypotheses()
        steps = (
            work.tdt_blank_steps(predictor, joint, blank_id, durations, encoder, hypotheses)
            if durations
            else None
        )
        window = decoder.window(len(lengths))
        done = work.count(hypotheses, lengths.tolist(), window, cases.MAX_SYMBOLS, steps)
        ours_ms = milliseconds(lambda: decoder(encoder, lengths), self.device, self.options.repeats)
        floor_ms = work.floor_milliseconds(predictor, joint, done) if self._has_floor else None
        self.record.rows.append(
            {
                **case,
                "path": decoder.path,
                "window": window,
                "rounds": done.rounds,
                "least_rounds": done.least_rounds,
                "labels_per_frame": round(done.labels / done.frames, 3),
                "ours_ms": ours_ms,
                "ours_first_ms": first_ms,
                "floor_ms": floor_ms,
                "distance": None if floor_ms is None else ours_ms / floor_ms,
                "peers": {},
            }
        )
        self.record.save()
        return hypotheses

    def _peer(
        self, name: str, decoder: Any, encoder: Tensor, lengths: Tensor, ours: list[Hypothesis]
    ) -> dict[str, Any]:
        output, first_ms = timed(lambda: decoder(encoder, lengths), self.device)
        found = agreement(ours, decoder.rows(output))
        repeats, warmup = (LEAST_REPEATS, 1) if name in cases.SLOW_PEERS else (self.options.repeats, 3)
        ms = milliseconds(
            lambda: decoder(encoder, lengths), self.device, repeats, warmup, least=LEAST_REPEATS
        )
        return {"ms": ms, "first_ms": first_ms, **found}

    def _is_wanted(self, name: str, row: dict[str, Any]) -> bool:
        options = self.options
        return name not in cases.SLOW_PEERS or (
            row["batch"] in options.slow_batch
            and row["frames"] in options.slow_frames
            and row["lengths"] in options.slow_lengths
        )


_LINE = "{:5} {:5} {:>4} {:>4} {:7} {:>6} {:>9} {:>7} {:>9} {:>9}  {:13} {:>9} {:>7}  {}"
TABLE_HEAD = _LINE.format(
    "model", "dtype", "B", "T", "lengths", "burst", "ours ms", "rounds", "floor ms", "distance", "peer",
    "peer ms", "ratio", "agree",
)  # fmt: skip


def table_lines(row: dict[str, Any]) -> list[str]:
    """A row of the record for a person to read, one line for each peer."""
    has_floor = row["floor_ms"] is not None
    ours = [
        row["model"],
        row["dtype"],
        row["batch"],
        row["frames"],
        row["lengths"],
        f"{row['adversarial_share']:.3f}" if "adversarial_share" in row else "-",
        f"{row['ours_ms']:.3f}",
        row["rounds"],
        f"{row['floor_ms']:.3f}" if has_floor else "-",
        f"{row['distance']:.1f}x" if has_floor else "-",
    ]
    lines = []
    for name, peer in row["peers"].items():
        if "error" in peer:
            cells = [name, "failed", "-", peer["error"]]
        else:
            agree = f"{peer['agreeing_rows']}/{row['batch']}"
            if "agreeing_durations" in peer:
                agree += f" + {peer['agreeing_durations']}"
            cells = [name, f"{peer['ms']:.3f}", f"{peer['ratio']:.1f}x", agree]
        lines.append(_LINE.format(*ours, *cells))
        ours = [""] * len(ours)
    return lines or [_LINE.format(*ours, "", "", "", "").rstrip()]
