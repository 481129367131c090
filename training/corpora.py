"""Corpora: recordings and synthetic speech as stores of 16-bit samples that fit in memory whole.

    python -m training.corpora DATA OUT

decodes DATA/{an4_train,speechocean_train,kathleen}.tar, each with a .tsv of file, speaker, seconds, text.

A store is `NAME.pcm`, the clips one after another (int16, 16 kHz, mono), and `NAME.tsv`, one line a clip:
speaker, number of samples, normalised text.
"""

from __future__ import annotations

import argparse
import io
import tarfile
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np

from .text import normalise

SAMPLE_RATE = 16_000
RECORDINGS = ("an4_train", "speechocean_train", "kathleen")
DEV_SPEAKERS = ("fbbh", "fjam", "fsrb", "mblw", "mcen", "mjda", "mmap", "mtje")


class StoreWriter:
    """Writes a store clip by clip."""

    def __init__(self, base: Path) -> None:
        self.pcm = base.with_suffix(".pcm").open("wb")
        self.index = base.with_suffix(".tsv").open("w")
        self.clips = self.samples = 0

    def add(self, speaker: str, text: str, samples: np.ndarray) -> None:
        self.pcm.write(np.ascontiguousarray(samples, np.int16).data)
        self.index.write(f"{speaker}\t{samples.size}\t{text}\n")
        self.clips += 1
        self.samples += samples.size

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.pcm.close()
        self.index.close()


@dataclass
class Store:
    """A store in memory: clip i is pcm[starts[i] : starts[i] + sizes[i]]."""

    pcm: np.ndarray
    starts: np.ndarray
    sizes: np.ndarray
    speakers: list[str]
    texts: list[str]

    @classmethod
    def read(cls, base: Path) -> Store:
        rows = [line.split("\t") for line in base.with_suffix(".tsv").read_text().splitlines()]
        sizes = np.array([int(row[1]) for row in rows], np.int64)
        starts = np.cumsum(sizes) - sizes
        pcm = np.memmap(base.with_suffix(".pcm"), np.int16, mode="c")
        return cls(pcm, starts, sizes, [row[0] for row in rows], [row[2] for row in rows])

    def clips_of(self, speakers: tuple[str, ...], inside: bool) -> np.ndarray:
        """Indices of the clips whose speaker is (inside) or is not among `speakers`."""
        return np.array([i for i, name in enumerate(self.speakers) if (name in speakers) == inside], np.int64)


def decode_corpus(data: Path, name: str, out: Path) -> StoreWriter:
    """Decode DATA/name.tar into the store OUT/name."""
    import soundfile

    rows = [line.split("\t") for line in (data / f"{name}.tsv").read_text().splitlines()[1:]]
    about = {row[0]: (row[1], normalise(row[3])) for row in rows}
    with tarfile.open(data / f"{name}.tar") as archive, StoreWriter(out / name) as store:
        for member in archive:
            speaker, text = about.get(Path(member.name).name, ("", ""))
            content = archive.extractfile(member)
            if not text or content is None:
                continue
            samples, rate = soundfile.read(io.BytesIO(content.read()), dtype="int16")
            if rate != SAMPLE_RATE or samples.ndim != 1:
                raise ValueError(
                    f"{name}/{member.name}: expected {SAMPLE_RATE} Hz mono, got {rate} Hz {samples.shape}"
                )
            store.add(speaker, text, samples)
    return store


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--corpora", nargs="*", default=RECORDINGS)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for name in args.corpora:
        store = decode_corpus(args.data, name, args.out)
        print(f"{name}: {store.clips} clips, {store.samples / SAMPLE_RATE / 3600:.2f} h", flush=True)


if __name__ == "__main__":
    main()
