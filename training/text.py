"""Text: normalisation, and prompts for synthetic speech in the manner of AN4 (letters, digits, dates)."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random


def split_words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


ONES = split_words("zero one two three four five six seven eight nine")
TEENS = split_words("ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen")
TENS = split_words("twenty thirty forty fifty sixty seventy eighty ninety")
ORDINAL_ONES = split_words("first second third fourth fifth sixth seventh eighth ninth")
ORDINAL_TEENS = split_words(
    "tenth eleventh twelfth thirteenth fourteenth fifteenth sixteenth seventeenth eighteenth nineteenth"
)
MONTHS = split_words("january february march april may june july august september october november december")
COMMANDS = split_words("yes no go stop start help repeat enter erase rubout")
LETTERS = "abcdefghijklmnopqrstuvwxyz"
NAMES = split_words(
    """
    adams albert alice allen amanda anderson andrew angela anna anthony arlington arthur atlanta austin
    bailey baker barbara barton benjamin bennett betty beverly bloomfield boston bradley brandon brenda
    brian bristol brooks bruce burke butler campbell carlisle carol carter catherine charles charlotte
    chester chicago christopher clayton clinton collins cooper craig cynthia daniel david deborah denver
    dennis detroit donald dorothy douglas duncan edward eleanor elizabeth emily eric erie eugene evans
    fisher florence foster francis franklin frederick garfield gary george gerald gloria gordon graham
    greene gregory hamilton hannah harold harrison harvey heather helen henry howard hudson hughes isaac
    jackson jacob james janet jason jeffrey jeremy jessica joan johnstown jonathan joyce judith julia justin
    karen keith kelly kenneth kevin kimberly kyle lancaster larry laura lawrence lewis lincoln linda lisa
    logan louis madison margaret maria marshall martin mary matthew melissa michael michelle miller mitchell
    monroe morgan murphy nancy nathan newton nicholas norman oakland oliver olivia oxford parker patricia
    patrick paul peter philip quentin quincy rachel ralph raymond rebecca richmond robinson rochester roger
    ronald russell ruth ryan salem samantha samuel sandra sarah scott sharon shirley simpson somerset
    spencer springfield stanley stephen stewart susan sylvia taylor teresa thomas timothy trenton tyler
    union vernon victoria vincent virginia walker walter warren washington wayne webster william winston
    wright xavier york young zachary zimmerman
    """
)

_DROPPED = re.compile(r"[^a-z']+")


@dataclass(frozen=True)
class Prompt:
    """What is said (`text`, normalised) and whether it is in the manner of AN4 (`spelled`) or a sentence."""

    text: str
    spelled: bool


def normalise(text: str) -> str:
    """Lower case, letters and inner apostrophes only, single spaces: the text that the model learns."""
    words = _DROPPED.sub(" ", text.lower().replace("\u2019", "'")).split()
    return " ".join(word for word in (word.strip("'") for word in words) if word)


def cardinal(number: int, joiner: str = "") -> str:
    """0 <= number < 1,000,000 in words; `joiner` ("and" or "") stands after the hundreds."""
    if number < 10:
        return ONES[number]
    if number < 20:
        return TEENS[number - 10]
    if number < 100:
        tens, ones = divmod(number, 10)
        return TENS[tens - 2] + (f" {ONES[ones]}" if ones else "")
    if number < 1000:
        hundreds, rest = divmod(number, 100)
        words = f"{ONES[hundreds]} hundred"
    else:
        thousands, rest = divmod(number, 1000)
        words = f"{cardinal(thousands, joiner)} thousand"
        if rest >= 100:
            return f"{words} {cardinal(rest, joiner)}"
    if not rest:
        return words
    return " ".join(filter(None, (words, joiner, cardinal(rest))))


def ordinal(number: int) -> str:
    """1 <= number <= 99 as an ordinal in words."""
    if number < 10:
        return ORDINAL_ONES[number - 1]
    if number < 20:
        return ORDINAL_TEENS[number - 10]
    tens, ones = divmod(number, 10)
    if ones:
        return f"{TENS[tens - 2]} {ORDINAL_ONES[ones - 1]}"
    return TENS[tens - 2][:-1] + "ieth"


def _any_number(rng: Random) -> str:
    size = rng.choices((10, 100, 1000, 10_000, 100_000), (1, 6, 2, 2, 0.3))[0]
    return cardinal(rng.randrange(size), rng.choice(("", "and")))


def _digits(rng: Random) -> str:
    zero = rng.choice(("zero", "oh"))
    length = rng.choices((1, 2, 3, 4, 5, 7, 10), (1, 1, 2, 3, 4, 4, 1))[0]
    return " ".join(
        zero if digit == 0 else ONES[digit] for digit in (rng.randrange(10) for _ in range(length))
    )


def _random_letters(rng: Random, least: int = 1, most: int = 6) -> str:
    return " ".join(rng.choice(LETTERS) for _ in range(rng.randint(least, most)))


def _spelled_word(rng: Random, words: Sequence[str]) -> str:
    word = rng.choice(NAMES) if rng.random() < 0.5 else rng.choice(words)
    return " ".join(letter for letter in word if letter != "'")


def _year(rng: Random) -> str:
    century = rng.choices(("nineteen", "eighteen", "twenty"), (8, 1, 1))[0]
    return f"{century} {cardinal(rng.randrange(10, 100))}"


def _date(rng: Random) -> str:
    day, month = rng.randint(1, 31), rng.randrange(12)
    style = rng.randrange(5)
    if style == 0:
        return f"{MONTHS[month]} {ordinal(day)} {_year(rng)}"
    if style == 1:
        return f"{MONTHS[month]} {cardinal(day)} {_year(rng)}"
    if style == 2:
        return f"{ordinal(day)} of {MONTHS[month]} {_year(rng)}"
    if style == 3:
        joiner = rng.choice(("", "", "", "of "))
        return f"{cardinal(month + 1)} {cardinal(day)} {joiner}{cardinal(rng.randrange(10, 100))}"
    return f"{MONTHS[month]} {ordinal(day)}"


def _command(rng: Random) -> str:
    word = rng.choice(COMMANDS)
    if word == "enter":
        return f"enter {rng.choice((_any_number, _digits))(rng)}"
    if word in ("erase", "rubout"):
        return f"{word} {_random_letters(rng, 3, 5)} {rng.choice((_any_number, _digits))(rng)}"
    return word


def _code(rng: Random) -> str:
    return f"{_random_letters(rng, 1, 5)} {rng.choice((_any_number, _digits))(rng)}"


def _time(rng: Random) -> str:
    hour = cardinal(rng.randint(1, 12))
    return rng.choice(
        (
            f"{hour} {cardinal(rng.randrange(10, 60))}",
            f"half past {hour}",
            f"area code {_digits(rng)}",
            f"{hour} and a half",
        )
    )


def spelled_prompt(rng: Random, words: Sequence[str]) -> Prompt:
    """One prompt in the manner of AN4; `words` are spelled out besides a list of names."""
    makers: tuple[Callable[[Random], str], ...] = (
        lambda r: _spelled_word(r, words),
        _random_letters,
        _code,
        _digits,
        _any_number,
        _date,
        _command,
        _time,
    )
    make = rng.choices(makers, (28, 10, 16, 14, 9, 9, 12, 2))[0]
    return Prompt(make(rng), spelled=True)


def prompts(sentences: Sequence[str], spelled: int, read: int, seed: int) -> list[Prompt]:
    """`spelled` prompts in the manner of AN4 and `read` sentences, each at most once in a round, shuffled."""
    rng = Random(seed)
    normalised = [
        text for text in (normalise(sentence) for sentence in sentences) if 1 <= len(text.split()) <= 40
    ]
    words = sorted({word for text in normalised for word in text.split() if 3 <= len(word) <= 10})
    made = [spelled_prompt(rng, words) for _ in range(spelled)]
    while read > 0 and normalised:
        chosen = rng.sample(normalised, min(read, len(normalised)))
        made += [Prompt(text, spelled=False) for text in chosen]
        read -= len(chosen)
    rng.shuffle(made)
    return made
