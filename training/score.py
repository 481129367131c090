"""Word error rates of a model on a corpus, for every head and look-ahead.

    python -m training.score DATA/an4_test [--model bundled] [--device cpu|cuda] [--dtype auto|float32|...]

DATA/an4_test names a tar of recordings and a TSV (file, speaker, seconds, text). With DATA/an4_train, `--dev`
keeps only the speakers that training.train sets apart.
"""

from __future__ import annotations

import argparse
import io
import tarfile
import time
from pathlib import Path

import numpy as np
import soundfile
import torch

import rnnt_fastdecode

from .corpora import DEV_SPEAKERS
from .evaluate import word_error_rate
from .text import normalise


def read_corpus(base: Path, speakers: tuple[str, ...]) -> tuple[list[np.ndarray], list[str]]:
    """(clips fp32 at the rate of the files, normalised texts); `speakers` empty = all."""
    clips: dict[str, np.ndarray] = {}
    with tarfile.open(base.with_suffix(".tar")) as archive:
        for member in archive:
            content = archive.extractfile(member)
            if content is not None:
                clips[Path(member.name).name] = soundfile.read(io.BytesIO(content.read()), dtype="float32")[0]
    rows = [line.split("\t") for line in base.with_suffix(".tsv").read_text().splitlines()[1:]]
    rows = [row for row in rows if not speakers or row[1] in speakers]
    return [clips[row[0]] for row in rows], [normalise(row[3]) for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--device", default=None)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--dev", action="store_true")
    parser.add_argument(
        "--show", action="store_true", help="print the utterances that the default head got wrong"
    )
    args = parser.parse_args()
    model = rnnt_fastdecode.load(args.model, dtype=args.dtype, device=args.device)
    clips, references = read_corpus(args.corpus, DEV_SPEAKERS if args.dev else ())
    words = sum(len(text.split()) for text in references)
    print(f"{args.corpus.name}: {len(clips)} utterances, {words} words; {model.device}, {model.dtype}")
    order = sorted(range(len(clips)), key=lambda i: clips[i].size)
    contexts = model.encoder.config.contexts
    print("look-ahead".ljust(16) + "".join(f"{right} ({80 * right} ms)".rjust(14) for _, right in contexts))
    table: dict[str, list[str]] = {name: [] for name in model.heads}
    started = time.monotonic()
    for context in contexts:
        found: dict[str, dict[int, str]] = {name: {} for name in model.heads}
        for start in range(0, len(order), args.batch_size):
            batch = order[start : start + args.batch_size]
            lengths = torch.tensor([clips[i].size for i in batch])
            samples = torch.zeros(len(batch), int(lengths.max()))
            for row, i in enumerate(batch):
                samples[row, : clips[i].size] = torch.from_numpy(clips[i])
            encoded, frames = model.encode(samples, lengths, context)
            for name in model.heads:
                for i, hypothesis in zip(batch, model.decode(encoded, frames, name), strict=True):
                    found[name][i] = model.tokenizer.decode(hypothesis.tokens)
        for name, texts in found.items():
            errors, _ = word_error_rate(references, [texts[i] for i in range(len(clips))])
            table[name].append(f"{100 * errors / words:.2f} ({errors})")
            if args.show and name == model.default_head and context == contexts[0]:
                for i, wanted in enumerate(references):
                    if texts[i] != wanted:
                        print(f"  {wanted}\n  {texts[i]}\n")
    for name, cells in table.items():
        print(f"WER % {name}".ljust(16) + "".join(cell.rjust(14) for cell in cells))
    print(f"{time.monotonic() - started:.1f} s")


if __name__ == "__main__":
    main()
