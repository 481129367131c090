"""Token ids to text: sentencepiece models, word pieces, characters and the tokenizer.json of transformers."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ..errors import ArgumentError, CheckpointError

# Marks the start of a word in sentencepiece vocabularies.
WORD_START = "\u2581"

# Pieces whose punctuation is not text: special tokens, word-piece continuations, starts of words.
_NOT_TEXT = re.compile(r"\[.*\]$|<.*>$|##|\u2581|\s*$")


class Tokenizer:
    """A vocabulary and the rule that turns its pieces into text.

    Attributes
    ----------
    vocab_size: number of token ids, without the blank of a transducer or CTC head.
    """

    def __init__(self, pieces: Sequence[str]) -> None:
        self._pieces = list(pieces)
        self.vocab_size = len(self._pieces)

    def pieces(self, ids: Iterable[int]) -> list[str]:
        """The vocabulary entries of `ids`. Raises ArgumentError for an id outside the vocabulary."""
        found = []
        for index in ids:
            if not 0 <= index < len(self._pieces):
                raise ArgumentError(f"token ids must be in 0..{len(self._pieces) - 1}, got {index}")
            found.append(self._pieces[index])
        return found

    def decode(self, ids: Sequence[int]) -> str:
        """The text of a token sequence. Raises ArgumentError for an id outside the vocabulary."""
        raise NotImplementedError

    def words(self, ids: Sequence[int]) -> list[tuple[str, int, int]]:
        """Words as (text, start, end): a word is spelled by ids[start:end], separators left out."""
        pieces = self.pieces(ids)
        starts = [i for i, piece in enumerate(pieces) if i == 0 or self._starts_word(piece)]
        words = []
        for start, end in zip(starts, [*starts, len(pieces)][1:], strict=True):
            while start < end and self._is_separator(pieces[start]):
                start += 1
            text = self.decode(ids[start:end]).strip()
            if text:
                words.append((text, start, end))
        return words

    def _starts_word(self, piece: str) -> bool:
        return piece.startswith(WORD_START)

    def _is_separator(self, piece: str) -> bool:
        return piece == WORD_START


class SentencePieceTokenizer(Tokenizer):
    """A sentencepiece model, decoded by sentencepiece itself."""

    def __init__(self, model: bytes, source: str) -> None:
        """`model`: the bytes of a tokenizer.model; `source` names it in the error of a broken one."""
        import sentencepiece

        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
            size = self._processor.get_piece_size()
        except Exception as error:
            raise CheckpointError(f"{source}: not a sentencepiece model") from error
        super().__init__([self._processor.id_to_piece(i) for i in range(size)])

    def decode(self, ids: Sequence[int]) -> str:
        self.pieces(ids)
        return str(self._processor.decode(list(ids)))


class WordPieceTokenizer(Tokenizer):
    """BERT-style word pieces: a piece that starts with ## continues the word."""

    SPECIAL = frozenset({"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"})

    def decode(self, ids: Sequence[int]) -> str:
        kept = [piece for piece in self.pieces(ids) if piece not in self.SPECIAL]
        return " ".join(kept).replace(" ##", "").strip()

    def _starts_word(self, piece: str) -> bool:
        return not piece.startswith("##")

    def _is_separator(self, piece: str) -> bool:
        return piece in self.SPECIAL


class CharacterTokenizer(Tokenizer):
    """One label for each character; the label " " separates words."""

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(self.pieces(ids))

    def _starts_word(self, piece: str) -> bool:
        return piece == " "

    def _is_separator(self, piece: str) -> bool:
        return piece == " "


class AggregateTokenizer(Tokenizer):
    """Sentencepiece vocabularies one after the other in one id space, as in NeMo's multilingual models."""

    def __init__(self, parts: Sequence[Tokenizer]) -> None:
        super().__init__([piece for part in parts for piece in part._pieces])

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(self.pieces(ids)).replace(WORD_START, " ").strip()


class TightPunctuation(Tokenizer):
    """Another tokenizer, without the space before a punctuation mark of its vocabulary, as in NeMo."""

    def __init__(self, inner: Tokenizer) -> None:
        super().__init__(inner._pieces)
        self._inner = inner
        self._marks = {
            char
            for piece in inner._pieces
            for char in piece
            if unicodedata.category(char).startswith("P") and not _NOT_TEXT.match(piece)
        }
        marks = "|".join(re.escape(mark) for mark in sorted(self._marks))
        self._spaced = re.compile(rf"\s({marks})")

    def decode(self, ids: Sequence[int]) -> str:
        text = self._inner.decode(ids)
        return self._spaced.sub(r"\1", text) if self._marks else text

    def words(self, ids: Sequence[int]) -> list[tuple[str, int, int]]:
        joined: list[tuple[str, int, int]] = []
        for word in self._inner.words(ids):
            text, _, end = word
            if joined and text[0] in self._marks:
                start = joined[-1][1]
                together = self.decode(ids[start:end]).strip()
                if len(together.split()) == 1:
                    joined[-1] = (together, start, end)
                    continue
            joined.append(word)
        return joined


