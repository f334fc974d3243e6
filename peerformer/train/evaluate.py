"""How good a model is on text it was not trained on: loss, and bits per byte.

Bits per byte divides by the bytes that the predicted tokens stand for, so that models with
different tokenizers can be compared.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from peerformer.data.batches import Batches

SEQUENCES_AT_ONCE = 16


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
    windows: Sequence[NDArray[np.int64]],
    byte_lengths_V: NDArray[np.int32],
    autocast_dtype: torch.dtype | None = None,
) -> Evaluation:
    """Evaluate on windows of equal length, (T + 1,) each; all but the first token are predicted."""
    was_training = model.training
    model.eval()
    nats, tokens, size = 0.0, 0, 0
    for start in range(0, len(windows), SEQUENCES_AT_ONCE):
        rows = np.stack(windows[start : start + SEQUENCES_AT_ONCE])
        tokens_BT = torch.from_numpy(rows[:, :-1])
        targets_BT = torch.from_numpy(rows[:, 1:])
        with torch.autocast("cpu", dtype=autocast_dtype, enabled=autocast_dtype is not None):
            loss = model.loss(tokens_BT, targets_BT)  # type: ignore[operator]
        nats += loss.item() * targets_BT.numel()
        tokens += targets_BT.numel()
        size += int(byte_lengths_V[rows[:, 1:]].sum())
    model.train(was_training)
    loss_nats = nats / max(tokens, 1)
    bits = nats / max(size, 1) / math.log(2)
    return Evaluation(loss_nats, bits, tokens, size)


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
