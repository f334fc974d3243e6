"""Matrices that are made without values, because `initialise` or a checkpoint sets them anyway."""

import torch
from torch import nn


def linear(inputs: int, outputs: int, *, bias: bool) -> nn.Linear:
    """A matrix of unset values on the default device; on `meta` it takes no memory."""
    device = torch.get_default_device()
    return nn.utils.skip_init(nn.Linear, inputs, outputs, bias=bias, device=device)


def embedding(tokens: int, width: int) -> nn.Embedding:
    """A table of unset values on the default device."""
    return nn.utils.skip_init(nn.Embedding, tokens, width, device=torch.get_default_device())
