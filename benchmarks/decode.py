"""Greedy decoding alone, NeMo 3.0.0 and transformers beside ours, in one run with the same planted weights.

    python benchmarks/decode.py --output benchmarks/results/decode.json --plots benchmarks/results
    python benchmarks/decode.py --adversarial --output benchmarks/results/adversarial.json --plots ...
    python benchmarks/decode.py --quick

NeMo in its fastest mode (a CUDA graph with conditional nodes) is measured everywhere; its slower modes and
transformers only for --slow-batch and --slow-frames. `import nemo` must work, or --prepare MODULE:FUNCTION
must make it so; without one of the peers, name the others with --peers.

A time is the median over --repeats of a whole call by the host's clock, from encoder output to results on the
device, synchronised before and after, for ours and the peers alike. Peers have what their users give them:
inference mode, graphs captured and warm before timing. In float32 PyTorch's defaults hold: matrix products
without TF32, cuDNN's LSTM, which the peers use and we do not, with it.

Planted networks emit about one label in four frames, with margins that rounding does not bridge. TDT
durations have no such margins: in bf16, where peers round the logits and we do not, some rows may part.
agree: rows with the same tokens and frames (TDT, after a plus: and the same durations).
rounds: windows of frames that the busiest row needs, counted from the result; see work.py for the floor.

--adversarial: B = 32, and a share of the rows emits max_symbols labels on every frame.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

# Behind everything else: an installed package goes before the source tree.
sys.path.append(str(Path(__file__).resolve().parent.parent))

from benchmarks import cases
from benchmarks.beside import TABLE_HEAD, Bench
from benchmarks.nemo_decoder import prepare
from benchmarks.report import surroundings
from rnnt_fastdecode.bench import Record

QUICK = {"dtypes": ["bf16"], "batch": [1, 32], "frames": [150], "lengths": ["equal"], "repeats": 5}
ADVERSARIAL = {"batch": [32], "frames": [150], "lengths": ["equal"]}
SHARES = [0.0, 1 / 32, 1 / 8, 1 / 2, 1.0]


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--models", nargs="+", choices=cases.DURATIONS, default=list(cases.DURATIONS))
    add("--dtypes", nargs="+", choices=cases.DTYPES, default=list(cases.DTYPES))
    add("--batch", nargs="+", type=int, default=[1, 8, 32, 64, 128, 256, 512])
    add("--frames", nargs="+", type=int, default=[150, 750])
    add("--lengths", nargs="+", choices=["equal", "ragged"], default=["equal", "ragged"])
    add("--peers", nargs="*", choices=cases.PEERS, help="default: all; NeMo's fastest if adversarial")
    add("--slow-batch", nargs="+", type=int, default=[1, 8, 32], help="batches of the slow peers")
    add("--slow-frames", nargs="+", type=int, default=[150], help="frames of the slow peers")
    add("--slow-lengths", nargs="+", choices=["equal", "ragged"], default=["equal"])
    add("--repeats", type=int, default=20)
    add("--quick", action="store_true", help="two batches, bf16, and few repeats")
    add("--adversarial", action="store_true", help="measure over the share of adversarial rows instead")
    add("--shares", nargs="+", type=float, default=SHARES, help="shares of adversarial rows")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--prepare", metavar="MODULE:FUNCTION", help="call this before NeMo is imported")
    add("--commit", help="name the code in the record where git does not know it")
    add("--output", type=Path, help="write the figures to this JSON file, as they come")
    add("--plots", type=Path, metavar="DIR", help="draw the figures into this folder (needs matplotlib)")
    chosen = parser.parse_known_args(argv)[0]
    parser.set_defaults(**{**(QUICK if chosen.quick else {}), **(ADVERSARIAL if chosen.adversarial else {})})
    options = parser.parse_args(argv)
    if options.peers is None:
        on_gpu = torch.device(options.device).type == "cuda"
        peers = list(cases.PEERS) if on_gpu else list(cases.CPU_PEERS)
        options.peers = peers[:1] if options.adversarial else peers
    return options


def grid(options: argparse.Namespace, bench: Bench) -> None:
    """Every model, number of frames, dtype, batch and kind of lengths."""
    for model in options.models:
        planted = cases.network(model)
        for frames in options.frames:
            everything = cases.utterances(planted, max(options.batch), frames, bench.device)
            for dtype in options.dtypes:
                for batch in options.batch:
                    case = {"model": model, "dtype": dtype, "batch": batch, "frames": frames}
                    # A single row is never ragged.
                    kinds = options.lengths if batch > 1 else options.lengths[:1]
                    variants = [
                        (
                            cases.row_lengths(kind, batch, frames).to(bench.device),
                            {**case, "lengths": kind},
                        )
                        for kind in kinds
                    ]
                    bench.shape(planted, everything[:batch].to(cases.DTYPES[dtype]), variants)


def adversarial(options: argparse.Namespace, bench: Bench) -> None:
    """Every share of rows that emit max_symbols on every frame; that they do is checked."""
    for model in options.models:
        planted = cases.network(model, ring=True)
        for frames in options.frames:
            ordinary, bursts = (
                cases.utterances(planted, max(options.batch), frames, bench.device, adversarial=kind)
                for kind in (False, True)
            )
            for dtype in options.dtypes:
                for batch in options.batch:
                    for share in options.shares:
                        count = round(share * batch)
                        encoder = torch.cat((bursts[:count], ordinary[count:batch]))
                        case = {
                            "model": model,
                            "dtype": dtype,
                            "batch": batch,
                            "frames": frames,
                            "lengths": "equal",
                            "adversarial_share": count / batch,
                        }
                        lengths = cases.row_lengths("equal", batch, frames).to(bench.device)
                        decoded = bench.shape(planted, encoder.to(cases.DTYPES[dtype]), [(lengths, case)])
                        cases.check_bursts(decoded[0][:count], frames)


def main(argv: Sequence[str] | None = None) -> None:
    options = arguments(argv)
    device = torch.device(options.device)
    more = {"commit": options.commit} if options.commit else {}
    if any(name.startswith("nemo") for name in options.peers):
        prepare(options.prepare)
        more["nemo"] = importlib.import_module("nemo").__version__
    if "transformers" in options.peers:
        more["transformers"] = importlib.import_module("transformers").__version__
    where = surroundings(device, **more)
    settings = {
        "kind": "adversarial" if options.adversarial else "decode",
        **cases.SIZES,
        "predictor": "LSTM",
        "max_symbols": cases.MAX_SYMBOLS,
        "cudnn_tf32": torch.backends.cudnn.allow_tf32,
    }
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
    record = Record(options.output, where, settings)
    print(", ".join(f"{key} {value}" for key, value in where.items()))
    print(TABLE_HEAD)
    (adversarial if options.adversarial else grid)(options, Bench(device, options, record))
    if options.plots:
        from benchmarks.plots import draw

        for path in draw(record.content(), options.plots):
            print(f"drawn: {path}")


if __name__ == "__main__":
    main()
