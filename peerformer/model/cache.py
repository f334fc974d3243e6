"""The key-value cache: what attention has already computed for the tokens behind it.

One contiguous block a layer, allocated once for the longest text, so that decoding never copies
what it has. The model writes the new tokens of every layer behind the first `length` slots,
attends over all of them, and moves `length` once, after the last layer. A layer that sees only a
window of W tokens has W slots in a ring: the token n stands in slot n mod W, so that its memory
stays the same however long the text becomes.

Sequences of unequal length stand flush right: shorter prompts begin with padding, whose slots
have position -1 and are never seen. All kinds of cache keep the protocol that attention and the
engine rely on: `positions_BT`, `extend` and `advance` for the former, `begin`, `pad` and `select`
for the latter.

Knows nothing about sampling, and nothing about tokens but how many there are.

Shapes: B batch, G key-value heads, S slots, K head dimension, T new tokens.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from peerformer.config import ModelConfig
from peerformer.model.stored_vectors import StoredVectors


class Cache(Protocol):
    """What attention and the engine ask of a cache."""

    @property
    def length(self) -> int:
        """Slots in use by the longest sequence."""
        ...

    @property
    def room(self) -> int:
        """Slots that are left to the longest sequence."""
        ...

    def begin(self, texts: Sequence[Sequence[int]]) -> list[int]:
        """Forget everything, and say how many tokens of each text are there nevertheless."""
        ...

    def pad(self, padding: Sequence[int]) -> None:
        """So many of the next tokens of each sequence are padding before it."""
        ...

    def positions_BT(self, tokens: int) -> Tensor | None:
        """Positions of the next T tokens of each sequence; None: `length` … in all of them."""
        ...

    def extend(
        self, layer: int, k_BGTK: Tensor, v_BGTK: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Write a layer's keys and values, and return all that the new tokens may see."""
        ...

    def advance(self, tokens: int) -> None:
        """Count tokens that every layer has written."""
        ...

    def select(self, rows: Sequence[int]) -> None:
        """Go on with these sequences, in this order; one may come several times."""
        ...

    def clear(self) -> None:
        """Forget everything, and give back what others may use."""
        ...


