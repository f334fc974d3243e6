"""Causal attention with grouped heads: scaled dot products, softmax, weighted sum.

Without a mask the queries are the *last* T of the S positions that have keys, so one function
serves training (T = S), a prompt after a cached prefix (T < S) and decoding (T = 1); with one,
`visibility.py` has decided who sees what. Query head h reads the key-value head h // (H / G). The
fast path is PyTorch's fused kernel, which never holds the (T, S) matrix of scores; the reference
below it is the formula.

Knows nothing about positions, projections or caches.

Sources: Vaswani et al., Attention Is All You Need, 2017, section 3.2; Ainslie et al., GQA, 2023.

Shapes: B batch, T queries, S keys, H query heads, G key-value heads, K head dimension.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def causal_attention(
    q_BHTK: Tensor,
    k_BGSK: Tensor,
    v_BGSK: Tensor,
    mask_BTS: Any = None,
    *,
    sinks_H: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Attention in which query t sees the keys 0 … S - T + t, or those that a mask names.

    Args:
        q_BHTK: queries; H is a multiple of G.
        k_BGSK: keys; without a mask, S >= T.
        v_BGSK: values.
        mask_BTS: true where a query sees a key, each at least one; (1, T, S) if all alike. Or a
            BlockMask of FlexAttention, without sinks and dropout.
        sinks_H: a logit per head that takes its share of the softmax and gives nothing.
        dropout: share of the weights that are set to 0.

    Returns:
        The weighted values, (B, H, T, K), in the queries' type.
    """
    B, H, T, K = q_BHTK.shape
    G, S = k_BGSK.shape[1:3]
    assert H % G == 0 and (T <= S or mask_BTS is not None), (q_BHTK.shape, k_BGSK.shape)
    if not isinstance(mask_BTS, Tensor | None):
        from peerformer.kernels.flex import block_attention

        assert sinks_H is None and not dropout
        return block_attention(q_BHTK, k_BGSK, v_BGSK, mask_BTS)
    if sinks_H is not None:
        return _by_formula(q_BHTK, k_BGSK, v_BGSK, mask_BTS, sinks_H, dropout)
    mask_B1TS = None if mask_BTS is None else mask_BTS[:, None]
    if T == 1:
        # One query: the query heads of a group become its queries, and the keys, which are the
        # whole cost of decoding, are read in place instead of being repeated.
        q_BGRK = q_BHTK.reshape(B, G, H // G, K)
        y_BGRK = F.scaled_dot_product_attention(
            q_BGRK, k_BGSK, v_BGSK, attn_mask=mask_B1TS, dropout_p=dropout
        )
        return y_BGRK.reshape(B, H, T, K)
    is_causal = mask_B1TS is None and T == S
    if mask_B1TS is None and not is_causal:
        mask_B1TS = _visible(T, S, q_BHTK.device)[None, None]
    return F.scaled_dot_product_attention(
        q_BHTK,
        k_BGSK,
        v_BGSK,
        attn_mask=mask_B1TS,
        is_causal=is_causal,
        enable_gqa=G != H,
        dropout_p=dropout,
    )


def causal_attention_reference(
    q_BHTK: Tensor,
    k_BGSK: Tensor,
    v_BGSK: Tensor,
    mask_BTS: Tensor | None = None,
    sinks_H: Tensor | None = None,
) -> Tensor:
    """The same by the formula, for tests: softmax(q k' / sqrt(K) + mask, sinks) v."""
    return _by_formula(q_BHTK, k_BGSK, v_BGSK, mask_BTS, sinks_H, 0.0)


def _by_formula(
    q_BHTK: Tensor,
    k_BGSK: Tensor,
    v_BGSK: Tensor,
    mask_BTS: Tensor | None,
    sinks_H: Tensor | None,
    dropout: float,
) -> Tensor:
    """Attention that holds its (T, S) matrix; also the way of sinks, which no fused kernel has."""
    B, H, T, K = q_BHTK.shape
    G, S = k_BGSK.shape[1:3]
    k_BHSK, v_BHSK = (x.repeat_interleave(H // G, dim=1) for x in (k_BGSK, v_BGSK))
    scores_BHTS = q_BHTK @ k_BHSK.transpose(2, 3) / K**0.5
    seen_BTS = _visible(T, S, q_BHTK.device)[None] if mask_BTS is None else mask_BTS
    scores_BHTS = scores_BHTS.masked_fill(~seen_BTS[:, None], float("-inf"))
    if sinks_H is not None:
        sinks_BHT1 = sinks_H.to(scores_BHTS.dtype)[None, :, None, None].expand(B, H, T, 1)
        scores_BHTS = torch.cat((scores_BHTS, sinks_BHT1), dim=-1)
    weights_BHTS = F.dropout(scores_BHTS.softmax(dim=-1), dropout)[..., :S]
    return weights_BHTS.to(v_BHSK.dtype) @ v_BHSK


def _visible(T: int, S: int, device: torch.device) -> Tensor:
    """(T, S), true where query t may see key s."""
    return torch.ones(T, S, dtype=torch.bool, device=device).tril(S - T)
