"""AdamW, and Muon for the matrices of the blocks with AdamW for the rest.

Muon (Jordan et al., 2024) replaces the momentum of a matrix by the nearest orthogonal one, found
by a Newton-Schulz iteration. Here it runs on all matrices of one shape at a time, in float32 or in
the type that the rest of the run computes in, and its result is bounded: an orthogonal matrix has
a known norm, so an iteration that overshoots (near-rank-1 input does that, in bfloat16 above all)
cannot blow an update up. Weight decay is decoupled.

Shapes: N matrices of one shape, R rows, C columns.
"""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from peerformer.config import OptimizerConfig

NEWTON_SCHULZ_STEPS = 5
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # the quintic of the Muon paper: fast near zero
SINGULAR_VALUE_MAX = 1.25  # what that quintic leaves at most in float32
ADAMW_STATE = {"step", "exp_avg", "exp_avg_sq"}  # as torch.optim.AdamW calls it
OUTER = ("embed", "lm_head", "wte", "wpe", "head.weight")  # in names of embeddings and heads


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


class Optimizer:
    """Muon on some matrices and AdamW on everything else, with one learning-rate scale.

    Args:
        named: the parameters by their names in the module.
        config: the settings.
        hidden: the names of the matrices that Muon takes.
    """

    def __init__(
        self,
        named: Mapping[str, nn.Parameter],
        config: OptimizerConfig,
        hidden: frozenset[str] = frozenset(),
    ) -> None:
        self.config = config
        self.named = dict(named)
        muon = {name: self.named[name] for name in self.named if name in hidden}
        self._names = {id(parameter): name for name, parameter in self.named.items()}
        groups: dict[tuple[int, ...], list[str]] = {}
        for name, parameter in muon.items():
            groups.setdefault(tuple(parameter.shape), []).append(name)
        self._groups = list(groups.values())
        self.momentum = {name: torch.zeros_like(parameter) for name, parameter in muon.items()}
        rest = {name: p for name, p in self.named.items() if name not in muon}
        decayed = [p for p in rest.values() if p.ndim >= 2]
        plain = [p for p in rest.values() if p.ndim < 2]
        self.adamw = torch.optim.AdamW(
            [
                {"params": decayed, "weight_decay": config.weight_decay},
                {"params": plain, "weight_decay": 0.0},
            ],
            lr=config.learning_rate,
            betas=(config.beta1, config.beta2),
            eps=config.epsilon,
            fused=all(p.device.type in ("cpu", "cuda") for p in rest.values()),
        )

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for parameter in self.named.values():
            parameter.grad = None

    @torch.no_grad()
    def step(self, scale: float, dtype: torch.dtype | None = None) -> None:
        """Update the parameters by their gradients at `scale` times the peak learning rates.

        `dtype` is the type of Muon's iteration; None is float32.
        """
        for group in self.adamw.param_groups:
            group["lr"] = self.config.learning_rate * scale
        self.adamw.step()
        rate = self.config.muon_learning_rate * scale
        for names in self._groups:
            self._muon_step([n for n in names if self.named[n].grad is not None], rate, dtype)

    def _muon_step(self, names: list[str], rate: float, dtype: torch.dtype | None) -> None:
        if not names:
            return
        parameters: list[Tensor] = [self.named[name] for name in names]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        momenta, mu = [self.momentum[name] for name in names], self.config.muon_momentum
        torch._foreach_lerp_(momenta, gradients, 1 - mu)
        nesterov = torch._foreach_lerp(gradients, momenta, mu)
        updates = orthogonalise(torch.stack(list(nesterov)), dtype or torch.float32)
        rows, columns = parameters[0].shape
        updates *= rate * max(1.0, rows / columns) ** 0.5
        torch._foreach_mul_(parameters, 1 - rate * self.config.weight_decay)
        pieces: list[Tensor] = [*updates.to(parameters[0].dtype)]
        torch._foreach_sub_(parameters, pieces)

    def reset(self) -> None:
        """Forget all momenta."""
        self.adamw.state.clear()
        for tensor in self.momentum.values():
            tensor.zero_()


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> Optimizer:
    """Return the optimizer of a module's trainable parameters.

    Muon takes the matrices between embedding and head: not those of an `nn.Embedding`, whatever
    it is called, nor those that are called as heads and embeddings are.
    """
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    hidden = {
        name
        for name, parameter in trainable.items()
        if parameter.ndim == 2
        and id(parameter) not in tables
        and not any(word in name for word in OUTER)
    }
    return Optimizer(trainable, config, frozenset(hidden if config.name == "muon" else ()))


def optimizer_tensors(optimizer: Optimizer) -> dict[str, Tensor]:
    """Return the optimizer's state as `parameter name/kind` -> tensor."""
    tensors = {f"{name}/momentum": tensor for name, tensor in optimizer.momentum.items()}
    for parameter, state in optimizer.adamw.state.items():
        name = optimizer._names[id(parameter)]
        for kind, value in state.items():
            tensors[f"{name}/{kind}"] = torch.as_tensor(value)
    return tensors


def load_optimizer_tensors(optimizer: Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Take up the state that `optimizer_tensors` gave.

    Raises:
        ValueError: if it is the state of other parameters or of another optimizer.
    """
    by_name: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        name, _, kind = key.rpartition("/")
        by_name.setdefault(name, {})[kind] = tensor
    unknown = set(by_name) - set(optimizer.named)
    if unknown:
        raise ValueError(f"state of unknown parameters: {_some(unknown)}")
    if not set(optimizer.momentum) <= set(by_name):
        raise ValueError("state of another optimizer")
    for name, kinds in by_name.items():
        shape = optimizer.named[name].shape
        wanted = {"momentum"} if name in optimizer.momentum else ADAMW_STATE
        if set(kinds) != wanted:
            raise ValueError("state of another optimizer")
        if any(kind != "step" and tensor.shape != shape for kind, tensor in kinds.items()):
            raise ValueError(f"state of another shape for {name}")
    # Nothing is changed before all of it is known to fit.
    optimizer.reset()
    for name, kinds in by_name.items():
        if name in optimizer.momentum:
            optimizer.momentum[name].copy_(kinds["momentum"])
        else:
            state = {kind: tensor.clone() for kind, tensor in kinds.items()}
            optimizer.adamw.state[optimizer.named[name]] = state


def _some(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)[:3])
