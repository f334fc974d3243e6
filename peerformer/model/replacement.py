"""Which of many keys to keep in a cache of c: least recently used, ARC, and S3-FIFO.

A policy is told each request and answers whether the key was there and which keys went for it. A
key that is asked for is there afterwards. What the keys stand for is the caller's affair:
here they are pages of keys and values in `prefix_cache.py`.

- `LeastRecentlyUsed` lets go the key that was not asked for for the longest time. A long scan
  washes everything out of it.
- `AdaptiveReplacement` (ARC) keeps keys seen once lately (T1) apart from those seen twice (T2),
  remembers as many that it let go (ghosts, B1 and B2), and shifts the space between both towards
  the side whose ghosts are asked for.
- `SmallMainGhost` (S3-FIFO) holds what is new in a small first-in-first-out queue and moves to the
  main one only what is asked for again, or comes back while its ghost is remembered.

All of them take constant time a request, on average.

Knows nothing about caches' content, pages or tokens.

Sources: Megiddo and Modha, ARC: A Self-Tuning, Low Overhead Replacement Cache, FAST 2003, figure 4;
Yang et al., FIFO Queues are All You Need for Cache Eviction, SOSP 2023, algorithm 1.
"""

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Protocol

SMALL_SHARE = 0.1  # of S3-FIFO's capacity, for what is new; the paper's
REQUESTS_COUNTED_MAX = 3  # S3-FIFO counts with two bits

Queue = OrderedDict[Hashable, None]  # the oldest first


@dataclass(frozen=True)
class Answer:
    """What came of a request: whether the key was there, and which keys went."""

    hit: bool
    evicted: tuple[Hashable, ...] = ()


class Policy(Protocol):
    """Which keys are kept; `capacity` of them at most."""

    capacity: int

    def request(self, key: Hashable) -> Answer:
        """Ask for a key; afterwards it is there."""
        ...

    def __contains__(self, key: Hashable) -> bool:
        """Whether a key is there; asking so changes nothing."""
        ...

    def __len__(self) -> int:
        """How many keys are there."""
        ...


class LeastRecentlyUsed:
    """Keeps the `capacity` keys that were asked for last."""

    def __init__(self, capacity: int) -> None:
        assert capacity > 0, capacity
        self.capacity = capacity
        self._keys: Queue = OrderedDict()

    def request(self, key: Hashable) -> Answer:
        """Ask for a key; afterwards it is there."""
        if key in self._keys:
            self._keys.move_to_end(key)
            return Answer(hit=True)
        evicted = (_oldest(self._keys),) if len(self._keys) == self.capacity else ()
        self._keys[key] = None
        return Answer(hit=False, evicted=evicted)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._keys

    def __len__(self) -> int:
        return len(self._keys)


