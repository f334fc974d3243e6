"""Muon: the momentum of a matrix, replaced by the nearest orthogonal one.

Jordan et al., 2024 (kellerjordan.github.io/posts/muon), found by a Newton-Schulz iteration. Here it
runs on all matrices of one shape at a time, each expert's by itself, in float32 or in the type that
the rest of the run computes in, and its result is bounded: an orthogonal matrix has a known norm,
so an iteration that overshoots (near-rank-1 input does that, in bfloat16 above all) cannot blow an
update up. Weight decay is decoupled.

Shapes: N matrices of one shape, R rows, C columns.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from peerformer.config import OptimizerConfig

NEWTON_SCHULZ_STEPS = 5
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # the quintic of the Muon paper: fast near zero
SINGULAR_VALUE_MAX = 1.25  # what that quintic leaves at most in float32


def orthogonalise(momentum_NRC: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return the nearest (semi-)orthogonal matrices, approximately; float32, same shape.

    `dtype` is the type of the iteration.

    Singular values end between about 0.7 and 1.2. The Frobenius norm is at most that of a matrix
    whose singular values are all SINGULAR_VALUE_MAX, whatever the input.
    """
    a, b, c = NEWTON_SCHULZ
    x = momentum_NRC.float()
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT.contiguous()  # products of rows that lie together are faster
    x = (x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-12)).to(dtype)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    x = x.float()
    longest = SINGULAR_VALUE_MAX * x.shape[-2] ** 0.5
    x = x * (longest / x.norm(dim=(-2, -1), keepdim=True).clamp(min=longest))
    return x.mT if tall else x


# Stacked momenta -> those that are worked on here, and what puts their updates in their places.
Matrices = Callable[[Tensor], tuple[Tensor, Callable[[Tensor], Tensor]]]


def matrices_of(name: str, shape: torch.Size) -> tuple[int, int, int]:
    """How many matrices a parameter that Muon takes is, and their rows and columns.

    Of stacked experts each is a matrix of its own; where gates and up projections lie in one
    parameter, as in `gate_up_proj` (E, 2F, D), so is each of both.
    """
    count, rows, columns = (1, *shape) if len(shape) == 2 else shape
    fused = 2 if name.endswith("gate_up_proj") else 1
    return count * fused, rows // fused, columns


class Muon:
    """Muon on some matrices.

    Args:
        named: the matrices by their names in the module.
        config: the settings.
    """

    kinds = frozenset({"momentum"})
    is_lazy = False

    def __init__(self, named: Mapping[str, nn.Parameter], config: OptimizerConfig) -> None:
        self.named, self.config = dict(named), config
        groups: dict[tuple[object, ...], list[str]] = {}
        for name, parameter in self.named.items():
            key = (parameter.shape, matrices_of(name, parameter.shape))
            groups.setdefault(key, []).append(name)
        self._groups = list(groups.values())
        self.matrices: Matrices = lambda stacked: (stacked, lambda updates: updates)
        self.momentum = {name: torch.zeros_like(p) for name, p in self.named.items()}

    def step(self, scale: float, dtype: torch.dtype | None = None) -> None:
        """Update at `scale` times the peak rate; `dtype` is that of the iteration, else float32."""
        rate = self.config.muon_learning_rate * scale
        for names in self._groups:
            self._step([n for n in names if self.named[n].grad is not None], rate, dtype)

    def _step(self, names: list[str], rate: float, dtype: torch.dtype | None) -> None:
        if not names:
            return
        parameters: list[Tensor] = [self.named[name] for name in names]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        momenta, mu = [self.momentum[name] for name in names], self.config.muon_momentum
        torch._foreach_lerp_(momenta, gradients, 1 - mu)
        nesterov = torch._foreach_lerp(gradients, momenta, mu)
        stacked, put_back = self.matrices(torch.stack(list(nesterov)))
        count, rows, columns = matrices_of(names[0], parameters[0].shape)
        each = stacked.reshape(len(stacked) * count, rows, columns)
        updates = orthogonalise(each, dtype or torch.float32)
        updates *= rate * max(1.0, rows / columns) ** 0.5
        updates = put_back(updates.reshape(stacked.shape))
        torch._foreach_mul_(parameters, 1 - rate * self.config.weight_decay)
        pieces: list[Tensor] = [*updates.to(parameters[0].dtype)]
        torch._foreach_sub_(parameters, pieces)

    def state(self) -> dict[str, dict[str, Tensor]]:
        """Return the momenta, by parameter."""
        return {name: {"momentum": tensor} for name, tensor in self.momentum.items()}

    def load(self, name: str, kinds: Mapping[str, Tensor]) -> None:
        """Take up the momentum of a matrix."""
        self.momentum[name].copy_(kinds["momentum"])

    def reset(self) -> None:
        """Forget all momenta."""
        for tensor in self.momentum.values():
            tensor.zero_()
