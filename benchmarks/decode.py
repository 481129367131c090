"""Greedy decoding alone, NeMo's conditional CUDA graph beside ours on the same planted weights.

    python benchmarks/decode.py [--output benchmarks/results/decode.json]

Needs a CUDA device and an environment in which `import nemo` works (--prepare MODULE:FUNCTION can make it so;
--no-peer leaves NeMo out). Planted networks emit about one label in four frames, with margins that rounding
does not bridge. TDT durations have no such margins: in bf16, where NeMo rounds the logits and we do not, some
rows may part. How many rows have the same tokens and frames is counted.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from modules import as_modules
from nemo_decoder import NemoDecoder, prepare
from report import milliseconds, surroundings, write_json

from rnnt_fastdecode import GreedyDecoder
from rnnt_fastdecode.reference.planted import Planted, plant

DURATIONS = {"rnnt": (), "tdt": (0, 1, 2, 3, 4)}
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=DURATIONS, default=list(DURATIONS))
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 8, 32, 128])
    parser.add_argument("--frames", type=int, default=150)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--prepare", metavar="MODULE:FUNCTION", help="call this before NeMo is imported")
    parser.add_argument("--no-peer", action="store_true", help="measure without NeMo")
    parser.add_argument("--commit", help="name the code in the record where git does not know it")
    parser.add_argument("--output", type=Path, help="write the figures to this JSON file")
    return parser.parse_args()


def measure(
    model: str, dtype: str, batch: int, network: Planted, options: argparse.Namespace
) -> dict[str, Any]:
    device = torch.device("cuda")
    predictor, joint = as_modules(network.transducer)
    predictor, joint = predictor.to(device, DTYPES[dtype]), joint.to(device, DTYPES[dtype])
    decoder = GreedyDecoder(predictor, joint, network.transducer.blank_id, network.transducer.durations)
    encoder = network.encoder(batch, options.frames, chains=0.0, seed=batch).to(device, DTYPES[dtype])
    lengths = torch.full((batch,), options.frames, device=device)
    result = decoder(encoder, lengths)
    row: dict[str, Any] = {
        "model": model,
        "dtype": dtype,
        "batch": batch,
        "path": decoder.path,
        "labels_per_frame": round(float(result.lengths.sum()) / (batch * options.frames), 3),
        "ours_ms": milliseconds(lambda: decoder(encoder, lengths), device, options.repeats),
    }
    if not options.no_peer:
        peer = NemoDecoder(network.transducer, device, DTYPES[dtype])
        ours = [(h.tokens, h.frames) for h in result.hypotheses()]
        theirs = peer.labels(peer(encoder, lengths), batch)
        row["agreeing_rows"] = sum(a == b for a, b in zip(ours, theirs, strict=True))
        row["nemo_ms"] = milliseconds(lambda: peer(encoder, lengths), device, options.repeats)
        row["ratio"] = row["nemo_ms"] / row["ours_ms"]
    return row


def main() -> None:
    options = arguments()
    more = {"commit": options.commit} if options.commit else {}
    if not options.no_peer:
        prepare(options.prepare)
        more["nemo"] = __import__("nemo").__version__
    where = surroundings(torch.device("cuda"), **more)
    print(", ".join(f"{key} {value}" for key, value in where.items()))
    rows = []
    for model in options.models:
        network = plant(
            vocab_size=1025, joint_width=640, hidden=640, encoder_width=1024, durations=DURATIONS[model]
        )
        for dtype in options.dtypes:
            for batch in options.batch:
                row = measure(model, dtype, batch, network, options)
                rows.append(row)
                print(
                    "  ".join(f"{k} {v:.3f}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items())
                )
    if options.output:
        settings = {"frames": options.frames, "predictor": "LSTM 2 x 640", "joint": 640, "vocabulary": 1025}
        write_json(options.output, where, settings, rows)


if __name__ == "__main__":
    main()
