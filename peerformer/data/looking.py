"""What would be read of some text: counts, reasons, and a few documents, without preparing it.

It goes the very way of a preparation (the same reading, rules, duplicates and holding out), in a
folder that is thrown away afterwards, and stops where the tokenizer would come.
"""

import heapq
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from peerformer.config import DataConfig
from peerformer.data.documents import Document
from peerformer.data.prepare import OnProgress, described, gathered
from peerformer.data.spool import HELD_OUT, LEFT_OUT, Spool
from peerformer.data.tally import Tally
from peerformer.data.words import mixed


@dataclass(frozen=True)
class Look:
    """What a look has found.

    Attributes:
        description: the text in a line.
        tally: what was read, and what was left out and why.
        documents, bytes: what is kept.
        held_out_documents, held_out_bytes: what of it is held out.
        is_limited: reading stopped at `max_bytes`.
        samples: some of what is kept, chosen by a hash, so always the same.
    """

    description: str
    tally: Tally
    documents: int
    bytes: int
    held_out_documents: int
    held_out_bytes: int
    is_limited: bool
    samples: list[Document]

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        plain = {name: getattr(self, name) for name in self.__dataclass_fields__}
        shown = [{"source": document.source, "text": document.text} for document in self.samples]
        return plain | {"tally": self.tally.to_json(), "samples": shown}


def look(config: DataConfig, work: Path, *, samples: int, on_progress: OnProgress) -> Look:
    """Read some text, choose as a preparation does, and tell.

    Args:
        config: which text, and how.
        work: an empty folder for the text on its way.
        samples: so many documents to show.
        on_progress: called now and then while it works.

    Raises:
        DataError: there is no text.
    """
    spools = gathered(config, work, "look", on_progress)
    held_out_documents = held_out_bytes = 0
    for spool in spools:
        for part, (_, facts) in enumerate(spool.all_facts()):
            is_held_out = spool.choice(part) == HELD_OUT
            held_out_documents += int(is_held_out.sum())
            held_out_bytes += int(facts["bytes"][is_held_out].sum(dtype=np.int64))
    spool = spools[0]
    documents, size = spool.size
    return Look(
        description=described(config, spool),
        tally=spool.tally,
        documents=documents,
        bytes=size,
        held_out_documents=held_out_documents,
        held_out_bytes=held_out_bytes,
        is_limited=spool.taken_bytes >= config.max_bytes,
        samples=_samples(spool, samples),
    )


def _samples(spool: Spool, count: int) -> list[Document]:
    """Return the kept documents whose hashes, mixed, are the least; in order of reading."""
    lowest: list[tuple[int, int, int]] = []  # (hash, part, row)
    for part, (_, facts) in enumerate(spool.all_facts()):
        rows = np.flatnonzero(spool.choice(part) != LEFT_OUT)
        hashes = mixed(facts["hash"][rows])
        order = np.argsort(hashes)[:count]
        some = [(int(hashes[index]), part, int(rows[index])) for index in order]
        lowest = heapq.nsmallest(count, lowest + some)
    places = sorted((part, row) for _, part, row in lowest)
    return [spool.documents(part)[row] for part, row in places]
