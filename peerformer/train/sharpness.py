"""Sharpness-aware minimisation: the gradient of the worst point near by, for any optimizer.

Before each step the parameters climb to where the loss is highest within a small distance, to
first order; the gradient there, taken back to where they were, is what the optimizer gets. It
costs a second forward and backward pass a step, and no state.

*SAM* (Foret et al., arXiv 2010.01412, equation 2) climbs by rho g / |g|. *ASAM* (Kwon et al.,
arXiv 2102.11600, equation 9) measures the distance relative to each value: with T = |w| + eta for
the values of matrices and 1 for those of vectors, it climbs by rho T^2 g / |T g|, which makes it
blind to scaling a layer up and the next one down. Knows nothing of models or batches.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from peerformer.config import OptimizerConfig

RHO = {"sam": 0.05, "asam": 0.5}  # the defaults of the two papers


@dataclass(frozen=True, slots=True)
class Sharpness:
    """How far to climb, and measured how."""

    kind: Literal["sam", "asam"]
    rho: float
    eta: float

    @classmethod
    def of(cls, config: OptimizerConfig) -> "Sharpness | None":
        """Return what the settings ask for."""
        if config.sharpness == "none":
            return None
        kind: Literal["sam", "asam"] = "sam" if config.sharpness == "sam" else "asam"
        return cls(kind, config.sharpness_rho or RHO[kind], config.sharpness_eta)

    @contextmanager
    @torch.no_grad()
    def climbed(self, named: Mapping[str, nn.Parameter]) -> Iterator[bool]:
        """Hold the parameters where their gradients lead up to, and put them back bit by bit.

        Yields whether they climbed: a gradient that is not finite, or nothing, leads nowhere.
        """
        parameters: list[Tensor] = [p for p in named.values() if p.grad is not None]
        gradients = [p.grad for p in parameters if p.grad is not None]
        climbs = self._climbs(parameters, gradients)
        if climbs is None:
            yield False
            return
        before = [parameter.clone() for parameter in parameters]  # subtracting would round
        torch._foreach_add_(parameters, climbs)
        try:
            yield True
        finally:
            torch._foreach_copy_(parameters, before)

    def _climbs(self, parameters: list[Tensor], gradients: list[Tensor]) -> list[Tensor] | None:
        scales = None
        if self.kind == "asam":
            scales = [p.abs() + self.eta if p.ndim >= 2 else torch.ones_like(p) for p in parameters]
            gradients = list(torch._foreach_mul(gradients, scales))
        norm = torch.nn.utils.get_total_norm(gradients)
        if not torch.isfinite(norm) or norm == 0:
            return None
        climbs = list(torch._foreach_mul(gradients, self.rho / norm.item()))
        if scales is not None:
            torch._foreach_mul_(climbs, scales)
        return climbs
