"""Averaged weights: an exponential moving average of the parameters over the steps.

After each step every averaged value moves by 1 - d towards the parameter, with d the smaller of the
setting and (1 + n) / (10 + n) after n steps, so that the first weights are soon forgotten (the
moving average of TensorFlow's `ExponentialMovingAverage`; Polyak and Juditsky, 1992, for the idea).
What is averaged is a better model than the last step's while the rate is high. It is float32 in
memory of its own, and never trained. Knows nothing of files.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Average:
    """The average of some parameters.

    Args:
        named: the parameters by their names in the module; the average begins where they are.
        decay: the longest memory, such as 0.999.
    """

    def __init__(self, named: Mapping[str, nn.Parameter], decay: float) -> None:
        self.decay, self.steps = decay, 0
        self.weights = {name: p.detach().clone() for name, p in named.items()}

    @torch.no_grad()
    def update(self, named: Mapping[str, nn.Parameter]) -> None:
        """Take in the parameters after one more step."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        current: list[Tensor] = [named[name] for name in self.weights]
        torch._foreach_lerp_(list(self.weights.values()), current, 1.0 - decay)

    @torch.no_grad()
    def restart(self, named: Mapping[str, nn.Parameter], steps: int) -> None:
        """Take the parameters, as they are now, for the average after so many steps."""
        self.steps = steps
        for name, average in self.weights.items():
            average.copy_(named[name])

    @contextmanager
    def in_place(self, named: Mapping[str, nn.Parameter]) -> Iterator[None]:
        """Hold the parameters at their average, and put them back bit by bit."""
        self._exchange(named)
        try:
            yield
        finally:
            self._exchange(named)

    @torch.no_grad()
    def _exchange(self, named: Mapping[str, nn.Parameter]) -> None:
        for name, average in self.weights.items():
            kept = named[name].clone()
            named[name].copy_(average)
            average.copy_(kept)
