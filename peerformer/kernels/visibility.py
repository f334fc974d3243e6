"""Which keys a query sees: decided by positions, documents and the layer's pattern.

A query at position q sees the key at position k if 0 <= k <= q, if the layer's pattern allows
the pair, and, where documents are packed into one sequence, if both stand in the same document.
A key position of -1 is an empty slot or padding and is never seen; a token of document -1 is
padding and sees itself alone. `Visibility` is made once in a forward pass and asked once by each
layer; layers of one pattern get one mask.

Knows nothing about scores, heads or caches.

Sources: Child et al., Generating Long Sequences with Sparse Transformers, 2019, section 4.2
(local and strided); Zaheer et al., Big Bird, 2020, section 2 (blocks, and global ones); Beltagy
et al., Longformer, 2020, section 3.1 (sliding window).

Shapes: B batch, T queries, S keys.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Blocks:
    """Block-sparse attention: blocks near by, blocks at a stride, and the first of the text.

    Attributes:
        size: tokens of a block.
        local: a query sees so many blocks up to and with its own.
        stride: and of the blocks before, those at a multiple of this distance; 0: none.
        first: and the first so many of all.
    """

    size: int
    local: int
    stride: int
    first: int

    def allows(self, query: Tensor, key: Tensor) -> Tensor:
        """True where the blocks of a query's and a key's position see each other."""
        block = key // self.size
        distance = query // self.size - block
        seen = (distance < self.local) | (block < self.first)
        return seen | (distance % self.stride == 0) if self.stride else seen


@dataclass(frozen=True)
class Pattern:
    """Which of the keys up to its own position a query may see.

    Attributes:
        window: the last so many, its own among them; 0: all.
        blocks: those of some blocks; None: all.
    """

    window: int = 0
    blocks: Blocks | None = None

    @property
    def is_full(self) -> bool:
        """Whether every earlier key may be seen."""
        return not self.window and self.blocks is None

    def allows(self, query: Tensor, key: Tensor) -> Tensor:
        """True where a query position sees a key position; they broadcast."""
        seen = (key >= 0) & (key <= query)
        if self.window:
            seen = seen & (key > query - self.window)
        if self.blocks is not None:
            seen = seen & self.blocks.allows(query, key)
        return seen


FULL = Pattern()


class Visibility:
    """What the T queries of a forward pass may see.

    Args:
        positions_T: the queries' positions where all sequences have the same, consecutive ones.
        positions_BT: the queries' positions where each sequence has its own; None: `positions_T`.
        documents_BT: the document of each query, where the keys are those of the same tokens.
    """

    def __init__(
        self, positions_T: Tensor, positions_BT: Tensor | None, documents_BT: Tensor | None
    ) -> None:
        self.positions_T, self.positions_BT = positions_T, positions_BT
        self.documents_BT = documents_BT
        self._masks: dict[tuple[Pattern, int, int | None], tuple[Tensor, Tensor]] = {}
        self._block_masks: dict[Pattern, Any] = {}

    def mask(
        self, pattern: Pattern, keys: int, key_positions_BS: Tensor | None = None
    ) -> Tensor | None:
        """(B or 1, T, S), true where the key is seen; None where all S - T + t + 1 first are.

        Args:
            pattern: the layer's.
            keys: their number S.
            key_positions_BS: where the keys stand; None: at 0 … S - 1, or, without a cache that
                has others, where the queries stand.
        """
        own = self.positions_BT is not None or self.documents_BT is not None
        if key_positions_BS is None and not own and pattern.is_full:
            return None
        # The tensor of positions is kept beside its mask, so that its id is not given again.
        name = (pattern, keys, None if key_positions_BS is None else id(key_positions_BS))
        if name not in self._masks:
            key_BS = self._keys(keys) if key_positions_BS is None else key_positions_BS
            self._masks[name] = self._mask(pattern, key_BS), key_BS
        return self._masks[name][0]

    def block_mask(self, pattern: Pattern) -> Any:
        """The same as a BlockMask of FlexAttention, for a pass without a cache; None: all."""
        from peerformer.kernels import flex  # it takes a second to import, and only GPUs use it

        T = self.positions_T.shape[0]
        if self.positions_BT is None and self.documents_BT is None:
            if pattern.is_full:
                return None
            return flex.pattern_block_mask(pattern, T, self.positions_T.device)
        if pattern not in self._block_masks:
            mask_BTT = self.mask(pattern, T)
            assert mask_BTT is not None
            self._block_masks[pattern] = flex.dense_block_mask(mask_BTT)
        return self._block_masks[pattern]

    def _keys(self, keys: int) -> Tensor:
        """Positions (B or 1, S) of keys that nobody says more about."""
        T = self.positions_T.shape[0]
        if self.positions_BT is not None and keys == T:
            return self.positions_BT
        return torch.arange(keys, device=self.positions_T.device)[None]

    def _mask(self, pattern: Pattern, key_BS: Tensor) -> Tensor:
        query_BT = self.positions_T[None] if self.positions_BT is None else self.positions_BT
        seen_BTS = pattern.allows(query_BT[:, :, None], key_BS[:, None, :])
        if self.documents_BT is not None:
            documents_BT = self.documents_BT
            same_BTS = documents_BT[:, :, None] == documents_BT[:, None, :]
            real_BT1 = documents_BT[:, :, None] >= 0
            itself_TS = torch.eye(key_BS.shape[1], dtype=torch.bool, device=key_BS.device)
            seen_BTS = seen_BTS & same_BTS & real_BT1 | itself_TS
        # A query that sees nothing, such as padding, would give 0 / 0 and then spoil what is
        # multiplied with it. Nobody reads its result, so it may see everything.
        return seen_BTS | ~seen_BTS.any(-1, keepdim=True)
