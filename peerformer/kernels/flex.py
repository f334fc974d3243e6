"""Masked attention that skips what nobody sees: PyTorch's FlexAttention, compiled for a GPU.

A block mask says which tiles of the (T, S) matrix hold a pair that is seen; the others are never
computed. It is made from the same rule as the dense mask of `visibility.py`, which is the
reference. There is no backward pass on a CPU, so that training there takes the dense mask.

Source: Dong et al., Flex Attention, 2024.

Shapes: B batch, T queries and keys, H query heads, G key-value heads, K head dimension.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from peerformer.kernels.visibility import Pattern

BLOCK_MASKS_KEPT_MAX = 16  # a model has a few patterns, and a run a few lengths


@lru_cache(maxsize=BLOCK_MASKS_KEPT_MAX)
def pattern_block_mask(pattern: Pattern, tokens: int, device: torch.device) -> BlockMask:
    """What a pattern shows of T tokens at the positions 0 … T - 1."""

    def sees(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return pattern.allows(query, key)

    return create_block_mask(sees, None, None, tokens, tokens, device=device)


def dense_block_mask(mask_BTT: Tensor) -> BlockMask:
    """The block mask of a dense one, where positions and documents differ from batch to batch."""
    B, T, _ = mask_BTT.shape

    def sees(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return mask_BTT[b if B > 1 else 0, query, key]

    return create_block_mask(sees, B if B > 1 else None, None, T, T, device=mask_BTT.device)


def block_attention(q_BHTK: Tensor, k_BGTK: Tensor, v_BGTK: Tensor, mask: BlockMask) -> Tensor:
    """Attention over the tiles of a block mask, (B, H, T, K)."""
    grouped = q_BHTK.shape[1] != k_BGTK.shape[1]
    return _compiled()(q_BHTK, k_BGTK, v_BGTK, block_mask=mask, enable_gqa=grouped)


@lru_cache(maxsize=1)
def _compiled() -> Callable[..., Any]:
    """FlexAttention as one kernel; compiled at its first call, once for each shape."""
    return torch.compile(flex_attention, dynamic=False)
