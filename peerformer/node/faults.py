"""Points in the persistence layer at which a trial may kill this process, as a power cut might.

`PEERFORMER_FAULT=store.before-commit:0.02,blob.before-fsync:0.05` gives points a chance each of a
SIGKILL when they are reached; unset, as always but in trials, nothing is done. The points lie
between two system calls that only together make something durable: what was written and not yet
synchronised, what was synchronised and not yet named. It knows nothing of what is being written.
"""

import logging
import os
import random
import signal

VARIABLE = "PEERFORMER_FAULT"
POINTS = {
    "store.before-begin": "before a transaction of the protocol store begins",
    "store.before-commit": "after its records are written, before they are committed",
    "store.after-commit": "after the commit, before the epoch file counts it",
    "blob.before-fsync": "after a contribution is written, before it is synchronised",
    "blob.before-rename": "after that, before it has its name",
    "blob.before-directory": "after it has its name, before the folder is synchronised",
    "file.before-fsync": "the same three for states, keys and all else that is written whole",
    "file.before-rename": "the same",
    "file.before-directory": "the same",
}

logger = logging.getLogger("peerformer.node")


def chances_of(text: str) -> dict[str, float]:
    """Return the chance of each point that a value of the variable names.

    Raises:
        ValueError: if a point is unknown, or its chance is no number from 0 to 1.
    """
    chances = {}
    for entry in filter(None, text.split(",")):
        point, _, chance = entry.partition(":")
        if point not in POINTS:
            raise ValueError(f"{VARIABLE} names {point!r}; there are: {', '.join(POINTS)}")
        chances[point] = float(chance)
        if not 0.0 <= chances[point] <= 1.0:
            raise ValueError(f"{VARIABLE} gives {point} a chance of {chance}")
    return chances


def reach(point: str) -> None:
    """Be at a point; where a trial gave it a chance, this process may end here."""
    text = os.environ.get(VARIABLE)
    if text and random.random() < chances_of(text).get(point, 0.0):
        logger.warning("killed at %s", point)
        os.kill(os.getpid(), signal.SIGKILL)


def reach_in_store(point: str) -> None:
    """Be at one of the store's own points."""
    reach(f"store.{point}")
