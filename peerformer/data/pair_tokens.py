"""Pairs as tokens, out of shards: documents of which one stretch is learned.

The prompt begins with the token that ends a text, which stands before every document in training.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from peerformer.data.batches import Window
from peerformer.data.shards import ShardSet


@dataclass(frozen=True, slots=True)
class PairTokens:
    """The tokens of a prompt, those of its completion, and the one that ends a text."""

    prompt: list[int]
    completion: list[int]
    end_of_text_id: int

    def window(self, tokens_max: int) -> Window:
        """Return the pair as a window in which the completion and its end are learned.

        Of one with more tokens than `tokens_max` the last are taken.
        """
        tokens = np.asarray([*self.prompt, *self.completion, self.end_of_text_id])
        learned = np.arange(len(tokens)) >= len(self.prompt)
        return Window(tokens[-tokens_max:], learned[-tokens_max:])


def pairs_of(shards: ShardSet, end_of_text_id: int) -> Iterator[PairTokens]:
    """Yield the documents of masked shards that are pairs; others are passed over."""
    first = 0
    if not shards.is_masked:
        return
    for part, mask in zip(shards.parts, shards.masks, strict=True):
        ends = np.flatnonzero(np.asarray(part) == end_of_text_id)
        start = 0
        for end in ends.tolist() if mask is not None else ():
            learned = shards.learned(first + start, end + 1 - start)
            begin = int(learned.argmax())
            if 0 < begin < end - start and learned[begin:].all():
                tokens = np.asarray(part[start:end]).astype(np.int64)
                prompt, completion = tokens[:begin].tolist(), tokens[begin:].tolist()
                yield PairTokens([end_of_text_id, *prompt], completion, end_of_text_id)
            start = end + 1
        first += len(part)
