"""Lion, and plain SGD: one momentum a parameter, half of the state that AdamW keeps.

*Lion* (Chen et al., arXiv 2302.06675, algorithm 2) moves every value by the same amount, up or
down by the sign of beta1 m + (1 - beta1) g; then m becomes beta2 m + (1 - beta2) g. Its step is
larger than AdamW's, so its learning rate is 3 to 10 times smaller, and its decoupled weight decay
as much larger.

*SGD* is that of `torch.optim.SGD` without dampening: m becomes mu m + g, and the step is m, or
g + mu m with Nesterov's look ahead (Sutskever et al., 2013). Its weight decay is the classic one,
added to the gradient.

Matrices decay and vectors (norms, biases) do not. Knows nothing of schedules.
"""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from peerformer.config import OptimizerConfig


class Momentum:
    """Lion or SGD on some parameters.

    Args:
        named: the parameters by their names in the module.
        config: the settings.
        rule: which of the two.
    """

    is_lazy = False

    def __init__(
        self,
        named: Mapping[str, nn.Parameter],
        config: OptimizerConfig,
        rule: Literal["lion", "sgd"],
    ) -> None:
        self.named, self.config, self.rule = dict(named), config, rule
        self.kinds = frozenset({f"{rule}_momentum"})  # what one keeps is nothing to the other
        self.momentum = {name: torch.zeros_like(p) for name, p in self.named.items()}

    def step(self, scale: float, dtype: torch.dtype | None = None) -> None:
        """Update at `scale` times the peak learning rate; `dtype` is of no use to it."""
        names = [name for name, parameter in self.named.items() if parameter.grad is not None]
        if not names:
            return
        rate = self.config.learning_rate * scale
        parameters: list[Tensor] = [self.named[name] for name in names]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        momenta = [self.momentum[name] for name in names]
        update = self._lion if self.rule == "lion" else self._sgd
        torch._foreach_add_(parameters, update(parameters, gradients, momenta, rate), alpha=-rate)

    def _lion(
        self, parameters: list[Tensor], gradients: list[Tensor], momenta: list[Tensor], rate: float
    ) -> list[Tensor]:
        decayed = [parameter for parameter in parameters if parameter.ndim >= 2]
        if decayed and self.config.weight_decay:
            torch._foreach_mul_(decayed, 1 - rate * self.config.weight_decay)
        signs = torch._foreach_lerp(gradients, momenta, self.config.beta1)
        torch._foreach_sign_(signs)
        torch._foreach_lerp_(momenta, gradients, 1 - self.config.beta2)
        return list(signs)

    def _sgd(
        self, parameters: list[Tensor], gradients: list[Tensor], momenta: list[Tensor], rate: float
    ) -> list[Tensor]:
        decay = self.config.weight_decay
        gradients = [
            gradient.add(parameter, alpha=decay) if decay and parameter.ndim >= 2 else gradient
            for parameter, gradient in zip(parameters, gradients, strict=True)
        ]
        if not self.config.momentum:
            return gradients
        torch._foreach_mul_(momenta, self.config.momentum)
        torch._foreach_add_(momenta, gradients)
        if not self.config.nesterov:
            return momenta
        return list(torch._foreach_add(gradients, momenta, alpha=self.config.momentum))

    def state(self) -> dict[str, dict[str, Tensor]]:
        """Return the momenta, by parameter."""
        (kind,) = self.kinds
        return {name: {kind: tensor} for name, tensor in self.momentum.items()}

    def load(self, name: str, kinds: Mapping[str, Tensor]) -> None:
        """Take up the momentum of a parameter."""
        (kind,) = self.kinds
        self.momentum[name].copy_(kinds[kind])

    def reset(self) -> None:
        """Forget all momenta."""
        for tensor in self.momentum.values():
            tensor.zero_()
