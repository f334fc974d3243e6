"""Norms over the width of a token: RMSNorm, which only scales, and LayerNorm, which also centres.

Sources: Zhang and Sennrich, Root Mean Square Layer Normalization, 2019, equation 4; Ba et al.,
Layer Normalization, 2016, section 3.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peerformer.config import ModelConfig


class RMSNorm(nn.Module):
    """`weight * x / sqrt(mean(x²) + epsilon)` over the last dimension, at least in float32."""

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        """`x` normed, in its own type."""
        if x.is_cuda:
            return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.epsilon)
        # On a CPU the composed form trains two to three times faster than F.rms_norm, whose
        # backward pass is not fused there.
        wide = x.float()
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.epsilon)
        return (wide * scale).to(x.dtype) * self.weight.to(x.dtype)


class LayerNorm(nn.LayerNorm):
    """`weight * (x - mean) / sqrt(variance + epsilon) + bias`, in the type of `x`."""

    def forward(self, x: Tensor) -> Tensor:
        """`x` normed, in its own type."""
        return super().forward(x).to(x.dtype)  # autocast computes it in float32


NORMS = {"rms": RMSNorm, "layer": LayerNorm}


def make_norm(config: ModelConfig) -> nn.Module:
    """The norm of a model, over its width."""
    return NORMS[config.norm](config.hidden_size, config.rms_norm_epsilon)
