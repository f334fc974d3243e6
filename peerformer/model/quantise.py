"""Weights rounded to 8 or 4 bits while they are trained, so that the export loses nothing.

A weight is rounded in the forward pass and its gradient passes as if it had not been (the
straight-through estimator), so training finds weights that are good after rounding. Each row is
cut into groups of 32 that share a scale in float16; int8 has the levels -127 … 127 and int4 the
levels -8 … 7, of which -8 falls on the loudest weight of a group. That is the very grid of GGUF's
q8_0 and q4_0: writing a trained weight in that form changes it no more (where the loudest weight
of a group is at least 0.001; below it float16 is too coarse for the scale).

Knows nothing about which weights are trained, or how they are saved.

Sources: Jacob et al., Quantization and Training of Neural Networks, 2018, section 3; Bengio et al.,
Estimating or Propagating Gradients Through Stochastic Neurons, 2013 (straight-through).

Shapes: O outputs, I inputs, N groups of a row, G weights of a group.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peerformer.allowed import QUANTISE_GROUP
from peerformer.model.targets import linear_layers, replace_layers


def rounded(weight_OI: Tensor, kind: str) -> Tensor:
    """The nearest weights on the grid of `int8` or `int4`, (O, I), in the same type."""
    x_ONG = weight_OI.float().unflatten(-1, (-1, QUANTISE_GROUP))
    loudest_ON1 = x_ONG.gather(-1, x_ONG.abs().argmax(-1, keepdim=True))
    if kind == "int8":
        scale_ON1 = (loudest_ON1.abs() / 127).half().float()
        least, most = -127.0, 127.0
    else:
        assert kind == "int4", kind
        scale_ON1 = (loudest_ON1 / -8).half().float()
        least, most = -8.0, 7.0
    levels_ONG = x_ONG / torch.where(scale_ON1 == 0, 1.0, scale_ON1)
    levels_ONG = (levels_ONG + 0.5).floor().clamp(least, most)
    return (levels_ONG * scale_ON1).flatten(-2).to(weight_OI.dtype)


class QuantisedLinear(nn.Module):
    """A linear layer whose weights are rounded whenever it is used.

    Args:
        linear: the layer; its own weights are used, not copied.
        kind: `int8` or `int4`.
    """

    def __init__(self, linear: nn.Linear, kind: str) -> None:
        super().__init__()
        self.weight, self.bias, self.kind = linear.weight, linear.bias, kind

    def forward(self, x: Tensor) -> Tensor:
        """`round(W) x + b`, over the last dimension; the gradient of W is that of round(W)."""
        zero = self.weight - self.weight.detach()  # only its gradient counts
        return F.linear(x, self.exported() + zero, self.bias)

    def exported(self) -> Tensor:
        """The weights that are used, and that an export writes."""
        return rounded(self.weight.detach(), self.kind)


def quantise_layers(model: nn.Module, kind: str, words: str) -> None:
    """Let the layers that `words` mean round their weights.

    Raises:
        ConfigError: a word means no layer of the model.
    """
    layers = linear_layers(model, words, "training.quantise_layers")
    replace_layers(model, layers, lambda linear: QuantisedLinear(linear, kind))


def quantised_layers(model: nn.Module) -> dict[str, QuantisedLinear]:
    """The layers that round their weights, by name."""
    return {n: layer for n, layer in model.named_modules() if isinstance(layer, QuantisedLinear)}
