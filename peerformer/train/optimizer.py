"""The optimizer of a module: Muon on the matrices of blocks and AdamW on the rest, or one for all.

AdamW (Loshchilov and Hutter, arXiv 1711.05101) is PyTorch's; Muon, Lion and SGD have files of
their own. Whatever it is, weight decay falls on matrices only, one scale moves all learning rates,
and the state is a flat table of tensors by `parameter name/kind`, so that checkpoints, auditors
and restarts read and check it in one way.
"""

from collections.abc import Iterable, Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from peerformer.config import OptimizerConfig
from peerformer.train.momentum import Momentum
from peerformer.train.muon import Muon
from peerformer.train.sharpness import Sharpness

OUTER = ("embed", "lm_head", "wte", "wpe", "head.weight")  # in names of embeddings and heads
STEP = "step"  # the one kind of state that has not the shape of its parameter


class Part(Protocol):
    """One rule on some of the parameters."""

    named: dict[str, nn.Parameter]
    kinds: frozenset[str]  # of the state of one parameter
    is_lazy: bool  # the state of a parameter begins with its first step

    def step(self, scale: float, dtype: torch.dtype | None = None) -> None:
        """Update by the gradients at `scale` times the peak learning rate."""

    def state(self) -> dict[str, dict[str, Tensor]]:
        """Return the state by parameter and kind; of a parameter never stepped, perhaps none."""

    def load(self, name: str, kinds: Mapping[str, Tensor]) -> None:
        """Take up the state of one parameter."""

    def reset(self) -> None:
        """Forget all state."""


class AdamW:
    """PyTorch's AdamW on some parameters."""

    kinds = frozenset({STEP, "exp_avg", "exp_avg_sq"})  # as torch.optim.AdamW calls it
    is_lazy = True

    def __init__(self, named: Mapping[str, nn.Parameter], config: OptimizerConfig) -> None:
        self.named, self.config = dict(named), config
        self._names = {id(parameter): name for name, parameter in self.named.items()}
        decayed = [p for p in self.named.values() if p.ndim >= 2]
        plain = [p for p in self.named.values() if p.ndim < 2]
        self._adamw = torch.optim.AdamW(
            [
                {"params": decayed, "weight_decay": config.weight_decay},
                {"params": plain, "weight_decay": 0.0},
            ],
            lr=config.learning_rate,
            betas=(config.beta1, config.beta2),
            eps=config.epsilon,
            fused=all(p.device.type in ("cpu", "cuda") for p in self.named.values()),
        )

    def step(self, scale: float, dtype: torch.dtype | None = None) -> None:
        """Update at `scale` times the peak learning rate; `dtype` is of no use to it."""
        for group in self._adamw.param_groups:
            group["lr"] = self.config.learning_rate * scale
        self._adamw.step()

    def state(self) -> dict[str, dict[str, Tensor]]:
        """Return the moments and the step of each parameter that was stepped."""
        return {
            self._names[id(parameter)]: {k: torch.as_tensor(v) for k, v in state.items()}
            for parameter, state in self._adamw.state.items()
        }

    def load(self, name: str, kinds: Mapping[str, Tensor]) -> None:
        """Take up the state of one parameter."""
        self._adamw.state[self.named[name]] = {k: tensor.clone() for k, tensor in kinds.items()}

    def reset(self) -> None:
        """Forget all state."""
        self._adamw.state.clear()


class Optimizer:
    """One or two rules on the parameters of a module, with one learning-rate scale.

    Args:
        named: the parameters by their names in the module.
        config: the settings.
        hidden: the names of the matrices that Muon takes, where it is chosen.
    """

    def __init__(
        self,
        named: Mapping[str, nn.Parameter],
        config: OptimizerConfig,
        hidden: frozenset[str] = frozenset(),
    ) -> None:
        self.config = config
        self.named = dict(named)
        self.sharpness = Sharpness.of(config)
        self.parts = _parts(self.named, config, hidden)
        self._part_of = {name: part for part in self.parts for name in part.named}

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for parameter in self.named.values():
            parameter.grad = None

    @torch.no_grad()
    def step(self, scale: float, dtype: torch.dtype | None = None) -> None:
        """Update the parameters by their gradients at `scale` times the peak learning rates.

        `dtype` is the type of Muon's iteration; None is float32.
        """
        for part in self.parts:
            part.step(scale, dtype)

    def reset(self) -> None:
        """Forget all state."""
        for part in self.parts:
            part.reset()

    def part_of(self, name: str) -> Part:
        """Return the rule that updates a parameter."""
        return self._part_of[name]


def _parts(
    named: dict[str, nn.Parameter], config: OptimizerConfig, hidden: frozenset[str]
) -> tuple[Part, ...]:
    match config.name:
        case "adamw":
            return (AdamW(named, config),)
        case "lion":
            return (Momentum(named, config, "lion"),)
        case "sgd":
            return (Momentum(named, config, "sgd"),)
    muon = {name: p for name, p in named.items() if name in hidden}
    rest = {name: p for name, p in named.items() if name not in hidden}
    return (AdamW(rest, config), Muon(muon, config))


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> Optimizer:
    """Return the optimizer of a module's trainable parameters.

    Muon takes the matrices between embedding and head, and stacks of experts: not those of an
    `nn.Embedding`, whatever it is called, nor those that are called as heads and embeddings are.
    """
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    hidden = {
        name
        for name, parameter in trainable.items()
        if (parameter.ndim == 2 or (parameter.ndim == 3 and ".experts." in f".{name}"))
        and id(parameter) not in tables
        and not any(word in name for word in OUTER)
    }
    return Optimizer(trainable, config, frozenset(hidden))


def optimizer_tensors(optimizer: Optimizer) -> dict[str, Tensor]:
    """Return the optimizer's state as `parameter name/kind` -> tensor."""
    return {
        f"{name}/{kind}": tensor
        for part in optimizer.parts
        for name, kinds in part.state().items()
        for kind, tensor in kinds.items()
    }


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
    always = {name for part in optimizer.parts if not part.is_lazy for name in part.named}
    if not always <= set(by_name):
        raise ValueError("state of another optimizer")
    for name, kinds in by_name.items():
        shape = optimizer.named[name].shape
        if set(kinds) != optimizer.part_of(name).kinds:
            raise ValueError("state of another optimizer")
        if any(kind != STEP and tensor.shape != shape for kind, tensor in kinds.items()):
            raise ValueError(f"state of another shape for {name}")
    # Nothing is changed before all of it is known to fit.
    optimizer.reset()
    for name, kinds in by_name.items():
        optimizer.part_of(name).load(name, kinds)


def _some(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)[:3])
