"""(seed, step, slot) -> batch: random access, so that resuming and sharing out work are free.

The text is cut into windows, which each epoch visits once in an order of its own: a keyed Feistel
network with cycle walking permutes the window numbers (Black and Rogaway, Ciphers with arbitrary
finite domains, 2002), so no order is stored or replayed. Every epoch shifts the cuts.

Shapes: B batch, T tokens.
"""

from dataclasses import dataclass

import numpy as np
import torch
from blake3 import blake3
from numpy.typing import NDArray
from torch import Tensor

from peerformer.data.shards import ShardSet
from peerformer.errors import DataError

_ROUNDS = 4  # of the Feistel network: enough to look random, cheap to compute


@dataclass(frozen=True, slots=True)
class Batch:
    """Token ids, and the id that follows each of them: int64, both (B, T)."""

    tokens_BT: Tensor
    targets_BT: Tensor


class Batches:
    """Windows of T + 1 tokens out of a shard set, by number.

    Raises:
        DataError: if there is not enough text for one window.
    """

    def __init__(self, shards: ShardSet, sequence_length: int) -> None:
        self.shards, self.sequence_length = shards, sequence_length
        self.num_windows = (shards.num_tokens - 1) // sequence_length
        if self.num_windows < 1:
            raise DataError(
                f"there are only {shards.num_tokens} tokens of text",
                why=f"one sequence takes {sequence_length + 1}",
                hint="give more text, or a smaller --training.sequence_length",
            )
        # The cuts of an epoch may shift by so many tokens without running over the end.
        self._slack = shards.num_tokens - 1 - self.num_windows * sequence_length

    def sequence(self, seed: int, step: int, slot: int, batch_size: int) -> NDArray[np.int64]:
        """Return one window, (T + 1,): that of a slot of a step, whoever asks."""
        epoch, index = divmod(step * batch_size + slot, self.num_windows)
        key = blake3(f"{seed} {epoch}".encode(), derive_key_context="peerformer 1 order").digest()
        window = _permuted(index, self.num_windows, key)
        shift = int.from_bytes(key[:8], "little") % (self._slack + 1)
        start = shift + window * self.sequence_length
        return self.shards.window(start, self.sequence_length + 1)

    def batch(self, seed: int, step: int, *, batch_size: int, slots: range | None = None) -> Batch:
        """Return a batch of a step.

        Args:
            seed: which order of the text.
            step: the step; steps follow each other through the epochs.
            batch_size: sequences of the whole step.
            slots: which of them; none means all.
        """
        chosen = range(batch_size) if slots is None else slots
        windows = [self.sequence(seed, step, slot, batch_size) for slot in chosen]
        tokens = torch.from_numpy(np.stack(windows))
        return Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())

    def validation(self, count: int) -> list[NDArray[np.int64]]:
        """Return up to `count` windows spread evenly over the text, always the same."""
        count = min(count, self.num_windows)
        return [
            self.shards.window(
                (index * self.num_windows // count) * self.sequence_length,
                self.sequence_length + 1,
            )
            for index in range(count)
        ]


def _permuted(index: int, size: int, key: bytes) -> int:
    """Return where a keyed permutation of `range(size)` sends `index`."""
    half_bits = max(1, (max(size - 1, 1).bit_length() + 1) // 2)
    mask = (1 << half_bits) - 1
    while True:
        left, right = index >> half_bits, index & mask
        for number in range(_ROUNDS):
            digest = blake3(bytes((number,)) + right.to_bytes(8, "little"), key=key).digest()
            left, right = right, left ^ int.from_bytes(digest[:8], "little") & mask
        index = left << half_bits | right
        if index < size:  # walk the cycle until it comes back into the range
            return index
