"""What peers must have alike before they can read each other's updates: the tensors of a module.

Agreed on are the parameters that are trained (`requires_grad`), by name and in the module's order.
Frozen ones are not agreed on, since they never change; but they must be the same everywhere, so
each is described by the hash of its bytes (an adapter learns for one base and no other). Buffers
are each peer's own. The description is a file that the genesis names by its hash, in the place that
a tokenizer has in a swarm with text: a newcomer fetches it and compares, and is told the first
tensor that does not fit. It knows nothing of training.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import zip_longest
from typing import Any

import torch
from blake3 import blake3
from torch import Tensor, nn

from peerformer.errors import ConfigError, SwarmError
from peerformer.gradients.fixed_point import FRACTION_BITS, Layout

# Halves lose what a round moves: the start of an update would be rounded, and its end again.
DTYPES = (torch.float32, torch.float64)
LARGEST = (2**31 - 1) / 2**FRACTION_BITS  # that a fixed-point parameter reaches
TENSORS_MAX = 1 << 20
VERSION = 1


@dataclass(frozen=True, slots=True)
class Described:
    """One tensor."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    digest: str = ""  # BLAKE3 of the bytes of a frozen one

    def __str__(self) -> str:
        size = "x".join(map(str, self.shape)) or "one number"
        return f"{self.name} ({size}, {self.dtype})"


@dataclass(frozen=True, slots=True)
class Description:
    """The tensors of a module: those that are agreed on, in order, and those that are frozen."""

    agreed: tuple[Described, ...]
    frozen: tuple[Described, ...] = ()

    @property
    def layout(self) -> Layout:
        """How the agreed tensors lie in one flat vector."""
        return Layout(tuple(t.name for t in self.agreed), tuple(t.shape for t in self.agreed))

    @property
    def digest(self) -> str:
        """What stands in the recipe for all of it."""
        return blake3(self.to_bytes()).hexdigest()

    def to_bytes(self) -> bytes:
        """Return the file that newcomers fetch."""
        return json.dumps({"version": VERSION, **asdict(self)}, separators=(",", ":")).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> "Description":
        """Read what `to_bytes` wrote; the bytes are a stranger's.

        Raises:
            SwarmError: if they are not a description.
        """
        try:
            found = json.loads(data)
            if found["version"] != VERSION:
                raise ValueError(f"version {found['version']!r:.20}")
            return cls(_read(found["agreed"]), _read(found["frozen"]))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise SwarmError(
                "the swarm's description of its tensors cannot be read", why=repr(error)
            ) from error


def _read(found: Any) -> tuple[Described, ...]:
    if not isinstance(found, list) or len(found) > TENSORS_MAX:
        raise ValueError("no list of tensors")
    read = []
    for entry in found:
        shape = tuple(entry["shape"])
        if not all(type(size) is int and size >= 0 for size in shape):
            raise ValueError("a shape that none is")
        read.append(Described(str(entry["name"]), shape, str(entry["dtype"]), str(entry["digest"])))
    return tuple(read)


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that are agreed on, in the module's order; a tied one once."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def describe_module(model: nn.Module) -> Description:
    """Describe a module.

    Raises:
        ConfigError: if a swarm cannot agree on its parameters.
    """
    agreed = describe_tensors(trained(model))
    frozen = tuple(
        Described(name, tuple(p.shape), _word(p.dtype), _digest(p))
        for name, p in model.named_parameters()
        if not p.requires_grad
    )
    return Description(agreed.agreed, frozen)


def describe_tensors(tensors: Mapping[str, Tensor]) -> Description:
    """Describe tensors that are agreed on.

    Raises:
        ConfigError: if there is none, or one cannot be agreed on.
    """
    if not any(tensor.numel() for tensor in tensors.values()):
        raise ConfigError(
            "there is nothing to agree on",
            why="no parameter of the module is trained (requires_grad)",
        )
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPES:
            raise ConfigError(
                f"parameter {name} is {_word(tensor.dtype)}, and peers agree on float32",
                why="an update of a round is smaller than what such numbers can tell apart",
                hint="model.float(), and torch.autocast around the forward pass",
            )
        largest = float(tensor.detach().abs().max()) if tensor.numel() else 0.0
        if not largest <= LARGEST:
            raise ConfigError(
                f"parameter {name} reaches {largest:g}, and peers agree on numbers up to 128",
                hint="scale it in the module's forward pass",
            )
    return Description(
        tuple(Described(name, tuple(t.shape), _word(t.dtype)) for name, t in tensors.items())
    )


def refuse_other(mine: Description, theirs: Description) -> None:
    """Refuse tensors that are not those of the swarm, naming the first that does not fit.

    Raises:
        ConfigError: if there is one.
    """
    for what, own, agreed in (
        ("agreed", mine.agreed, theirs.agreed),
        ("frozen", mine.frozen, theirs.frozen),
    ):
        for index, (here, there) in enumerate(zip_longest(own, agreed)):
            if here == there:
                continue
            same = bool(here and there) and (here.name, here.shape, here.dtype) == (
                there.name,
                there.shape,
                there.dtype,
            )
            why = f"the swarm has {there or 'none there'}, and this module {here or 'none'}"
            if same:
                why = f"{there} has other values than the founder's, and no training changes them"
            raise ConfigError(
                f"this module is not the one that the swarm trains: {what} parameter"
                f" {(here or there).name} does not fit",
                where=f"{what} parameter {index + 1} of {len(agreed)}",
                why=why,
                hint="build the module as its founder did: same code, same options, same base",
            )


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _digest(tensor: Tensor) -> str:
    data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return blake3(data.data).hexdigest()
