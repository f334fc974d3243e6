"""Low-rank adapters: a frozen matrix W and a trained product of two thin ones, `W + s B A`.

Fine-tuning changes a trained matrix by something of low rank, so that is all that is learned: A is
small and random, B is zero, hence the first step departs from the very model that was given. What
is optimized, saved and passed on is a few per cent of the weights. Merged, an adapter is free:
it is added to its matrix.

Knows nothing about files or optimizers: it freezes what it does not train.

Source: Hu et al., LoRA, 2021, arXiv 2106.09685, section 4.1.

Shapes: R rank, I inputs, O outputs.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peerformer.config import LoraConfig
from peerformer.model.targets import linear_layers, replace_layers
from peerformer.model.transformer import Transformer

A, B = "lora_A", "lora_B"  # ends of parameter names


class LoraLinear(nn.Module):
    """A linear layer that is frozen, and the adapter beside it.

    Args:
        linear: the layer; its own weights are used, not copied.
        config: rank, scale and dropout.
        generator: what draws A, uniformly within 1 / sqrt(I).
    """

    def __init__(self, linear: nn.Linear, config: LoraConfig, generator: torch.Generator) -> None:
        super().__init__()
        outputs, inputs = linear.weight.shape
        self.weight, self.bias = linear.weight, linear.bias
        self.rank, self.alpha, self.dropout = config.rank, config.alpha, config.dropout
        self.scale = config.alpha / config.rank
        uniform_RI = torch.rand(config.rank, inputs, generator=generator).mul_(2).sub_(1)
        self.lora_A = nn.Parameter(uniform_RI / math.sqrt(inputs))
        self.lora_B = nn.Parameter(torch.zeros(outputs, config.rank))

    def forward(self, x: Tensor) -> Tensor:
        """`W x + b + s B A dropout(x)`, over the last dimension."""
        thin = F.linear(F.dropout(x, self.dropout, self.training), self.lora_A)
        return F.linear(x, self.weight, self.bias) + F.linear(thin, self.lora_B) * self.scale

    def merged(self) -> Tensor:
        """`W + s B A`, (O, I)."""
        return self.weight + self.lora_B @ self.lora_A * self.scale


def add_adapters(model: Transformer, config: LoraConfig, seed: int) -> None:
    """Freeze a model and give the layers that `config.targets` names an adapter each.

    Raises:
        ConfigError: a target means no layer of the model.
    """
    layers = linear_layers(model, config.targets, "lora.targets")
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    replace_layers(model, layers, lambda linear: LoraLinear(linear, config, generator))


def adapted_layers(model: nn.Module) -> dict[str, LoraLinear]:
    """The layers with an adapter, by name; none where the model is whole."""
    return {n: layer for n, layer in model.named_modules() if isinstance(layer, LoraLinear)}


@torch.no_grad()
def merge(model: Transformer) -> Transformer:
    """A model without adapters that computes the same, in eval mode."""
    layers = adapted_layers(model)
    state = {name: t for name, t in model.state_dict().items() if not name.endswith((A, B))}
    state |= {f"{name}.weight": layer.merged() for name, layer in layers.items()}
    merged = Transformer(model.config)
    merged.load_state_dict(state)
    return merged.eval()
