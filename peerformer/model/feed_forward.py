"""The feed-forward layer: what a token becomes on its own, in a wider space and back.

SwiGLU multiplies a gate and a value; the classic layer has one activation.

Sources: Shazeer, GLU Variants Improve Transformer, 2020, equation 6 (SwiGLU); Hendrycks and
Gimpel, Gaussian Error Linear Units, 2016 (GELU, and its approximation by tanh, as in GPT-2);
So et al., Primer, 2021, section 4 (squared ReLU).

Shapes: B batch, T tokens, D width, F hidden width.
"""

from collections.abc import Callable
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from peerformer.config import ModelConfig
from peerformer.model.linear import linear


class SwiGLU(nn.Module):
    """`down(silu(gate(x)) * up(x))`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        D, hidden, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.gate_proj = linear(D, hidden, bias=bias)
        self.up_proj = linear(D, hidden, bias=bias)
        self.down_proj = linear(hidden, D, bias=bias)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """The layer's addition to the residual stream, (B, T, D)."""
        return self.down_proj(F.silu(self.gate_proj(x_BTD)) * self.up_proj(x_BTD))


class Activated(nn.Module):
    """`down(activation(up(x)))`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        D, hidden, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.up_proj = linear(D, hidden, bias=bias)
        self.down_proj = linear(hidden, D, bias=bias)
        self.activation = ACTIVATIONS[config.feed_forward]

    def forward(self, x_BTD: Tensor) -> Tensor:
        """The layer's addition to the residual stream, (B, T, D)."""
        return self.down_proj(self.activation(self.up_proj(x_BTD)))


def squared_relu(x: Tensor) -> Tensor:
    """`max(x, 0)²`."""
    return F.relu(x).square()


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu-tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "relu2": squared_relu,
}


def make_feed_forward(config: ModelConfig) -> nn.Module:
    """The feed-forward layer of a block."""
    return SwiGLU(config) if config.feed_forward == "swiglu" else Activated(config)
