"""Prompts and text normalisation."""

import re
from random import Random

import pytest

from training.text import cardinal, normalise, ordinal, prompts, spelled_prompt

WORDS = ["kitchen", "garden", "don't"]


def test_normalise_keeps_letters_and_inner_apostrophes():
    assert normalise("It's  'BIG', isn\u2019t it?  No. 5-x") == "it's big isn't it no x"


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (0, "zero"),
        (13, "thirteen"),
        (40, "forty"),
        (99, "ninety nine"),
        (186, "one hundred and eighty six"),
        (1000, "one thousand"),
        (7186, "seven thousand one hundred and eighty six"),
        (20_005, "twenty thousand and five"),
    ],
)
def test_cardinal(number, words):
    assert cardinal(number, "and") == words


def test_cardinal_without_and():
    assert cardinal(386) == "three hundred eighty six"


@pytest.mark.parametrize(
    ("number", "words"),
    [(1, "first"), (12, "twelfth"), (20, "twentieth"), (23, "twenty third"), (30, "thirtieth")],
)
def test_ordinal(number, words):
    assert ordinal(number) == words


def test_prompts_are_normalised_text():
    rng = Random(0)
    for _ in range(2000):
        prompt = spelled_prompt(rng, WORDS)
        assert re.fullmatch(r"[a-z]+( [a-z]+)*", prompt.text)


def test_prompts_cover_letters_digits_and_commands():
    rng = Random(1)
    said = {word for _ in range(3000) for word in spelled_prompt(rng, WORDS).text.split()}
    assert set("abcdefghijklmnopqrstuvwxyz") <= said
    assert {"zero", "oh", "nine", "rubout", "erase", "march", "thirtieth", "thousand", "half"} <= said


def test_prompts_are_the_same_for_the_same_seed():
    sentences = ["One sentence here.", "Another one."]
    first, second = (prompts(sentences, spelled=30, read=5, seed=7) for _ in range(2))
    assert first == second
    assert sum(prompt.spelled for prompt in first) == 30
    assert len(first) == 35
    assert first != prompts(sentences, spelled=30, read=5, seed=8)
