"""Activations computed again in the backward pass instead of being kept: time for memory.

Training keeps what each operation needs for its gradient; of a deep model that is most of its
memory. A part that is computed again keeps its inputs only. `blocks` saves the most, `attention`
and `feed_forward` what the one or the other half of each block would keep. The gradients are the
same: the same operations run on the same numbers, with the same random ones where there is dropout.

Knows nothing about what the parts compute.

Source: Chen et al., Training Deep Nets with Sublinear Memory Cost, 2016, arXiv 1604.06174.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def recompute(model: nn.Module, what: str) -> None:
    """Let every block compute `blocks`, `attention`, `feed_forward` or `none` of it again."""
    for block in model.layers:  # type: ignore[union-attr]
        block.recomputed = what


def run(function: Callable[..., Tensor], *inputs: Any, again: bool) -> Tensor:
    """`function(*inputs)`; with `again`, nothing inside it is kept for the backward pass."""
    if not again or not torch.is_grad_enabled():
        return function(*inputs)
    result: Tensor = checkpoint(function, *inputs, use_reentrant=False)
    return result
