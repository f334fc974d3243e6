"""Documents that were there before, exactly or nearly, found in bounded memory.

Equal documents have equal hashes. Near duplicates share most of their word 5-grams: MinHash keeps
of each document the least of 128 hash functions over its n-grams, and the share of equal minima of
two documents estimates the Jaccard similarity of their sets (Broder 1997). Locality-sensitive
hashing finds the pairs to compare: the minima are cut into bands, and documents that agree on a
whole band are candidates (Leskovec, Rajaraman and Ullman, Mining of Massive Datasets, chapter 3).

The later document goes, the first stays. Hashes and minima lie on disk; they are compared in as
many passes, each over the keys of one residue class, as keep one pass under a fixed size.
"""

from collections.abc import Callable, Iterator
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from peerformer.data.spool import Spool
from peerformer.data.words import ngrams_of, words_of

MINIMA = 128
NGRAMS_AT_ONCE = 1_024  # times MINIMA numbers of four bytes are in memory
KEYS_AT_ONCE = 4_000_000  # of documents compared in one pass; 16 bytes each, and sorted
CATCH = 0.95  # probability that a pair at the threshold becomes a candidate
REPRESENTATIVES_MAX = 8  # of documents that agree on a band and are not alike
KIND = "minima.npy"
KEPT, EQUAL, ALIKE = 0, 1, 2

_random = np.random.default_rng(20_250_101)
_FACTORS = _random.integers(0, 1 << 32, MINIMA, np.uint32) | np.uint32(1)
_SUMMANDS = _random.integers(0, 1 << 32, MINIMA, np.uint32)
del _random

Marks = NDArray[np.uint8]


def minima_of(text: str) -> NDArray[np.uint32]:
    """Return the MinHash of a text, (MINIMA,)."""
    words = words_of(text) or list(text)  # of signs alone
    grams = np.unique((ngrams_of(words) >> np.uint64(32)).astype(np.uint32))
    minima = np.full(MINIMA, np.uint32(0xFFFFFFFF))
    for start in range(0, len(grams), NGRAMS_AT_ONCE):
        some = grams[start : start + NGRAMS_AT_ONCE, None]
        np.minimum(minima, (some * _FACTORS + _SUMMANDS).min(axis=0), out=minima)
    return minima


def bands_for(threshold: float) -> tuple[int, int]:
    """Return into how many bands of how many minima a threshold cuts: as few pairs as catch."""
    for rows in range(MINIMA, 1, -1):
        bands = MINIMA // rows
        if 1 - (1 - threshold**rows) ** bands >= CATCH:
            return bands, rows
    return MINIMA, 1


def mark_equal(spool: Spool, marks: Marks) -> None:
    """Mark every document whose text came before."""

    def hashes() -> Iterator[tuple[int, NDArray[np.uint64]]]:
        for first, facts in spool.all_facts():
            yield first, facts["hash"]

    for keys, numbers in _residue_classes(hashes, len(marks)):
        later = np.ones(len(keys), np.bool_)
        later[np.unique(keys, return_index=True)[1]] = False
        marks[numbers[later]] = EQUAL


def mark_alike(spool: Spool, marks: Marks, threshold: float) -> None:
    """Mark every unmarked document that is nearly an earlier one; the minima are there already."""
    minima = _Minima(spool)
    bands, rows = bands_for(threshold)
    for band in range(bands):

        def keys_of_band(columns: slice = slice(band * rows, (band + 1) * rows)) -> _Keyed:
            for first, part in minima.parts():
                yield first, _folded(part[:, columns])

        for keys, numbers in _residue_classes(keys_of_band, len(marks)):
            unmarked = marks[numbers] == KEPT
            keys, numbers = keys[unmarked], numbers[unmarked]
            order = np.argsort(keys, kind="stable")
            keys, numbers = keys[order], numbers[order]
            edges = np.concatenate([[0], np.flatnonzero(np.diff(keys)) + 1, [len(keys)]])
            for index in np.flatnonzero(np.diff(edges) > 1):
                group = numbers[edges[index] : edges[index + 1]]
                _mark_group(group, minima, marks, threshold)


_Keyed = Iterator[tuple[int, NDArray[np.uint64]]]


def _residue_classes(
    keyed: Callable[[], _Keyed], count: int
) -> Iterator[tuple[NDArray[np.uint64], NDArray[np.int64]]]:
    """Yield keys and document numbers, all equal keys together and in order of documents."""
    classes = -(-count // KEYS_AT_ONCE)
    for residue in range(classes):
        keys, numbers = [], []
        for first, part in keyed():
            chosen = np.flatnonzero(part % np.uint64(classes) == residue)
            keys.append(part[chosen])
            numbers.append(chosen + first)
        yield np.concatenate(keys), np.concatenate(numbers)


def _mark_group(
    group: NDArray[np.int64], minima: "_Minima", marks: Marks, threshold: float
) -> None:
    kept = minima.row(int(group[0]))[None]
    for number in map(int, group[1:]):
        row = minima.row(number)
        if ((kept == row).mean(axis=1) >= threshold).any():
            marks[number] = ALIKE
        elif len(kept) < REPRESENTATIVES_MAX:
            kept = np.vstack([kept, row])


def _folded(rows: NDArray[np.uint32]) -> NDArray[np.uint64]:
    """Return one number for each row."""
    keys = np.zeros(len(rows), np.uint64)
    for column in rows.T:
        keys = (keys ^ column) * np.uint64(0x9E3779B97F4A7C15)
        keys ^= keys >> np.uint64(29)
    return keys


class _Minima:
    """The minima of all documents of a spool, on disk."""

    def __init__(self, spool: Spool) -> None:
        self.spool = spool
        self.firsts = [first for first, _ in spool.all_facts()]
        self._part = lru_cache(maxsize=64)(self._open)

    def _open(self, part: int) -> NDArray[np.uint32]:
        return np.load(self.spool.file(part, KIND), mmap_mode="r")

    def parts(self) -> Iterator[tuple[int, NDArray[np.uint32]]]:
        for part, first in enumerate(self.firsts):
            yield first, self._part(part)

    def row(self, number: int) -> NDArray[np.uint32]:
        part = int(np.searchsorted(self.firsts, number, side="right")) - 1
        return np.asarray(self._part(part)[number - self.firsts[part]])
