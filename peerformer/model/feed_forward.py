"""The feed-forward layer: SwiGLU, one gate and one value, multiplied, then projected back.

Source: Shazeer, GLU Variants Improve Transformer, 2020, equation 6.

Shapes: B batch, T tokens, D width, F hidden width.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from peerformer.config import ModelConfig


class FeedForward(nn.Module):
    """`down(silu(gate(x)) * up(x))`, without biases."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        D, hidden = config.hidden_size, config.intermediate_size
        self.gate_proj = nn.utils.skip_init(nn.Linear, D, hidden, bias=False)
        self.up_proj = nn.utils.skip_init(nn.Linear, D, hidden, bias=False)
        self.down_proj = nn.utils.skip_init(nn.Linear, hidden, D, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """The layer's addition to the residual stream, (B, T, D)."""
        return self.down_proj(F.silu(self.gate_proj(x_BTD)) * self.up_proj(x_BTD))
