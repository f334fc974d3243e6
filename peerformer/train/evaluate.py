"""How good a model is on text it was not trained on: loss, and bits per byte.

Bits per byte divides by the bytes that the predicted tokens stand for, so that models with
different tokenizers can be compared.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from peerformer.data.batches import Batches

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
    windows: Iterable[NDArray[np.int64]],
    byte_lengths_V: NDArray[np.int32],
    autocast_dtype: torch.dtype | None = None,
    on_tokens: Callable[[int], None] = lambda _: None,
) -> Evaluation:
    """Evaluate on windows of tokens, (T + 1,) each; all but the first token are predicted.

    `on_tokens` is called with the number of tokens predicted so far.
    """
    was_training = model.training
    model.eval()
    nats, tokens, size = 0.0, 0, 0
    for rows in _stacked(windows):
        tokens_BT = torch.from_numpy(rows[:, :-1])
        targets_BT = torch.from_numpy(rows[:, 1:])
        with torch.autocast("cpu", dtype=autocast_dtype, enabled=autocast_dtype is not None):
            loss = model.loss(tokens_BT, targets_BT)  # type: ignore[operator]
        nats += loss.item() * targets_BT.numel()
        tokens += targets_BT.numel()
        size += int(byte_lengths_V[rows[:, 1:]].sum())
        on_tokens(tokens)
    model.train(was_training)
    loss_nats = nats / max(tokens, 1)
    bits = nats / max(size, 1) / math.log(2)
    return Evaluation(loss_nats, bits, tokens, size)


def _stacked(windows: Iterable[NDArray[np.int64]]) -> Iterator[NDArray[np.int64]]:
    """Windows of one length that follow each other, stacked, a few at a time."""
    rows: list[NDArray[np.int64]] = []
    for window in windows:
        full = (len(rows) + 1) * len(window) > TOKENS_AT_ONCE
        if rows and (full or len(rows[0]) != len(window)):
            yield np.stack(rows)
            rows = []
        rows.append(window)
    if rows:
        yield np.stack(rows)


def evaluate(
    model: nn.Module,
    batches: Batches,
    *,
    sequences: int,
    byte_lengths_V: NDArray[np.int32],
    autocast_dtype: torch.dtype | None = None,
) -> Evaluation:
    """Evaluate on up to `sequences` windows spread evenly over a text."""
    return evaluate_windows(model, batches.validation(sequences), byte_lengths_V, autocast_dtype)