class KeyValueCache:
    """Keys and values of the `length` tokens seen so far.

    Args:
        config: the model's shape.
        batch_size: sequences B.
        length_max: the most tokens that it holds, at most the model's positions.
        dtype: of the keys and values; the type in which the model computes.
        device: where they are kept.
        rounded: keep them in eight bits with a scale for each token and head.
    """

    def __init__(
        self,
        config: ModelConfig,
        batch_size: int,
        length_max: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        *,
        rounded: bool = False,
    ) -> None:
        assert 0 < length_max <= config.max_positions, (length_max, config.max_positions)
        window = min(length_max, config.sliding_window)
        self._slots = [window if kind == "window" else length_max for kind in config.layer_kinds]
        self._pairs = [
            tuple(
                StoredVectors(
                    (batch_size, config.num_kv_heads, slots, config.head_dim),
                    dtype,
                    device,
                    rounded=rounded,
                )
                for _ in ("keys", "values")
            )
            for slots in self._slots
        ]
        self.length_max = length_max
        self.batch_size = batch_size
        self._device = device
        self._length = 0
        self._padding_B1: Tensor | None = None  # None: none of the sequences has any
        # Positions of the slots of this forward pass, by number of slots: made for the first layer
        # of a kind and handed to the others as the same tensor.
        self._positions: dict[int, Tensor | None] = {}

    @property
    def length(self) -> int:
        """Slots in use, padding counted; the slot of the next token."""
        return self._length

    @property
    def room(self) -> int:
        """Slots that are left."""
        return self.length_max - self._length

    @property
    def size_bytes(self) -> int:
        """Memory of keys and values; it does not change."""
        return sum(stored.size_bytes for pair in self._pairs for stored in pair)

    def begin(self, texts: Sequence[Sequence[int]]) -> list[int]:
        """Forget everything; the memory is kept.

        Returns:
            How many tokens of each text need not be computed: none.
        """
        assert len(texts) == self.batch_size, (len(texts), self.batch_size)
        self.clear()
        return [0] * len(texts)

    def pad(self, padding: Sequence[int]) -> None:
        """Let each sequence start with so many slots of padding; before any token."""
        assert self._length == 0 and len(padding) == self.batch_size
        if any(padding):
            self._padding_B1 = torch.tensor(padding, device=self._device)[:, None]

    def positions_BT(self, tokens: int) -> Tensor | None:
        """Positions of the next T tokens of each sequence; None: `length` … in all of them.

        Padding has the position of its sequence's first token, so that it sees something; what
        comes of it is nobody's.
        """
        assert 0 <= tokens <= self.length_max - self._length
        if self._padding_B1 is None:
            return None
        slots_T = torch.arange(self._length, self._length + tokens, device=self._device)
        return (slots_T - self._padding_B1).clamp(min=0)

    def extend(
        self, layer: int, k_BGTK: Tensor, v_BGTK: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Write a layer's keys and values of T new tokens; `length` stays until `advance`.

        Returns:
            The layer's keys and values that the new tokens may see, each (B, G, S, K), and the
            positions (B, S) of these keys, -1 for a slot that is never seen; None says that they
            stand at 0 … S - 1.
        """
        start, T = self._length, k_BGTK.shape[2]
        end, slots = start + T, self._slots[layer]
        assert end <= self.length_max, f"{end} tokens in a cache of {self.length_max}"
        pair, new = self._pairs[layer], (k_BGTK, v_BGTK)
        if end <= slots:
            for stored, x_BGTK in zip(pair, new, strict=True):
                stored[:, :, start:end] = x_BGTK
            k_BGSK, v_BGSK = (stored[:, :, :end] for stored in pair)
            return k_BGSK, v_BGSK, self._positions_BS(slots, end)
        # Early ones of several tokens see what the later ones overwrite: the ring as it was goes
        # beside the new ones. A single token overwrites what it does not see any more.
        beside = T > 1
        seen = [
            torch.cat((stored[:, :, : min(start, slots)], x_BGTK), dim=2)
            for stored, x_BGTK in zip(pair, new, strict=True)
            if beside
        ]
        kept = min(T, slots)
        ring_T = torch.arange(end - kept, end, device=self._device) % slots
        for stored, x_BGTK in zip(pair, new, strict=True):
            stored[:, :, ring_T] = x_BGTK[:, :, T - kept :]
        k_BGSK, v_BGSK = seen or (stored[:, :, :] for stored in pair)
        return k_BGSK, v_BGSK, self._positions_BS(slots, end, new_tokens=T if beside else 0)

    def advance(self, tokens: int) -> None:
        """Count tokens that every layer has written."""
        assert 0 <= tokens <= self.length_max - self._length
        self._length += tokens
        self._positions.clear()

    def select(self, rows: Sequence[int]) -> None:
        """Go on with these sequences, in this order; one may come several times."""
        if list(rows) == list(range(self.batch_size)):
            return
        rows_B = torch.tensor(rows, device=self._device)
        for pair in self._pairs:
            for stored in pair:
                stored.select(rows_B)
        if self._padding_B1 is not None:
            self._padding_B1 = self._padding_B1[rows_B]
        self.batch_size = len(rows)

    def clear(self) -> None:
        """Forget everything; the memory is kept."""
        self._length = 0
        self._padding_B1 = None
        self._positions.clear()

    def _positions_BS(self, slots: int, end: int, new_tokens: int = 0) -> Tensor | None:
        """Positions of a layer's slots, or of its ring as it was and the new tokens behind it."""
        if slots not in self._positions:
            self._positions[slots] = self._made_positions_BS(slots, end, new_tokens)
        return self._positions[slots]

    def _made_positions_BS(self, slots: int, end: int, new_tokens: int) -> Tensor | None:
        if end <= slots and self._padding_B1 is None:
            return None
        if end <= slots:
            tokens_S = torch.arange(end, device=self._device)
        else:
            last = end - new_tokens - 1  # the newest token in the ring
            slots_S = torch.arange(min(slots, last + 1), device=self._device)
            # In slot s stands the newest token n with n mod W = s.
            tokens_S = last - (last - slots_S) % slots
            new_T = torch.arange(last + 1, end, device=self._device)
            tokens_S = torch.cat((tokens_S, new_T))
        if self._padding_B1 is None:
            return tokens_S.expand(self.batch_size, -1)
        return (tokens_S - self._padding_B1).clamp(min=-1)
