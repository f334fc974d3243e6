"""(seed, step, slot) -> batch: random access, so that resuming and sharing out work are free.

The text is cut into windows, which each epoch visits once in an order of its own: a keyed Feistel
network with cycle walking permutes the window numbers (Black and Rogaway, Ciphers with arbitrary
finite domains, 2002), so no order is stored or replayed. Every epoch shifts the cuts.

A window may hold several documents, one after the other (packing). With document masks each batch
says whose each token is, so that a model lets it see its own document only. The token that ends a
document stands for the beginning of the next one there, as it does before a prompt: so each
document is read as it would be alone.

Shapes: B batch, T tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from blake3 import blake3
from numpy.typing import NDArray
from torch import Tensor

from peerformer.data.shards import ShardSet
from peerformer.errors import DataError

_ROUNDS = 4  # of the Feistel network: enough to look random, cheap to compute
NOT_LEARNED = -100  # the target where the loss does not count; PyTorch's mark


@dataclass(frozen=True, slots=True)
class Batch:
    """Token ids, and the id that follows each of them, or -100 where it is not learned: int64.

    `documents_BT` tells the documents of a sequence apart, where a token sees its own only.
    """

    tokens_BT: Tensor
    targets_BT: Tensor
    documents_BT: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Window:
    """T + 1 tokens that follow each other, and on which of them the loss counts; None: on all."""

    tokens: NDArray[np.int64]
    learned: NDArray[np.bool_] | None = None


def window_of(shards: ShardSet, start: int, length: int) -> Window:
    """Return `length` tokens from `start` on."""
    learned = shards.learned(start, length) if shards.is_masked else None
    return Window(shards.window(start, length), learned)


def batch_of(windows: Sequence[Window], document_start: int | None = None) -> Batch:
    """Return windows of one length as a batch; with the token that begins documents, masked."""
    tokens = torch.from_numpy(np.stack([window.tokens for window in windows]))
    targets_BT = tokens[:, 1:].clone()  # changed below, where a view would change the tokens
    for row, window in enumerate(windows):
        if window.learned is not None:
            targets_BT[row].masked_fill_(~torch.from_numpy(window.learned[1:]), NOT_LEARNED)
    tokens_BT = tokens[:, :-1].contiguous()
    if document_start is None:
        return Batch(tokens_BT, targets_BT)
    return Batch(tokens_BT, targets_BT, (tokens_BT == document_start).cumsum(dim=1))


class Batches:
    """Windows of T + 1 tokens out of a shard set, by number.

    Args:
        shards: the tokens.
        sequence_length: T.
        document_start: the token that begins a document, where batches are to tell documents
            apart; None: they do not.

    Raises:
        DataError: if there is not enough text for one window.
    """

    def __init__(
        self, shards: ShardSet, sequence_length: int, document_start: int | None = None
    ) -> None:
        self.shards, self.sequence_length = shards, sequence_length
        self.document_start = document_start
        self.num_windows = (shards.num_tokens - 1) // sequence_length
        if self.num_windows < 1:
            raise DataError(
                f"there are only {shards.num_tokens} tokens of text",
                why=f"one sequence takes {sequence_length + 1}",
                hint="give more text, or a smaller --training.sequence_length",
            )
        # The cuts of an epoch may shift by so many tokens without running over the end.
        self._slack = shards.num_tokens - 1 - self.num_windows * sequence_length

    def sequence(self, seed: int, step: int, slot: int, batch_size: int) -> Window:
        """Return one window, (T + 1,): that of a slot of a step, whoever asks."""
        epoch, index = divmod(step * batch_size + slot, self.num_windows)
        key = blake3(f"{seed} {epoch}".encode(), derive_key_context="peerformer 1 order").digest()
        window = _permuted(index, self.num_windows, key)
        shift = int.from_bytes(key[:8], "little") % (self._slack + 1)
        start = shift + window * self.sequence_length
        return window_of(self.shards, start, self.sequence_length + 1)

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
        return batch_of(windows, self.document_start)

    def validation(self, count: int) -> list[Window]:
        """Return up to `count` windows spread evenly over the text, always the same."""
        count = min(count, self.num_windows)
        return [
            window_of(
                self.shards,
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
