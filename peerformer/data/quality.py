"""Why a document had better not be trained on, by rules that know no language.

Lengths, the shares of signs and digits, the longest line, and how much of the text says again what
it said already, in lines and in runs of words (the rules of Rae et al., Scaling Language Models,
2021, table A1, that do not depend on English). Each is off until its setting says otherwise.
"""

import unicodedata
from functools import cache

import numpy as np
from numpy.typing import NDArray

from peerformer.config import DataConfig
from peerformer.data.words import NGRAM_WORDS, ngrams_of, words_of

LETTER, DIGIT, SPACE, SIGN = range(4)
_CLASS_OF = {"L": LETTER, "M": LETTER, "N": DIGIT, "Z": SPACE}


def fault_of(text: str, config: DataConfig) -> str | None:
    """Return the first rule that a document breaks, in words that name the setting, or None."""
    if len(text) < config.characters_min:
        return "shorter than data.characters_min"
    if 0 < config.characters_max < len(text):
        return "longer than data.characters_max"
    if 0 < config.line_characters_max < max(map(len, text.split("\n"))):
        return "a line longer than data.line_characters_max"
    if config.symbol_share_max < 1 or config.digit_share_max < 1:
        signs, digits = sign_and_digit_shares(text)
        if signs > config.symbol_share_max:
            return "more signs than data.symbol_share_max"
        if digits > config.digit_share_max:
            return "more digits than data.digit_share_max"
    most = config.repeated_line_share_max
    if most < 1 and repeated_line_share(text) > most:
        return "more repeated lines than data.repeated_line_share_max"
    most = config.repeated_words_share_max
    if most < 1 and repeated_words_share(text) > most:
        return "more repeated words than data.repeated_words_share_max"
    return None


def sign_and_digit_shares(text: str) -> tuple[float, float]:
    """Return the shares of signs and of digits among the characters that are not space."""
    codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    counts = np.bincount(_classes()[codes], minlength=4)
    shown = max(1, int(counts.sum() - counts[SPACE]))
    return float(counts[SIGN]) / shown, float(counts[DIGIT]) / shown


@cache
def _classes() -> NDArray[np.uint8]:
    """Return the class of every character there is, by its number."""
    classes = [_CLASS_OF.get(unicodedata.category(chr(code))[0], SIGN) for code in range(0x110000)]
    for code in (*range(9, 14), 0x85):
        classes[code] = SPACE
    return np.array(classes, np.uint8)


def repeated_line_share(text: str) -> float:
    """Return the share of characters in lines that the text has had before; blank lines apart."""
    lines = [line for line in text.split("\n") if line.strip()]
    all_of_them = sum(map(len, lines))
    return 1 - sum(map(len, dict.fromkeys(lines))) / all_of_them if all_of_them else 0.0


def repeated_words_share(text: str) -> float:
    """Return the share of words that lie in a run of five words that the text has had before."""
    words = words_of(text)
    if len(words) <= NGRAM_WORDS:
        return 0.0
    grams = ngrams_of(words)
    first = np.zeros(len(grams), np.bool_)
    first[np.unique(grams, return_index=True)[1]] = True
    # Each repeated run covers the words from its own to the fourth after it.
    edges = np.zeros(len(words) + 1, np.int64)
    starts = np.flatnonzero(~first)
    np.add.at(edges, starts, 1)
    np.add.at(edges, starts + NGRAM_WORDS, -1)
    return float((np.cumsum(edges[:-1]) > 0).mean())
