"""How good a model is on text it was not trained on: loss, and bits per byte.

Bits per byte divides by the bytes that the predicted tokens stand for, so that models with
different tokenizers can be compared. Tokens that are not learned (the prompts of pairs) are read
and not counted.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from peerformer.data.batches import NOT_LEARNED, Batches, Window, batch_of
from peerformer.train.ranks import OneProcess, Ranks, shared_out

TOKENS_AT_ONCE = 4_096  # bounds the memory of the logits, whatever the length of a window


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Loss on some text."""

    loss_nats_per_token: float
    bits_per_byte: float
    tokens: int
    bytes: int


@torch.no_grad()
def evaluate_windows(
    model: nn.Module,
    windows: Iterable[Window],
    byte_lengths_V: NDArray[np.int32],
    autocast_dtype: torch.dtype | None = None,
    on_tokens: Callable[[int], None] = lambda _: None,
    document_start: int | None = None,
) -> Evaluation:
    """Evaluate on windows of tokens, (T + 1,) each; all but the first token are predicted.

    `on_tokens` is called with the number of tokens predicted so far. With `document_start` a token
    sees its own document only; see `data.batches`.
    """
    was_training = model.training
    model.eval()
    nats, tokens, size = 0.0, 0, 0
    for stacked in _stacked(windows):
        batch = batch_of(stacked, document_start)
        documents = {} if batch.documents_BT is None else {"documents_BT": batch.documents_BT}
        with torch.autocast("cpu", dtype=autocast_dtype, enabled=autocast_dtype is not None):
            loss = model.loss(batch.tokens_BT, batch.targets_BT, **documents)  # type: ignore[operator]
        learned = batch.targets_BT[batch.targets_BT != NOT_LEARNED]
        nats += loss.item() * learned.numel()
        tokens += learned.numel()
        size += int(byte_lengths_V[learned.numpy()].sum())
        on_tokens(tokens)
    model.train(was_training)
    loss_nats = nats / max(tokens, 1)
    bits = nats / max(size, 1) / math.log(2)
    return Evaluation(loss_nats, bits, tokens, size)


def _stacked(windows: Iterable[Window]) -> Iterator[list[Window]]:
    """Windows of one length that follow each other, a few at a time."""
    rows: list[Window] = []
    for window in windows:
        length = len(window.tokens)
        full = (len(rows) + 1) * length > TOKENS_AT_ONCE
        if rows and (full or len(rows[0].tokens) != length):
            yield rows
            rows = []
        rows.append(window)
    if rows:
        yield rows


def evaluate(
    model: nn.Module,
    batches: Batches,
    *,
    sequences: int,
    byte_lengths_V: NDArray[np.int32],
    autocast_dtype: torch.dtype | None = None,
    ranks: Ranks = OneProcess(),
) -> Evaluation:
    """Evaluate on up to `sequences` windows spread evenly over a text, shared out among ranks."""
    windows, start = batches.validation(sequences), batches.document_start

    def on(part: Iterable[Window]) -> Evaluation:
        return evaluate_windows(model, part, byte_lengths_V, autocast_dtype, document_start=start)

    if ranks.size == 1:
        return on(windows)
    sums = [0.0, 0.0, 0.0]
    for part, count in zip(shared_out(ranks, list(windows)), (ranks.size, 1), strict=True):
        found = on(part)
        nats = found.loss_nats_per_token * found.tokens
        means = ranks.mean(nats, found.tokens, found.bytes)
        sums = [total + count * mean for total, mean in zip(sums, means, strict=True)]
    nats, tokens, size = sums
    bits = nats / max(size, 1) / math.log(2)
    return Evaluation(nats / max(tokens, 1), bits, round(tokens), round(size))
