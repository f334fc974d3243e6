r"""Words of texts, numbered as they come: in C where texts are long, else in Python.

A word is what the expression `\s*\S+|\s+` finds: the space before it belongs to it. Both tables
give the same numbers; the one in C takes a few nanoseconds a character, and is compiled when it
pays (`words_seen.c`).
"""

import ctypes
import re
import weakref
from functools import cache
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from peerformer.kernels.compiled import library_of

SOURCE = Path(__file__).with_name("words_seen.c")
TEXT_BYTES_MAX = 1 << 30  # places in a text are 32-bit numbers

_WORD = re.compile(r"\s*\S+|\s+")


class WordsSeen(Protocol):
    """Numbers words from 0 in the order in which they first come.

    Attributes:
        new: the words that came since somebody took them out.
        count: of all words.
        characters: of all words together; in C, bytes.
    """

    new: list[str]
    characters: int

    @property
    def count(self) -> int:
        """The number of words."""
        ...

    def numbers(self, text: str) -> NDArray[np.int32]:
        """Return the number of each word of a text, one after the other."""
        ...


class WordsInPython(dict[str, int]):
    """The words in a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.new: list[str] = []
        self.characters = 0

    def __missing__(self, word: str) -> int:
        number = self[word] = len(self)
        self.new.append(word)
        self.characters += len(word)
        return number

    @property
    def count(self) -> int:
        """The number of words."""
        return len(self)

    def numbers(self, text: str) -> NDArray[np.int32]:
        """Return the number of each word of a text, one after the other."""
        words = _WORD.findall(text)
        return np.fromiter(map(self.__getitem__, words), np.int32, len(words))


class WordsInC:
    """The words in a table of `words_seen.c`."""

    def __init__(self, functions: ctypes.CDLL) -> None:
        self.new: list[str] = []
        self.characters = self.count = 0
        self._functions = functions
        self._table = functions.words_new()
        if not self._table:
            raise MemoryError("no memory for a table of words")
        weakref.finalize(self, functions.words_free, self._table)
        self._numbers = np.empty(0, np.int32)  # written anew for each text
        self._ends = np.empty((0, 2), np.int32)

    def numbers(self, text: str) -> NDArray[np.int32]:
        """Return the number of each word of a text, one after the other."""
        data = text.encode()
        assert len(data) <= TEXT_BYTES_MAX
        if len(data) > len(self._numbers):
            self._numbers = np.empty(2 * len(data), np.int32)
            self._ends = np.empty((2 * len(data), 2), np.int32)
        fresh = ctypes.c_int64()
        places = self._numbers.ctypes.data, self._ends.ctypes.data, ctypes.byref(fresh)
        count = self._functions.words_number(self._table, data, len(data), *places)
        if count < 0:
            raise MemoryError("no memory for the words of a text")
        for start, end in self._ends[: fresh.value].tolist():
            self.new.append(data[start:end].decode())
            self.characters += end - start
        self.count += fresh.value
        return self._numbers[:count].copy()


@cache
def functions_in_c() -> ctypes.CDLL | None:
    """Return the functions of `words_seen.c`; None where they cannot be compiled."""
    functions = library_of(SOURCE)
    if functions is not None:
        functions.words_new.restype = ctypes.c_void_p
        functions.words_free.argtypes = [ctypes.c_void_p]
        functions.words_free.restype = None
        functions.words_number.restype = ctypes.c_int64
        functions.words_number.argtypes = [
            ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int64,
            ctypes.c_void_p, ctypes.c_void_p, ctypes.POINTER(ctypes.c_int64),
        ]  # fmt: skip
    return functions
