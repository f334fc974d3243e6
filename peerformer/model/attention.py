"""Multi-head attention with grouped keys and values: what a token takes from those before it.

A token's vector becomes H queries and G <= H keys and values; G = H is multi-head, G = 1
multi-query attention. Where the model has them, queries and keys are normed per head, which
bounds the scores, and rotated by their position. Each layer has a pattern that says which keys a
query sees, and may have a learned sink per head.

Knows nothing about the layers around it; positions, visibility and the cache are handed in.

Sources: Ainslie et al., GQA, 2023; Shazeer, Fast Transformer Decoding, 2019 (multi-query);
Henry et al., Query-Key Normalization, 2020; OpenAI, gpt-oss model card, 2025 (sinks).

Shapes: B batch, T new tokens, S tokens with keys, D width, H query heads, G key-value heads,
K head dimension.
"""

import torch
from torch import Tensor, nn

from peerformer.config import ModelConfig
from peerformer.kernels.attention import causal_attention
from peerformer.kernels.visibility import FULL, Blocks, Pattern, Visibility
from peerformer.model.cache import Cache
from peerformer.model.linear import linear
from peerformer.model.norm import RMSNorm
from peerformer.model.positions import leave, rotate

BLOCK_TOKENS_MIN = 128  # FlexAttention's tile: of less there is nothing to skip
BLOCK_HEAD_DIM_MIN = 16  # the least that a tensor core multiplies


class Attention(nn.Module):
    """The attention layer of one block."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.pattern = layer, pattern_of(config, layer)
        self.head_dim = K = config.head_dim
        D, H, G, bias = (
            config.hidden_size, config.num_heads, config.num_kv_heads, config.attention_bias
        )  # fmt: skip
        self.q_proj = linear(D, H * K, bias=bias)
        self.k_proj = linear(D, G * K, bias=bias)
        self.v_proj = linear(D, G * K, bias=bias)
        self.o_proj = linear(H * K, D, bias=bias)
        self.q_norm = RMSNorm(K, config.rms_norm_epsilon) if config.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(K, config.rms_norm_epsilon) if config.qk_norm else nn.Identity()
        self.turn = rotate if config.positions == "rotary" else leave
        self.sinks = nn.Parameter(torch.empty(H)) if config.attention_sinks else None
        self.dropout = config.attention_dropout
        # FlexAttention has neither sinks nor dropout, and no heads so small.
        self.by_blocks = self.sinks is None and not self.dropout and K >= BLOCK_HEAD_DIM_MIN

    def forward(
        self,
        x_BTD: Tensor,
        rotary: tuple[Tensor, Tensor],
        visibility: Visibility,
        cache: Cache | None,
    ) -> Tensor:
        """The layer's addition to the residual stream, (B, T, D).

        Args:
            x_BTD: the normed residual stream.
            rotary: `rotary_table`'s rows of the T positions, each (T, K) or (B, 1, T, K).
            visibility: which keys the T tokens see.
            cache: keys and values of the tokens before; None where there are none.
        """
        B, T = x_BTD.shape[:2]
        heads = (B, T, -1, self.head_dim)
        q_BHTK = self.turn(self.q_norm(self.q_proj(x_BTD).view(heads)).transpose(1, 2), rotary)
        k_BGSK = self.turn(self.k_norm(self.k_proj(x_BTD).view(heads)).transpose(1, 2), rotary)
        v_BGSK = self.v_proj(x_BTD).view(heads).transpose(1, 2)
        key_positions_BS = None
        if cache is not None:
            k_BGSK, v_BGSK, key_positions_BS = cache.extend(self.layer, k_BGSK, v_BGSK)
        if cache is None and self.by_blocks and x_BTD.is_cuda and T >= BLOCK_TOKENS_MIN:
            mask = visibility.block_mask(self.pattern)
        else:
            mask = visibility.mask(self.pattern, k_BGSK.shape[2], key_positions_BS)
        dropout = self.dropout if self.training else 0.0
        y_BHTK = causal_attention(q_BHTK, k_BGSK, v_BGSK, mask, sinks_H=self.sinks, dropout=dropout)
        return self.o_proj(y_BHTK.transpose(1, 2).reshape(B, T, -1))


def pattern_of(config: ModelConfig, layer: int) -> Pattern:
    """What the queries of a layer see."""
    match config.layer_kinds[layer]:
        case "window":
            return Pattern(window=config.sliding_window)
        case "blocks":
            blocks = Blocks(
                size=config.sparse_block_size,
                local=config.sparse_local_blocks,
                stride=config.sparse_stride,
                first=config.sparse_global_blocks,
            )
            return Pattern(blocks=blocks)
        case _:
            return FULL
