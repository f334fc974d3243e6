"""What a loop of several ranks does differently, as one object; here the case of one process.

A rank trains its share of each pass of a step; gradients, losses and counts are averages over all
ranks. `cluster` has the ranks of a launcher; the loop, the replica and the evaluation ask this
object and know nothing of processes, networks or how a model may be divided.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from torch import Tensor, nn

from peerformer.data.batches import Batch

if TYPE_CHECKING:
    from peerformer.train.replica import Replica

Made = TypeVar("Made")


class Ranks(Protocol):
    """The ranks that train together. All of them call the same methods in the same order."""

    @property
    def rank(self) -> int:
        """0 to size - 1; rank 0 alone prints and writes."""

    @property
    def size(self) -> int:
        """How many ranks there are."""

    def told(self, value: Any) -> Any:
        """Return rank 0's value, which JSON can hold."""

    def mean(self, *numbers: float) -> list[float]:
        """Return the averages of numbers over all ranks."""

    def add_up(self, tensor: Tensor) -> None:
        """Put the sums over all ranks in the place of a tensor's values."""

    def in_turn(self, make: Callable[[], Made]) -> Made:
        """Make something that lies on disk: rank 0 first, so that the others find it there."""

    def agree(self, topic: str, values: dict[str, Any]) -> object:
        """Refuse to go on unless all ranks hold the same values."""

    def place(self, model: nn.Module) -> None:
        """Put a model where it is trained, before it gets an optimizer."""

    def attach(self, replica: "Replica") -> None:
        """Let a replica's gradients be averages over all ranks."""

    def share(self, batches: Sequence[Batch]) -> Sequence[Batch]:
        """Return what of the batches of a step this rank computes on."""

    def passing(self, *, last: bool) -> AbstractContextManager[object]:
        """Surround forward and backward of a pass; gradients are averaged in a step's last one."""

    def averaged(self) -> None:
        """Return once the gradients of a step are averages over all ranks."""

    def step(self, number: int) -> None:
        """Begin a step."""

    def save(self, save: Callable[..., Path], run: Path, **what: Any) -> Path:
        """Save a checkpoint as `save(run, **what)` does; see `checkpoint.save_checkpoint`."""

    def load(self, path: Path, replica: "Replica") -> dict[str, Any]:
        """Load a checkpoint into a replica on all ranks; see `checkpoint.load_checkpoint`."""


@dataclass(frozen=True, slots=True)
class OneProcess:
    """One process: nothing is different."""

    rank: int = 0
    size: int = 1

    def told(self, value: Any) -> Any:
        """Return the value."""
        return value

    def mean(self, *numbers: float) -> list[float]:
        """Return the numbers."""
        return list(numbers)

    def add_up(self, tensor: Tensor) -> None:
        """Leave them: there is nothing to add."""

    def in_turn(self, make: Callable[[], Made]) -> Made:
        """Make it."""
        return make()

    def agree(self, topic: str, values: dict[str, Any]) -> None:
        """Agree with oneself."""

    def place(self, model: nn.Module) -> None:
        """Leave the model where it is."""

    def attach(self, replica: "Replica") -> None:
        """Leave the replica as it is."""

    def share(self, batches: Sequence[Batch]) -> Sequence[Batch]:
        """Return all of them."""
        return batches

    def passing(self, *, last: bool) -> AbstractContextManager[object]:
        """Do nothing."""
        return nullcontext()

    def averaged(self) -> None:
        """Do nothing."""

    def step(self, number: int) -> None:
        """Do nothing."""

    def save(self, save: Callable[..., Path], run: Path, **what: Any) -> Path:
        """Save it."""
        return save(run, **what)

    def load(self, path: Path, replica: "Replica") -> dict[str, Any]:
        """Load it."""
        from peerformer.train.checkpoint import load_checkpoint
        from peerformer.train.sharded_checkpoint import consolidate, is_sharded

        return load_checkpoint(consolidate(path) if is_sharded(path) else path, replica)


def share_of(ranks: Ranks, slots: range) -> range:
    """Return the slots of a pass that fall to a rank; all ranks have as many."""
    assert len(slots) % ranks.size == 0, "settings that do not divide are refused at the start"
    each = len(slots) // ranks.size
    return slots[ranks.rank * each : (ranks.rank + 1) * each]


def shared_out(ranks: Ranks, items: Sequence[Made]) -> tuple[list[Made], list[Made]]:
    """Return a rank's own part of a list, and the few left over that every rank takes.

    Every rank gets as many, as a model that is divided among ranks computes on all at once.
    """
    even = len(items) // ranks.size * ranks.size
    return list(items[:even][ranks.rank :: ranks.size]), list(items[even:])


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor without its history; of one that ranks divide, all of it."""
    gather = getattr(tensor, "full_tensor", None)  # a DTensor's
    return tensor.detach() if gather is None else gather().detach()


def own_part(tensor: Tensor) -> Tensor:
    """Return a tensor without its history; of one that ranks divide, what this rank holds."""
    local = getattr(tensor, "to_local", None)  # a DTensor's
    return tensor.detach() if local is None else local().detach()