class AdaptiveReplacement:
    """ARC, exactly as figure 4 of the paper has it; the cases carry its numbers.

    The most recently used end of each list is its end here.
    """

    def __init__(self, capacity: int) -> None:
        assert capacity > 0, capacity
        self.capacity = capacity
        self.target = 0.0  # p: the size wished for T1
        self._t1: Queue = OrderedDict()
        self._t2: Queue = OrderedDict()
        self._b1: Queue = OrderedDict()
        self._b2: Queue = OrderedDict()

    def request(self, key: Hashable) -> Answer:
        """Ask for a key; afterwards it is there."""
        if key in self._t1 or key in self._t2:  # case I
            self._t1.pop(key, None)
            self._t2[key] = None
            self._t2.move_to_end(key)
            return Answer(hit=True)
        if key in self._b1:  # case II
            step = max(1.0, len(self._b2) / len(self._b1))
            self.target = min(self.target + step, self.capacity)
            return self._recall(key, self._b1)
        if key in self._b2:  # case III
            step = max(1.0, len(self._b1) / len(self._b2))
            self.target = max(self.target - step, 0.0)
            return self._recall(key, self._b2)
        evicted = self._make_room(key)  # case IV
        self._t1[key] = None
        return Answer(hit=False, evicted=evicted)

    def _recall(self, key: Hashable, ghosts: Queue) -> Answer:
        evicted = self._replace(key)
        del ghosts[key]
        self._t2[key] = None
        return Answer(hit=False, evicted=evicted)

    def _make_room(self, key: Hashable) -> tuple[Hashable, ...]:
        """Case IV, for a key that is in none of the lists."""
        held = len(self._t1) + len(self._t2) + len(self._b1) + len(self._b2)
        if len(self._t1) + len(self._b1) == self.capacity:  # A
            if len(self._t1) < self.capacity:
                _oldest(self._b1)
                return self._replace(key)
            return (_oldest(self._t1),)  # B1 is empty
        if held >= self.capacity:  # B
            if held == 2 * self.capacity:
                _oldest(self._b2)
            return self._replace(key)
        return ()

    def _replace(self, key: Hashable) -> tuple[Hashable, ...]:
        """REPLACE: the oldest key of T1 or T2 goes, and leaves its ghost."""
        size = len(self._t1)
        if self._t1 and (size > self.target or (key in self._b2 and size == self.target)):
            old = _oldest(self._t1)
            self._b1[old] = None
        else:
            old = _oldest(self._t2)
            self._b2[old] = None
        return (old,)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._t1 or key in self._t2

    def __len__(self) -> int:
        return len(self._t1) + len(self._t2)


class SmallMainGhost:
    """S3-FIFO: a small queue for what is new, a main one, and the ghosts of the small one."""

    def __init__(self, capacity: int) -> None:
        assert capacity > 0, capacity
        self.capacity = capacity
        self._small_size = max(1, int(capacity * SMALL_SHARE))
        self._main_size = max(1, capacity - self._small_size)
        self._small: OrderedDict[Hashable, int] = OrderedDict()  # key -> requests since it came
        self._main: OrderedDict[Hashable, int] = OrderedDict()
        self._ghosts: Queue = OrderedDict()

    def request(self, key: Hashable) -> Answer:
        """Ask for a key; afterwards it is there."""
        for queue in (self._small, self._main):
            if key in queue:
                queue[key] = min(queue[key] + 1, REQUESTS_COUNTED_MAX)
                return Answer(hit=True)
        evicted: list[Hashable] = []
        while len(self) >= self.capacity:
            evicted += self._evict()
        remembered = key in self._ghosts
        if remembered:
            del self._ghosts[key]
        (self._main if remembered else self._small)[key] = 0
        return Answer(hit=False, evicted=tuple(evicted))

    def _evict(self) -> list[Hashable]:
        if len(self._small) >= self._small_size or not self._main:
            return self._evict_small()
        return [self._evict_main()]

    def _evict_small(self) -> list[Hashable]:
        """The oldest new key goes; those before it that were asked for again become main ones."""
        evicted: list[Hashable] = []
        while self._small:
            key, requests = self._small.popitem(last=False)
            if requests <= 1:
                self._ghosts[key] = None
                if len(self._ghosts) > self._main_size:
                    _oldest(self._ghosts)
                return [*evicted, key]
            if len(self._main) >= self._main_size:
                evicted.append(self._evict_main())
            self._main[key] = 0
        return evicted

    def _evict_main(self) -> Hashable:
        """The oldest main key that was not asked for since it last came to be the oldest."""
        while True:
            key, requests = self._main.popitem(last=False)
            if requests == 0:
                return key
            self._main[key] = requests - 1

    def __contains__(self, key: Hashable) -> bool:
        return key in self._small or key in self._main

    def __len__(self) -> int:
        return len(self._small) + len(self._main)


POLICIES: dict[str, type[LeastRecentlyUsed | AdaptiveReplacement | SmallMainGhost]] = {
    "lru": LeastRecentlyUsed,
    "arc": AdaptiveReplacement,
    "s3-fifo": SmallMainGhost,
}


def _oldest(queue: Queue) -> Hashable:
    return queue.popitem(last=False)[0]
