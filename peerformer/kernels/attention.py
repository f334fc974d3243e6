"""Causal attention with grouped heads: scaled dot products, softmax, weighted sum.

The queries are the *last* T of the S positions that have keys, so one function serves training
(T = S), a prompt after a cached prefix (T < S) and decoding (T = 1). Query head h reads the
key-value head h // (H / G). The fast path is PyTorch's fused kernel, which never holds the
(T, S) matrix; the reference below it is the formula.

Knows nothing about positions, projections or caches.

Sources: Vaswani et al., Attention Is All You Need, 2017, section 3.2; Ainslie et al., GQA, 2023.

Shapes: B batch, T queries, S keys, H query heads, G key-value heads, K head dimension.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def causal_attention(q_BHTK: Tensor, k_BGSK: Tensor, v_BGSK: Tensor) -> Tensor:
    """Attention in which query t sees the keys 0 … S - T + t.

    Args:
        q_BHTK: queries; H is a multiple of G.
        k_BGSK: keys; S >= T.
        v_BGSK: values.

    Returns:
        The weighted values, (B, H, T, K), in the queries' type.
    """
    B, H, T, K = q_BHTK.shape
    G, S = k_BGSK.shape[1:3]
    assert H % G == 0 and T <= S, (q_BHTK.shape, k_BGSK.shape)
    if T == 1:
        # One query sees every key: the query heads of a group become its queries, and the keys,
        # which are the whole cost of decoding, are read in place instead of being repeated.
        q_BGRK = q_BHTK.reshape(B, G, H // G, K)
        return F.scaled_dot_product_attention(q_BGRK, k_BGSK, v_BGSK).reshape(B, H, T, K)
    mask_TS = None if T == S else _visible(T, S, q_BHTK.device)
    return F.scaled_dot_product_attention(
        q_BHTK, k_BGSK, v_BGSK, attn_mask=mask_TS, is_causal=T == S, enable_gqa=G != H
    )


def causal_attention_reference(q_BHTK: Tensor, k_BGSK: Tensor, v_BGSK: Tensor) -> Tensor:
    """The same by the formula, for tests: softmax(q k' / sqrt(K) + mask) v."""
    H, T, K = q_BHTK.shape[1:]
    G, S = k_BGSK.shape[1:3]
    k_BHSK, v_BHSK = (x.repeat_interleave(H // G, dim=1) for x in (k_BGSK, v_BGSK))
    scores_BHTS = q_BHTK @ k_BHSK.transpose(2, 3) / K**0.5
    scores_BHTS = scores_BHTS.masked_fill(~_visible(T, S, q_BHTK.device), float("-inf"))
    return scores_BHTS.softmax(dim=-1) @ v_BHSK


def _visible(T: int, S: int, device: torch.device) -> Tensor:
    """(T, S), true where query t may see key s."""
    return torch.ones(T, S, dtype=torch.bool, device=device).tril(S - T)
