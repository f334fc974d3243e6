"""Words of any script, as numbers that are the same on every machine.

A word is a run of letters, digits and marks, in small letters; in scripts that are written without
spaces (Han, kana, Hangul syllables, Thai and its neighbours) each character is a word by itself.
n-grams of words get one 64-bit number each.
"""

import re
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

NGRAM_WORDS = 5

# Character by character where no spaces divide words; runs of what is no sign elsewhere.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\u2fdf\u3040-\u30ff\u3100-\u312f\u3400-\u9fff"
    "\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff"
)
_WORD = re.compile(rf"[{_UNSPACED}]|(?:(?![{_UNSPACED}])[^\W_]|[\u0300-\u036f\u0900-\u0dff])+")
_ASCII_WORD = re.compile(r"[a-z0-9]+")
_ROLL = np.uint64(0x9E3779B97F4A7C15)


def words_of(text: str) -> list[str]:
    """Return the words of a text."""
    if text.isascii():
        return _ASCII_WORD.findall(text.lower())
    return _WORD.findall(text.lower())


def ngrams_of(words: list[str], length: int = NGRAM_WORDS) -> NDArray[np.uint64]:
    """Return the number of each n-gram, (len(words) - length + 1,); of all where there are few."""
    numbers = np.fromiter((crc32(word.encode()) for word in words), np.uint64, len(words))
    length = max(1, min(length, len(words)))
    grams = np.zeros(len(words) - length + 1, np.uint64)
    for place in range(length):
        grams = grams * _ROLL + numbers[place : place + len(grams)]
    return mixed(grams)


def mixed(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return numbers whose every bit depends on all bits (the finaliser of MurmurHash3)."""
    numbers = (numbers ^ (numbers >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
    numbers = (numbers ^ (numbers >> np.uint64(33))) * np.uint64(0xC4CEB9FE1A85EC53)
    return numbers ^ (numbers >> np.uint64(33))
