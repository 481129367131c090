"""Token ids to text and to words."""

import itertools
import json
import random
from pathlib import Path

import pytest

from rnnt_fastdecode import ArgumentError, CheckpointError, load
from rnnt_fastdecode.models.tokenizer import (
    AggregateTokenizer,
    CharacterTokenizer,
    JsonTokenizer,
    SentencePieceTokenizer,
    TightPunctuation,
    WordPieceTokenizer,
)

FIXTURES = Path(__file__).parent / "fixtures"
METASPACE = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
BYTES = {
    "type": "Sequence",
    "decoders": [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    ],
}


def sentencepiece_tokenizer():
    return load(FIXTURES / "nemo_tdt" / "model.nemo", device="cpu").tokenizer._inner


def json_tokenizer(pieces, decoder=METASPACE, blank_id=None, unigram=False, added=()):
    vocab = [[piece, -1.0] for piece in pieces] if unigram else {piece: i for i, piece in enumerate(pieces)}
    content = {
        "model": {"type": "Unigram" if unigram else "BPE", "vocab": vocab},
        "decoder": decoder,
        "added_tokens": [
            {"id": index, "content": piece, "special": special} for index, piece, special in added
        ],
    }
    return JsonTokenizer(json.dumps(content), "tokenizer.json", len(pieces) if blank_id is None else blank_id)


def test_characters_become_text_and_words():
    tokenizer = CharacterTokenizer([" ", "a", "b"])
    assert tokenizer.vocab_size == 3
    assert tokenizer.decode([1, 0, 2, 1]) == "a ba"
    assert tokenizer.pieces([1, 0]) == ["a", " "]
    assert tokenizer.words([0, 1, 0, 0, 2, 1, 0]) == [("a", 1, 2), ("ba", 4, 6)]


def test_no_tokens_are_no_words():
    for tokenizer in (
        CharacterTokenizer([" ", "a"]),
        TightPunctuation(CharacterTokenizer([" ", "."])),
        WordPieceTokenizer(["a"]),
        json_tokenizer(["▁a"]),
        sentencepiece_tokenizer(),
    ):
        assert tokenizer.words([]) == [] and tokenizer.decode([]) == ""


def test_sentencepiece_text_is_that_of_the_library():
    tokenizer = sentencepiece_tokenizer()
    assert isinstance(tokenizer, SentencePieceTokenizer)
    ids = tokenizer._processor.encode("the quick brown fox")
    assert tokenizer.decode(ids) == "the quick brown fox"
    words = tokenizer.words(ids)
    assert [word for word, _, _ in words] == ["the", "quick", "brown", "fox"]
    assert words[0][1] == 0 and words[-1][2] == len(ids)
    for (_, _, end), (_, start, _) in itertools.pairwise(words):
        assert end <= start


def test_word_pieces():
    tokenizer = WordPieceTokenizer(["[UNK]", "play", "##ing", "cards", "##s"])
    assert tokenizer.decode([1, 2, 3]) == "playing cards"
    assert tokenizer.words([0, 1, 2, 3]) == [("playing", 1, 3), ("cards", 3, 4)]


def test_aggregate_vocabularies_follow_one_another():
    tokenizer = AggregateTokenizer([CharacterTokenizer(["▁a", "b"]), CharacterTokenizer(["▁c", "d"])])
    assert tokenizer.vocab_size == 4
    assert tokenizer.decode([0, 1, 2, 3]) == "ab cd"
    assert tokenizer.words([0, 1, 2, 3]) == [("ab", 0, 2), ("cd", 2, 4)]


def test_punctuation_sticks_to_the_word_before_it():
    tokenizer = TightPunctuation(CharacterTokenizer([" ", "a", ",", "'"]))
    assert tokenizer.decode([1, 0, 2, 0, 1]) == "a, a"
    assert tokenizer.words([1, 0, 2, 0, 1]) == [("a,", 0, 3), ("a", 4, 5)]
    assert tokenizer.decode([1, 0, 0, 3, 1]) == "a 'a"
    assert tokenizer.words([1, 0, 0, 3, 1]) == [("a", 0, 1), ("'a", 3, 5)]
    assert tokenizer.words([2, 1]) == [(",a", 0, 2)]


def test_json_vocabulary_leaves_the_blank_out():
    tokenizer = json_tokenizer(["▁a", "b"], added=[(2, "<blank>", True)])
    assert tokenizer.vocab_size == 2
    assert tokenizer.decode([0, 1, 0]) == "ab a"
    in_the_middle = json_tokenizer(["▁a", "<blank>", "b"], blank_id=1)
    assert in_the_middle.vocab_size == 3
    assert in_the_middle.decode([0, 2]) == "ab"


def test_json_special_tokens_are_not_text():
    tokenizer = json_tokenizer(
        ["<unk>", "▁a", "b"], unigram=True, added=[(0, "<unk>", True), (3, "<en>", False)], blank_id=4
    )
    assert tokenizer.decode([1, 0, 2, 3]) == "ab<en>"


def test_json_bytes_become_characters():
    tokenizer = json_tokenizer(["▁a", "<0xC3>", "<0xA4>", "<0xFF>"], decoder=BYTES)
    assert tokenizer.decode([0, 1, 2]) == "aä"
    assert tokenizer.decode([1, 3, 0]) == "\ufffd\ufffd a"


@pytest.mark.parametrize("name", ["parakeet_ctc", "parakeet_rnnt"])
def test_json_text_equals_that_of_the_tokenizers_library(name):
    tokenizers = pytest.importorskip("tokenizers")
    path = FIXTURES / name / "tokenizer.json"
    theirs = tokenizers.Tokenizer.from_file(str(path))
    blank_id = theirs.token_to_id("<blank>")
    ours = JsonTokenizer(path.read_text(encoding="utf-8"), str(path), blank_id)
    assert ours.vocab_size == theirs.get_vocab_size() - 1
    choose = random.Random(0)
    for _ in range(300):
        ids = [choose.randrange(ours.vocab_size) for _ in range(choose.randrange(12))]
        assert ours.decode(ids) == theirs.decode(ids)
        assert "".join(ours.pieces(ids)) == "".join(theirs.id_to_token(index) for index in ids)


@pytest.mark.parametrize("index", [-1, 3])
def test_ids_outside_the_vocabulary_are_refused(index):
    with pytest.raises(ArgumentError, match=rf"token ids must be in 0..2, got {index}"):
        CharacterTokenizer([" ", "a", "b"]).decode([index])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not a tokenizer.json"),
        ("[]", "not a tokenizer.json"),
        ('{"model": {"type": "WordLevel", "vocab": {}}}', "'WordLevel' is not supported"),
        ('{"model": {"type": "BPE", "vocab": {"a": 0}}}', "decoder None is not supported"),
        (
            '{"model": {"type": "BPE", "vocab": {"a": 0}}, "decoder": {"type": "ByteLevel"}}',
            "decoder 'ByteLevel' is not supported",
        ),
        (
            '{"model": {"type": "BPE", "vocab": {"a": 0, "b": 5}}, "decoder": {"type": "Fuse"}}',
            "not consecutive",
        ),
    ],
)
def test_broken_tokenizer_json_is_named(text, message):
    with pytest.raises(CheckpointError, match=message):
        JsonTokenizer(text, "folder/tokenizer.json", 9)


def test_broken_sentencepiece_model_is_named():
    with pytest.raises(CheckpointError, match=r"x\.nemo: tokenizer\.model: not a sentencepiece model"):
        SentencePieceTokenizer(b"nonsense", "x.nemo: tokenizer.model")
