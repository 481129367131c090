"""The word error rate."""

import pytest

from training.evaluate import word_error_rate, word_errors


@pytest.mark.parametrize(
    ("reference", "hypothesis", "errors"),
    [
        ("a b c", "a b c", 0),
        ("a b c", "a x c", 1),
        ("a b c", "a c", 1),
        ("a b", "a b c d", 2),
        ("", "a", 1),
        ("a b", "", 2),
    ],
)
def test_word_errors(reference, hypothesis, errors):
    assert word_errors(reference.split(), hypothesis.split()) == errors


def test_word_error_rate_counts_over_all_utterances():
    assert word_error_rate(["a b", "c"], ["a x", "c d"]) == (2, 3)
