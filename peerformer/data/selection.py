"""Which documents of a spool are trained on, which are held out, and which are left out.

Duplicates go first, then the hash of its text decides for each document. The choice lies beside
each part, one small number a document; in memory is one byte a document at most.
"""

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from peerformer.config import DataConfig
from peerformer.data.documents import Document
from peerformer.data.duplicates import ALIKE, EQUAL, KEPT, Marks, mark_alike, mark_equal
from peerformer.data.holding_out import Border, Fold, border_of, fold_of
from peerformer.data.spool import CHOICE, HELD_OUT, LEFT_OUT, TRAINED, Spool, write_array
from peerformer.data.words import mixed

REASONS = {EQUAL: "equal to an earlier document", ALIKE: "nearly an earlier document"}


def select(
    spool: Spool, config: DataConfig, *, is_held_out: bool, make_minima: Callable[[], None]
) -> None:
    """Decide on every document of a spool, and count in its tally what is left out.

    Args:
        spool: the documents.
        config: whether duplicates stay, and how much is held out.
        is_held_out: whether all of it is held out; else a share, unless `held_out` names a text.
        make_minima: writes the MinHash of every document beside the parts.
    """
    marks: Marks = np.zeros(spool.size[0], np.uint8)
    if config.deduplicate != "none":
        mark_equal(spool, marks)
    if config.deduplicate == "near":
        make_minima()
        mark_alike(spool, marks, config.near_duplicate_threshold)
    _count(spool, marks)

    def kept() -> Iterator[tuple[NDArray[np.int64], NDArray[np.void]]]:
        for first, facts in spool.all_facts():
            chosen = np.flatnonzero(marks[first : first + len(facts)] == KEPT)
            yield chosen + first, facts[chosen]

    is_shared = not is_held_out and config.held_out is None
    border: Border | Fold | None = None
    if is_shared and config.folds:
        border = fold_of(kept, config.folds, config.fold)
    elif is_shared:
        border = border_of(kept, config.validation_fraction)
    for part, (first, facts) in enumerate(spool.all_facts()):
        choice = np.full(len(facts), HELD_OUT if is_held_out else TRAINED, np.uint8)
        if border is not None:
            choice[border.holds_out(np.arange(first, first + len(facts)), facts)] = HELD_OUT
        choice[marks[first : first + len(facts)] != KEPT] = LEFT_OUT
        write_array(spool.file(part, CHOICE), choice)


def _count(spool: Spool, marks: Marks) -> None:
    """Count duplicates and name the first of them."""
    for mark, reason in REASONS.items():
        if not (marks == mark).any():
            continue
        for part, (first, facts) in enumerate(spool.all_facts()):
            rows = np.flatnonzero(marks[first : first + len(facts)] == mark)
            if not len(rows):
                continue
            named = spool.documents(part) if spool.tally.wants_examples(reason) else None
            for row in rows.tolist():
                where = "" if named is None else named[row].source
                spool.leave_out(where, reason, size_bytes=int(facts["bytes"][row]))


def sample(spool: Spool, characters_max: int) -> Iterator[Document]:
    """Yield training documents up to so many characters, evenly out of all of them."""
    total = sum(
        int(facts["characters"][spool.choice(part) == TRAINED].sum(dtype=np.int64))
        for part, (_, facts) in enumerate(spool.all_facts())
    )
    share = min(1.0, characters_max / max(total, 1))
    for part, (_, facts) in enumerate(spool.all_facts()):
        is_wanted = spool.choice(part) == TRAINED
        if share < 1:
            is_wanted &= mixed(facts["hash"]) < np.uint64(int(share * 2**64))
        if is_wanted.any():
            documents = spool.documents(part)
            yield from (documents[row] for row in np.flatnonzero(is_wanted))
