"""The vocabulary: sentencepiece unigram pieces over the texts of the training data.

    python -m training.tokenizer DATA OUT/tokenizer.model --pieces 256

Most of the text is spelled prompts, so that letter names, digits and the like have pieces of their own; the
rest makes small pieces for open text. With 256 pieces, read speech stays below one label in 80 ms (CTC).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import sentencepiece

from .corpora import DEV_SPEAKERS
from .text import normalise, prompts


def corpus(data: Path) -> Iterator[str]:
    """Normalised lines: recordings' texts (without the dev speakers), spelled prompts, sentences."""
    for name, times in (("an4_train", 8), ("speechocean_train", 1), ("kathleen", 1)):
        for line in (data / f"{name}.tsv").read_text().splitlines()[1:]:
            _, speaker, _, text = line.split("\t")
            if speaker not in DEV_SPEAKERS:
                yield from [normalise(text)] * times
    sentences = (data / "ljspeech_sentences.txt").read_text().splitlines()
    for prompt in prompts(sentences, spelled=15_000, read=3_000, seed=0):
        yield prompt.text


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--pieces", type=int, default=256)
    args = parser.parse_args()
    with args.out.open("wb") as out:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=corpus(args.data),
            model_writer=out,
            vocab_size=args.pieces,
            model_type="unigram",
            character_coverage=1.0,
            max_sentencepiece_length=10,
            normalization_rule_name="identity",
            unk_id=0,
            bos_id=-1,
            eos_id=-1,
            pad_id=-1,
            minloglevel=2,
        )


if __name__ == "__main__":
    main()
