"""Which documents are held out: those whose text has a small hash, wherever they are found.

Or, for cross-validation, those of one of k folds, into which documents are dealt by their hash.

The rank of a document is the hash of its text; of a pair, that of its prompt. The border between
held out and trained on is found in two passes over the ranks, part by part, and is the one that
sorting all of them in memory would give. Both sides hold something: if too little falls below the
wanted share, the documents next above it are held out as well.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from peerformer.errors import DataError

HELD_OUT_CHARACTERS_MIN = 8_192  # else a window does not fit in what little text holds out

Ranked = Callable[[], Iterator[tuple[NDArray[np.int64], NDArray[np.void]]]]


@dataclass(frozen=True, slots=True)
class Border:
    """The first document, by rank and then by number, that is not held out."""

    rank: int
    number: int

    def holds_out(self, numbers: NDArray[np.int64], facts: NDArray[np.void]) -> NDArray[np.bool_]:
        """Tell which documents are held out."""
        border = np.uint64(min(self.rank, 2**64 - 1))
        is_same = (facts["rank"] == border) & (numbers < self.number)
        return (facts["rank"] < border) | is_same


@dataclass(frozen=True, slots=True)
class Fold:
    """One of so many parts of the documents."""

    index: int
    folds: int

    def holds_out(self, numbers: NDArray[np.int64], facts: NDArray[np.void]) -> NDArray[np.bool_]:
        """Tell which documents are held out; equal texts are in the same fold."""
        return facts["hash"] % np.uint64(self.folds) == self.index


def fold_of(ranked: Ranked, folds: int, fold: int) -> Fold:
    """Return a fold, after it is known that each of them holds a document.

    Raises:
        DataError: one of them would hold none.
    """
    counts = np.zeros(folds, np.int64)
    for _, facts in ranked():
        dealt = (facts["hash"] % np.uint64(folds)).astype(np.int64)
        counts += np.bincount(dealt, minlength=folds)
    if not counts.all():
        empty = int(np.flatnonzero(counts == 0)[0]) + 1
        raise DataError(
            f"{int(counts.sum())} documents are too few for {folds} folds: fold {empty} holds none",
            why="documents are dealt out by the hash of their text, each as a whole",
            hint="fewer folds, or text in more files (a file is cut where it is long)",
        )
    return Fold(fold, folds)


def border_of(ranked: Ranked, validation_fraction: float) -> Border:
    """Return the border for a share of the documents.

    Held out are at least some thousand characters, or a tenth of the text where there is little,
    and never all documents.

    Args:
        ranked: called for a pass; yields the numbers and the facts of documents, in order.
        validation_fraction: the share.
    """
    limit = math.ceil(validation_fraction * 2**64)
    count = below = characters = below_characters = 0
    last = (-1, -1)
    for numbers, facts in ranked():
        if not len(facts):
            continue
        is_below = facts["rank"] < np.uint64(limit)
        count, below = count + len(facts), below + int(is_below.sum())
        characters += int(facts["characters"].sum(dtype=np.int64))
        below_characters += int(facts["characters"][is_below].sum(dtype=np.int64))
        highest = np.lexsort((numbers, facts["rank"]))[-1]
        last = max(last, (int(facts["rank"][highest]), int(numbers[highest])))
    wanted = min(HELD_OUT_CHARACTERS_MIN, characters // 10)
    if below == count:
        return Border(*last)
    if below and below_characters >= wanted:
        return Border(limit, 0)
    lowest = _lowest(ranked, wanted)
    return min(lowest, Border(*last), key=lambda border: (border.rank, border.number))


def _lowest(ranked: Ranked, wanted: int) -> Border:
    """Return the border above the documents of the lowest hashes with so many characters."""
    kept_numbers, kept = np.empty(0, np.int64), None
    for numbers, facts in ranked():
        numbers = np.concatenate([kept_numbers, numbers])
        facts = facts if kept is None else np.concatenate([kept, facts])
        order = np.lexsort((numbers, facts["rank"]))
        sums = np.cumsum(facts["characters"][order], dtype=np.int64)
        most = max(1, int(np.searchsorted(sums, wanted)) + 1)
        chosen = order[: most + 1]  # the one more is the first above the border
        kept_numbers, kept = numbers[chosen], facts[chosen]
    assert kept is not None, "there is nothing to hold out from"
    return Border(int(kept["rank"][-1]), int(kept_numbers[-1]))
