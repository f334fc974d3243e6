"""Beginnings that texts share, kept in pages so that they are computed once.

A full page of keys and values depends on its tokens and on all before them. So it is found by the
hash of its tokens chained to the hash of the page before: equal hashes mean equal texts up to
there. A text takes the pages of its longest known beginning and computes the rest; when that is
done, its own full pages are kept for others. Which pages stay is a policy's affair
(`replacement.py`), told each page that is asked for.

A page that the policy lets go is given back only when no text uses it any more: the pool counts
its holders, of which this cache is one. A page whose beginning went is found again when that has
been computed again.

Knows nothing about attention.

Shapes: none; it handles page numbers only.
"""

import itertools
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from blake3 import blake3

from peerformer.model.replacement import Policy

TOKEN_BYTES = 4


class Pool(Protocol):
    """Pages that are counted by holders."""

    @property
    def page_size(self) -> int:
        """Tokens of a page."""
        ...

    def hold(self, page: int) -> None:
        """Hold a page once more."""
        ...

    def release(self, page: int) -> None:
        """Hold a page once less."""
        ...


@dataclass(frozen=True)
class PrefixStatistics:
    """What the cache has done: whole pages of all texts, and those of them that were there."""

    policy_capacity: int
    pages_held: int
    pages_asked: int
    pages_found: int

    @property
    def hit_rate(self) -> float:
        """The share of whole pages that need not be computed."""
        return self.pages_found / self.pages_asked if self.pages_asked else 0.0


class PrefixCache:
    """Pages of a pool, found by the text that they hold.

    Args:
        pool: the pages' pool; it must have more pages than the policy keeps, for the texts.
        policy: which pages stay.
    """

    def __init__(self, pool: Pool, policy: Policy) -> None:
        self.pool, self.policy = pool, policy
        self._pages: dict[Hashable, int] = {}
        self._asked = self._found = 0

    def statistics(self) -> PrefixStatistics:
        """What the cache has done so far."""
        return PrefixStatistics(self.policy.capacity, len(self._pages), self._asked, self._found)

    def take(self, tokens: Sequence[int]) -> list[int]:
        """The pages of the longest known beginning, each held once more for the caller.

        Never the whole text: what follows its last token has to be computed from that token.
        """
        hashes = list(self._hashes(tokens[:-1]))
        known = list(itertools.takewhile(self._pages.__contains__, hashes))
        for key in reversed(known):  # so that a beginning is never older than what follows it
            self.pool.hold(self._pages[key])
            answer = self.policy.request(key)
            assert answer.hit, "the policy keeps what this cache keeps"
        self._asked += len(hashes)
        self._found += len(known)
        return [self._pages[key] for key in known]

    def keep(self, tokens: Sequence[int], pages: Sequence[int]) -> None:
        """Keep a text's full pages for others.

        Args:
            tokens: the text.
            pages: its pages in order; one that is only partly full is not kept.
        """
        full = list(zip(self._hashes(tokens), pages, strict=False))
        for key, page in reversed(full):
            if key in self._pages:
                continue
            answer = self.policy.request(key)
            assert not answer.hit, "the policy keeps what this cache keeps"
            for old in answer.evicted:
                self.pool.release(self._pages.pop(old))
            self.pool.hold(page)
            self._pages[key] = page

    def _hashes(self, tokens: Sequence[int]) -> Iterator[Hashable]:
        """Of each full page the hash of the text up to its end."""
        size, digest = self.pool.page_size, b""
        for start in range(0, len(tokens) - size + 1, size):
            page = tokens[start : start + size]
            content = b"".join(token.to_bytes(TOKEN_BYTES, "little") for token in page)
            digest = blake3(digest + content).digest()
            yield digest
