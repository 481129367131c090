"""Make a corpus smaller: fewer clips, a lower Opus bit rate, as was done for the bundled model.

python -m training.recode DATA/kathleen OUT --share 0.4 --kbits 14
"""

from __future__ import annotations

import argparse
import io
import random
import tarfile
from pathlib import Path

import soundfile


def chosen_rows(rows: list[str], share: float, seed: int = 0) -> list[str]:
    """A random share of the rows of a corpus index; repeated texts go first."""
    rows = sorted(rows)
    random.Random(seed).shuffle(rows)
    seen: set[str] = set()
    first, repeated = [], []
    for row in rows:
        text = row.split("\t")[3]
        (repeated if text in seen else first).append(row)
        seen.add(text)
    return sorted((first + repeated)[: int(len(rows) * share)])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("corpus", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--share", type=float, default=1.0)
    parser.add_argument("--kbits", type=float, default=14.0)
    args = parser.parse_args()
    header, *rows = args.corpus.with_suffix(".tsv").read_text().splitlines()
    rows = chosen_rows(rows, args.share)
    names = {row.split("\t")[0] for row in rows}
    out = args.out / args.corpus.name
    out.with_suffix(".tsv").write_text("\n".join([header, *rows]) + "\n")
    # libsndfile maps 0..1 to 256..6 kbit/s.
    level = 1 - (args.kbits - 6) / 250
    with (
        tarfile.open(args.corpus.with_suffix(".tar")) as source,
        tarfile.open(out.with_suffix(".tar"), "w") as target,
    ):
        for member in source:
            content = source.extractfile(member)
            if content is None or Path(member.name).name not in names:
                continue
            samples, rate = soundfile.read(io.BytesIO(content.read()), dtype="float32")
            coded = io.BytesIO()
            soundfile.write(coded, samples, rate, format="OGG", subtype="OPUS", compression_level=level)
            entry = tarfile.TarInfo(member.name)
            entry.size = coded.tell()
            coded.seek(0)
            target.addfile(entry, coded)


if __name__ == "__main__":
    main()
