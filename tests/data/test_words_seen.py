"""The table of words in C numbers what the one in Python numbers, whatever the text."""

import random

import pytest

from peerformer.data.words_seen import WordsInC, WordsInPython, functions_in_c


@pytest.fixture
def both() -> tuple[WordsInPython, WordsInC]:
    functions = functions_in_c()
    if functions is None:
        pytest.skip("there is no C compiler")
    return WordsInPython(), WordsInC(functions)


def alike(both: tuple[WordsInPython, WordsInC], text: str) -> None:
    in_python, in_c = both
    assert in_c.numbers(text).tolist() == in_python.numbers(text).tolist()
    assert in_c.new == in_python.new and in_c.count == in_python.count


def test_space_is_what_python_takes_for_it(both: tuple[WordsInPython, WordsInC]) -> None:
    codes = [code for code in range(0x110000) if not 0xD800 <= code < 0xE000]
    alike(both, "".join(f"{code:x}{chr(code)}" for code in codes))


def test_space_at_both_ends_alone_and_nothing(both: tuple[WordsInPython, WordsInC]) -> None:
    for text in ("", " ", "\u2003\n", " a", "a ", "  a  b\u00a0", "\u3000", "a", "\x85b"):
        alike(both, text)


def test_a_table_grows_and_remembers(both: tuple[WordsInPython, WordsInC]) -> None:
    seed = 11
    print("seed", seed)
    chance = random.Random(seed)
    for _ in range(40):
        words = (chance.randrange(60_000) for _ in range(5_000))
        alike(both, " ".join(f"{word:x}" * (1 + word % 5) for word in words))
    assert both[1].count > 32_768  # more than half of the first slots
