"""Keys and values in pages of a fixed pool, which sequences take as they grow and share.

A page holds the keys and values of `page_size` tokens in a row, of all layers. A sequence has a
table of the pages that its text fills, so that it takes memory for its own length and not for the
longest one's; pages of the same beginning are shared and counted, and one that is shared is copied
before it is written. The pool is allocated once and never grows: taking a page and giving it back
take constant time, and where none is left that is an error with the numbers in it.

To attend, the pages of a sequence are gathered side by side: a copy of what is seen, for each
layer in turn. Kernels that read pages where they are would spare that, on a GPU.

Knows nothing about who shares what: `prefix_cache.py` finds that.

Source: Kwon et al., Efficient Memory Management for Large Language Model Serving with
PagedAttention, SOSP 2023.

Shapes: B batch, G key-value heads, K head dimension, N tokens of a page, P pages of a sequence,
M tokens written, S slots, T new tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from peerformer.config import ModelConfig
from peerformer.errors import ConfigError
from peerformer.model.prefix_cache import PrefixCache
from peerformer.model.stored_vectors import StoredVectors


@dataclass(frozen=True)
class PoolStatistics:
    """How a pool stands. `fragmentation` is the share of taken slots that hold no token."""

    pages: int
    free: int
    used: int
    used_most: int
    tokens: int
    fragmentation: float


class PagePool:
    """Pages for keys and values, taken and given back one at a time.

    Args:
        config: the model's shape.
        pages: how many there are, for ever.
        page_size: tokens N of a page.
        dtype: of keys and values.
        device: where they are kept.
        rounded: keep them in eight bits with a scale for each token and head.
    """

    def __init__(
        self,
        config: ModelConfig,
        pages: int,
        page_size: int = 16,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        *,
        rounded: bool = False,
    ) -> None:
        if pages < 1 or page_size < 1:
            raise ConfigError(
                f"a pool of {pages} pages of {page_size} tokens holds nothing",
                hint="--cache-pages 256 --page-size 16",
            )
        self.pages, self.page_size, self.device = pages, page_size, device
        self.length_max = config.max_positions  # of one text
        shape = (pages, config.num_kv_heads, page_size, config.head_dim)
        self.layers = [
            tuple(StoredVectors(shape, dtype, device, rounded=rounded) for _ in ("k", "v"))
            for _ in range(config.num_layers)
        ]
        self._free = list(range(pages - 1, -1, -1))
        self._holders = [0] * pages
        self._used_most = 0

    def take(self) -> int:
        """A free page, held once; in constant time.

        Raises:
            ConfigError: all pages are held.
        """
        if not self._free:
            raise ConfigError(
                f"the pool of {self.pages} pages is used up",
                why=f"all of its {self.pages * self.page_size} tokens are held by texts and"
                " prefixes",
                hint="--cache-pages with more of them, or fewer prompts at once with --batch",
            )
        page = self._free.pop()
        assert self._holders[page] == 0, f"page {page} was free and held"
        self._holders[page] = 1
        self._used_most = max(self._used_most, self.pages - len(self._free))
        return page

    def hold(self, page: int) -> None:
        """Hold a page once more."""
        assert self._holders[page] > 0, f"page {page} is free"
        self._holders[page] += 1

    def release(self, page: int) -> None:
        """Hold a page once less; who held it last gives it back."""
        assert self._holders[page] > 0, f"page {page} is free"
        self._holders[page] -= 1
        if self._holders[page] == 0:
            self._free.append(page)

    def is_shared(self, page: int) -> bool:
        """Whether more than one holds a page."""
        return self._holders[page] > 1

    def copy(self, page: int) -> int:
        """A page of one's own with the same content."""
        mine = self.take()
        for pair in self.layers:
            for stored in pair:
                stored.copy(page, mine)
        return mine

    @property
    def size_bytes(self) -> int:
        """Memory of keys and values; it does not change."""
        return sum(stored.size_bytes for pair in self.layers for stored in pair)

    def statistics(self, tables: Sequence[tuple[int, Sequence[int]]] = ()) -> PoolStatistics:
        """How the pool stands.

        Args:
            tables: of each sequence its tokens and its pages. A page that none of them has is
                one of a cached prefix, and full.
        """
        filled = {page: self.page_size for page, held in enumerate(self._holders) if held}
        for tokens, pages in tables:
            for index, page in enumerate(pages):
                filled[page] = min(self.page_size, tokens - index * self.page_size)
        used, tokens = len(filled), sum(filled.values())
        return PoolStatistics(
            pages=self.pages,
            free=len(self._free),
            used=used,
            used_most=self._used_most,
            tokens=tokens,
            fragmentation=1 - tokens / (used * self.page_size) if used else 0.0,
        )