class JsonTokenizer(Tokenizer):
    """The decoding half of a tokenizer.json of the `tokenizers` library, for BPE and Unigram vocabularies."""

    def __init__(self, text: str, source: str, blank_id: int) -> None:
        """`text`: the file's content; `source` names it in errors; `blank_id` is not in the vocabulary."""
        try:
            content = json.loads(text)
            model, added = content["model"], content.get("added_tokens") or []
            kind = model.get("type", "BPE")
            if kind == "BPE":
                table = {int(index): piece for piece, index in model["vocab"].items()}
            elif kind == "Unigram":
                table = {index: entry[0] for index, entry in enumerate(model["vocab"])}
            else:
                raise CheckpointError(
                    f"{source}: tokenizer model {kind!r} is not supported, expected BPE or Unigram"
                )
            table.update({int(token["id"]): token["content"] for token in added})
            self._special = {int(token["id"]) for token in added if token.get("special")} | {blank_id}
            self._steps = _decoder_steps(content.get("decoder"), source)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise CheckpointError(
                f"{source}: not a tokenizer.json ({type(error).__name__}: {error})"
            ) from error
        if table.keys() - {blank_id} == set(range(len(table.keys() - {blank_id}))):
            table.pop(blank_id, None)
        if not table or sorted(table) != list(range(len(table))):
            raise CheckpointError(f"{source}: the token ids are not consecutive from 0")
        super().__init__([table[index] for index in range(len(table))])

    def decode(self, ids: Sequence[int]) -> str:
        tokens = self.pieces([index for index in ids if index not in self._special])
        for step in self._steps:
            tokens = step(tokens)
        return "".join(tokens)


DecoderStep = Callable[[list[str]], list[str]]


def _decoder_steps(decoder: dict[str, Any] | None, source: str) -> list[DecoderStep]:
    """The `decoder` section of a tokenizer.json as functions from tokens to tokens."""
    kind = decoder["type"] if decoder else None
    if decoder is not None and kind == "Sequence":
        return [step for part in decoder["decoders"] for step in _decoder_steps(part, source)]
    if decoder is None or kind not in _STEPS:
        raise CheckpointError(
            f"{source}: decoder {kind!r} is not supported, expected Sequence or one of {sorted(_STEPS)}"
        )
    return [_STEPS[kind](decoder)]


def _metaspace(spec: dict[str, Any]) -> DecoderStep:
    mark = spec.get("replacement", WORD_START)
    strip_first = spec.get("prepend_scheme", "always") != "never"

    def step(tokens: list[str]) -> list[str]:
        return [token.replace(mark, "" if i == 0 and strip_first else " ") for i, token in enumerate(tokens)]

    return step


def _replace(spec: dict[str, Any]) -> DecoderStep:
    old, new = spec["pattern"]["String"], spec["content"]
    return lambda tokens: [token.replace(old, new) for token in tokens]


def _strip(spec: dict[str, Any]) -> DecoderStep:
    content, start, stop = spec["content"], int(spec["start"]), int(spec["stop"])

    def strip(token: str) -> str:
        for _ in range(start):
            token = token.removeprefix(content)
        for _ in range(stop):
            token = token.removesuffix(content)
        return token

    return lambda tokens: [strip(token) for token in tokens]


def _fuse(spec: dict[str, Any]) -> DecoderStep:
    return lambda tokens: ["".join(tokens)]


def _byte_fallback(spec: dict[str, Any]) -> DecoderStep:
    """Runs of <0xNN> tokens become the UTF-8 text they spell, or U+FFFD for each byte if they spell none."""

    def step(tokens: list[str]) -> list[str]:
        out: list[str] = []
        pending = bytearray()
        for token in [*tokens, ""]:
            if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
                pending.append(int(token[3:5], 16))
                continue
            if pending:
                try:
                    out.append(pending.decode("utf-8"))
                except UnicodeDecodeError:
                    out.extend("\ufffd" for _ in pending)
                pending.clear()
            out.append(token)
        return out

    return step


_STEPS: dict[str, Callable[[dict[str, Any]], DecoderStep]] = {
    "Metaspace": _metaspace,
    "Replace": _replace,
    "Strip": _strip,
    "Fuse": _fuse,
    "ByteFallback": _byte_fallback,
}
