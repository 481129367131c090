"""Whether everybody decodes the same: our engines, NeMo 3.0.0, transformers, the reference, and float64.

    python benchmarks/agreement.py --utterances 100000 --output benchmarks/results/agreement.json
    python benchmarks/agreement.py --device cpu --peers transformers reference

`import nemo` must work, or --prepare MODULE:FUNCTION must make it so; or name other peers with --peers.

For RNN-T and TDT in every dtype, planted networks of several sizes (scenes.py) decode seeded utterances:
ragged, of length 0 and 1, all blank, crowded, with bursts that max_symbols ends, blank first, durations 0, 2,
4, 8. Every engine of ours decodes each batch, with another window every time, and one more time in random
chunks with carried state. Peers decode the same batches until they have used up their --seconds. Nothing uses
TF32.

Two decoders agree on an utterance where tokens, frames and durations (TDT) are identical. Where they do not,
the same network in float64, with the weights and the encoder output that the decoders have, tells how close
the decision was. A near tie is a row whose decoders leave the float64 path at a margin of less than 30
epsilons of the dtype, what rounding explains where sums are float32. Rows that a known fault of a peer
explains are counted by its name. What is left is beyond: for peers, which round the logits of half types,
that may be; for ours, beside float64, the reference or another engine, the exit code is 1.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

# Behind everything else: an installed package goes before the source tree.
sys.path.append(str(Path(__file__).resolve().parent.parent))

from benchmarks import cases, scenes
from benchmarks.float64 import Float64Decoder
from benchmarks.nemo_decoder import prepare
from benchmarks.own_decoders import CpuDecoder, Engines, ReferenceDecoder
from benchmarks.report import Row, surroundings
from benchmarks.tally import NEAR_TIE, Fault, Tally, departures, near_tie, no_max_symbols, stale_durations
from rnnt_fastdecode.bench import Record
from rnnt_fastdecode.reference.planted import Planted

DTYPES = {**cases.DTYPES, "fp16": torch.float16}
#: In the order in which they decode a batch: NeMo's graphs, which may write to others' memory, come last.
PEERS: dict[str, Any] = {
    "cpu": CpuDecoder,
    "reference": ReferenceDecoder,
    **{name: cases.PEERS[name] for name in ("transformers", "nemo-eager", "nemo-partial", "nemo")},
}
# Not two kinds of NeMo's graphs in one process, for that reason.
DEFAULT_PEERS = {
    "cuda": ["cpu", "reference", "transformers", "nemo-eager", "nemo"],
    "cpu": ["reference", "transformers", "nemo-eager"],
}


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--models", nargs="+", choices=scenes.SCENES, default=list(scenes.SCENES))
    add("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    add("--utterances", type=int, default=2000, help="of each model and dtype")
    add("--batch", type=int, help="largest batch; default: 2048 on a GPU, 64 on a CPU")
    add("--peers", nargs="*", choices=PEERS, help="default: all but NeMo's partial graphs")
    add("--seconds", nargs="+", default=["60"], metavar="[PEER=]S", help="of a peer in a model and dtype")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--prepare", metavar="MODULE:FUNCTION", help="call this before NeMo is imported")
    add("--commit", help="name the code in the record where git does not know it")
    add("--output", type=Path, help="write the counts to this JSON file, as they come")
    options = parser.parse_args(argv)
    kind = torch.device(options.device).type
    options.batch = options.batch or (2048 if kind == "cuda" else 64)
    peers = DEFAULT_PEERS[kind] if options.peers is None else options.peers
    options.peers = [name for name in PEERS if name in peers and name != kind]
    pairs = [word.rpartition("=") for word in options.seconds]
    everyone = next((float(value) for name, _, value in pairs if not name), 60.0)
    options.seconds = dict.fromkeys(options.peers, everyone)
    options.seconds |= {name: float(value) for name, _, value in pairs if name}
    return options


def known_fault(peer: str, model: str, max_symbols: int) -> Fault | None:
    """The fault that explains rows of this peer."""
    if model == "tdt" and peer == "transformers":
        return no_max_symbols(max_symbols)
    return stale_durations if model == "tdt" and peer == "nemo-eager" else None


class Comparison:
    """One model in one dtype: tallies[ours, other] over all scenes."""

    def __init__(self, model: str, dtype: str, options: argparse.Namespace) -> None:
        self.model, self.dtype, self._options = model, dtype, options
        self._device = torch.device(options.device)
        self.tallies: dict[tuple[str, str], Tally] = defaultdict(Tally)
        self.windows: Counter[str] = Counter()
        self.limits: dict[str, dict[str, int]] = {}
        self.refused: dict[str, list[str]] = {}
        self._spent: Counter[str] = Counter()
        self._share = 0.0

    def scene(self, scene: scenes.Scene, planted: Planted) -> None:
        """Compare all on the utterances of a scene; planted: its network, on the device."""
        dtype, options = DTYPES[self.dtype], self._options
        self._share += scene.share
        parts = planted.transducer, self._device, dtype, scene.max_symbols
        float64, engines = Float64Decoder(*parts), Engines(*parts)
        peers: dict[str, Any] = {}
        utterances = round(scene.share * options.utterances)
        for index, batch in enumerate(scenes.batches(scene, planted, utterances, options.batch)):
            encoder, lengths = batch.encoder.to(dtype), batch.lengths
            if index == 0:
                engines.make_ready(encoder)
                peers = self._peers(scene, parts)
            where = {"scene": scene.name, "batch": batch.seed}
            bound = near_tie(dtype)
            with self._timed("ours"):
                ours = engines(encoder, lengths, index)
            with self._timed("float64"):
                paths = float64(encoder, lengths)
            left = {name: departures(rows, paths) for name, rows in ours.items()}
            for name, rows in ours.items():
                self.tallies[name, "float64"].add(rows, paths.rows, [left[name]], bound, where)
                if name != engines.first:
                    both = [left[name], left[engines.first]]
                    self.tallies[name, engines.first].add(rows, ours[engines.first], both, bound, where)
            for peer, decoder in peers.items():
                if self._spent[peer] >= self._share * options.seconds[peer]:
                    continue
                with self._timed(peer):
                    output = decoder(encoder, lengths)
                    theirs: list[Row] = decoder.rows(output)
                fault = known_fault(peer, self.model, scene.max_symbols)
                theirs_left = departures(theirs, paths, durations=fault is not stale_durations)
                cut = decoder.rows_cut(output) if peer == "transformers" else 0
                for name, rows in {**ours, "float64": paths.rows}.items():
                    both = [left[name], theirs_left] if name in left else [theirs_left]
                    self.tallies[name, peer].add(rows, theirs, both, bound, where, fault)
                    self.tallies[name, peer].cut += cut
        self.windows += engines.windows
        self.limits[scene.name] = engines.limits

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self._spent[name] += time.perf_counter() - began

    def _peers(self, scene: scenes.Scene, parts: tuple[Any, ...]) -> dict[str, Any]:
        found = {}
        for name in self._options.peers:
            try:
                found[name] = PEERS[name](*parts)
            except ValueError as error:
                self.refused.setdefault(scene.name, []).append(f"{name}: {error}")
        return found

    @property
    def mistakes(self) -> int:
        """Rows of ours that differ beyond rounding from float64, the reference or each other."""
        return sum(tally.beyond for (_, other), tally in self.tallies.items() if other not in cases.PEERS)

    def rows(self) -> list[dict[str, Any]]:
        """For the record: a row for each pair of decoders."""
        case = {"model": self.model, "dtype": self.dtype}
        pairs = [
            {**case, "ours": name, "other": other, **tally.as_dict()}
            for (name, other), tally in self.tallies.items()
        ]
        notes = {"windows": dict(self.windows), "limits": self.limits, "refused": self.refused}
        seconds = {name: round(spent, 1) for name, spent in self._spent.items()}
        return [*pairs, {**case, **notes, "seconds": seconds}]


_LINE = "{:5} {:5} {:28} {:13} {:>10} {:>9} {:>9}  {}"
TABLE_HEAD = _LINE.format("model", "dtype", "these", "with", "utterances", "labels", "identical", "differing")


def table_lines(comparison: Comparison) -> list[str]:
    """The pairs for a person to read; several of ours beside one other share a line where they agree."""
    lines: dict[tuple[str, ...], list[str]] = {}
    for (name, other), tally in comparison.tallies.items():
        parts = [f"{count} x {fault}" for fault, count in sorted(tally.faults.items())]
        if tally.near_ties:
            parts.append(f"{tally.near_ties} near ties up to {tally.widest['near_ties']:.2g}")
        if tally.beyond:
            parts.append(f"{tally.beyond} beyond, up to {tally.widest['beyond']:.2g}")
        counts = map(str, (tally.utterances, tally.labels, tally.identical))
        lines.setdefault((other, *counts, "; ".join(parts) or "none"), []).append(name)
    return [
        _LINE.format(comparison.model, comparison.dtype, "+".join(names), *key)
        for key, names in sorted(lines.items())
    ]


def main(argv: Sequence[str] | None = None) -> None:
    options = arguments(argv)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    more = {"commit": options.commit} if options.commit else {}
    if any(name.startswith("nemo") for name in options.peers):
        prepare(options.prepare)
        more["nemo"] = importlib.import_module("nemo").__version__
    if "transformers" in options.peers:
        more["transformers"] = importlib.import_module("transformers").__version__
    device = torch.device(options.device)
    where = surroundings(device, **more)
    settings = {
        "kind": "agreement",
        "utterances": options.utterances,
        "batch": options.batch,
        "seconds": options.seconds,
        "near_tie_epsilons": NEAR_TIE,
        "scenes": {model: [repr(scene) for scene in scenes.SCENES[model]] for model in options.models},
    }
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
    record = Record(options.output, where, settings)
    print(", ".join(f"{key} {value}" for key, value in where.items()))
    print(TABLE_HEAD)
    mistakes = 0
    for model in options.models:
        networks = [(scene, scene.network(model).to(device)) for scene in scenes.SCENES[model]]
        for dtype in options.dtypes:
            comparison = Comparison(model, dtype, options)
            before = len(record.rows)
            for scene, planted in networks:
                comparison.scene(scene, planted)
                record.rows[before:] = comparison.rows()
                record.save()
            mistakes += comparison.mistakes
            print("\n".join(table_lines(comparison)), flush=True)
    if mistakes:
        raise SystemExit(f"{mistakes} rows differ where rounding does not explain it")


if __name__ == "__main__":
    main()