class PagedCache:
    """The cache of one batch, in pages of a pool; keeps the protocol of `cache.Cache`.

    Args:
        pool: where the pages come from; others may use it as well.
        batch_size: sequences B.
        prefixes: shared beginnings of texts, in pages of the same pool; None shares nothing.
    """

    def __init__(self, pool: PagePool, batch_size: int, prefixes: PrefixCache | None = None):
        assert prefixes is None or prefixes.pool is pool
        self.pool, self.prefixes = pool, prefixes
        self._tables: list[list[int]] = [[] for _ in range(batch_size)]
        self._lengths = [0] * batch_size
        self._padding = [0] * batch_size
        self._texts: list[Sequence[int]] = []  # whose prefixes are to be kept
        self._slots: _Slots | None = None  # of the tokens that are being written

    @property
    def length(self) -> int:
        """Tokens of the longest sequence."""
        return max(self._lengths, default=0)

    @property
    def room(self) -> int:
        """Tokens that the longest sequence can still take, where the pool has pages for it."""
        return self.pool.length_max - self.length

    def statistics(self) -> PoolStatistics:
        """How the pool stands, with the pages of this cache counted as full as they are."""
        return self.pool.statistics(list(zip(self._lengths, self._tables, strict=True)))

    def begin(self, texts: Sequence[Sequence[int]]) -> list[int]:
        """Give all pages back, and take those that hold the beginnings of the texts.

        Returns:
            How many tokens of each text need not be computed; at least the last one must.
        """
        assert len(texts) == len(self._tables), (len(texts), len(self._tables))
        self.clear()
        if self.prefixes is not None:
            self._texts = list(texts)
            self._tables = [self.prefixes.take(text) for text in texts]
            self._lengths = [len(table) * self.pool.page_size for table in self._tables]
        return list(self._lengths)

    def pad(self, padding: Sequence[int]) -> None:
        """So many of the next tokens of each sequence are padding; nothing is kept of them."""
        assert len(padding) == len(self._tables)
        self._padding = list(padding)

    def positions_BT(self, tokens: int) -> Tensor | None:
        """Positions of the next T tokens of each sequence; None: `length` … in all of them."""
        if len(set(self._lengths)) == 1 and not any(self._padding):
            return None
        starts_B1 = self._column(self._lengths)
        offsets_T = torch.arange(tokens, device=self.pool.device)
        return starts_B1 + (offsets_T - self._column(self._padding)).clamp(min=0)

    def extend(
        self, layer: int, k_BGTK: Tensor, v_BGTK: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Write a layer's keys and values of T new tokens; `length` stays until `advance`.

        Returns:
            The layer's keys and values of all tokens so far, each (B, G, S, K), and their
            positions (B, S), -1 in empty slots; None: they stand at 0 … S - 1.

        Raises:
            ConfigError: the pool is used up.
        """
        if self._slots is None:
            self._slots = self._prepare(k_BGTK.shape[2])
        slots = self._slots
        gathered = []
        for stored, x_BGTK in zip(self.pool.layers[layer], (k_BGTK, v_BGTK), strict=True):
            stored[slots.pages_M, :, slots.offsets_M] = x_BGTK[slots.rows_M, :, slots.tokens_M]
            pages_BPGNK = stored[slots.table_BP]
            x_BGSK = pages_BPGNK.transpose(1, 2).flatten(2, 3)
            gathered.append(x_BGSK[:, :, : slots.length])
        return gathered[0], gathered[1], slots.positions_BS

    def advance(self, tokens: int) -> None:
        """Count tokens that every layer has written; keep the pages of texts that begin alike."""
        assert self._slots is not None or not tokens
        self._lengths = self._lengths_after(tokens)
        self._padding = [0] * len(self._lengths)
        self._slots = None
        if self.prefixes is not None and self._texts:
            for text, pages in zip(self._texts, self._tables, strict=True):
                self.prefixes.keep(text, pages)
        self._texts = []

    def select(self, rows: Sequence[int]) -> None:
        """Go on with these sequences, in this order; several of one share its pages."""
        chosen = [list(self._tables[row]) for row in rows]
        for table in chosen:
            for page in table:
                self.pool.hold(page)
        self._release()
        self._tables, self._lengths = chosen, [self._lengths[row] for row in rows]
        self._padding = [0] * len(rows)

    def clear(self) -> None:
        """Give all pages back."""
        self._release()
        self._tables = [[] for _ in self._tables]
        self._lengths = [0] * len(self._tables)
        self._padding = [0] * len(self._tables)
        self._texts, self._slots = [], None

    def _release(self) -> None:
        for table in self._tables:
            for page in table:
                self.pool.release(page)

    def _lengths_after(self, tokens: int) -> list[int]:
        return [
            length + tokens - padding
            for length, padding in zip(self._lengths, self._padding, strict=True)
        ]

    def _prepare(self, T: int) -> "_Slots":
        """Take pages for the next T tokens of each sequence, and say where each is written."""
        size, after = self.pool.page_size, self._lengths_after(T)
        places: list[tuple[int, int, int, int]] = []
        for row, (start, end) in enumerate(zip(self._lengths, after, strict=True)):
            table = self._tables[row]
            if start % size and self.pool.is_shared(table[-1]):
                mine = self.pool.copy(table[-1])
                self.pool.release(table[-1])
                table[-1] = mine
            while len(table) * size < end:
                table.append(self.pool.take())
            places += [
                (table[token // size], token % size, row, T - (end - token))
                for token in range(start, end)
            ]
        device = self.pool.device
        pages_M, offsets_M, rows_M, tokens_M = torch.tensor(places, device=device).T
        widest = max(len(table) for table in self._tables)
        table_BP = torch.tensor(
            [[*table, *[0] * (widest - len(table))] for table in self._tables], device=device
        )
        positions_BS = None
        if len(set(after)) > 1:
            slots_S = torch.arange(max(after), device=device)
            positions_BS = slots_S.where(slots_S < self._column(after), -1)
        return _Slots(pages_M, offsets_M, rows_M, tokens_M, table_BP, max(after), positions_BS)

    def _column(self, numbers: Sequence[int]) -> Tensor:
        return torch.tensor(numbers, device=self.pool.device)[:, None]


@dataclass(frozen=True)
class _Slots:
    """Where M new tokens are written, and which pages are read: the same for all layers."""

    pages_M: Tensor
    offsets_M: Tensor
    rows_M: Tensor
    tokens_M: Tensor
    table_BP: Tensor
    length: int
    positions_BS: Tensor | None
