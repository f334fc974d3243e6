"""A cluster as one peer of a swarm: rank 0 is the peer, the other ranks share its inner steps.

To the swarm nothing is different: one key, one vote, one contribution a round. Rank 0 runs the node
and holds the only state. Before each inner step it sends every rank the parameters and the step's
sequences; each computes the gradient of its share, and an all-reduce leaves the average on rank 0,
which alone steps. So whatever moves rank 0's model (a round that was agreed, a state that was
fetched, a restart) needs no word to the others, and they need none of the text.

That costs a broadcast of the parameters beside each all-reduce of the gradients: half as much
again, on what is assumed to be the fast network of one site.
"""

import os
import signal
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from peerformer.cluster.group import Group
from peerformer.cluster.launch import Launch
from peerformer.config import Config, ModelConfig, OptimizerConfig
from peerformer.data.batches import Batch
from peerformer.errors import ConfigError, ToldElsewhere
from peerformer.model.transformer import Transformer
from peerformer.train.optimizer import build_optimizer
from peerformer.train.replica import Replica

STOP, STEP, COUNT = 0, 1, 2  # what rank 0 orders
HEADER = 4  # numbers of an order: which, rows and columns of the batch, how many tensors it has
Made = TypeVar("Made")


class OnePeer:
    """What a replica of rank 0 asks when it makes a step; see `train.ranks.Ranks`."""

    rank = 0
    size = 1  # to whoever else uses the replica: it is one peer's

    def __init__(self, group: Group) -> None:
        self._group = group
        self._model: nn.Module | None = None
        self._steps = 0

    def attach_to(self, replica: Replica, config: Config) -> None:
        """Let the other ranks share the steps of a peer's replica.

        Raises:
            ConfigError: if the swarm's batch cannot be divided among the ranks.
        """
        if self._group.config.training.engine == "fsdp":
            raise ConfigError(
                "a peer of a swarm holds its whole model, and fsdp divides it",
                hint="--set training.engine=ddp",
            )
        batch_size = config.training.batch_size
        if batch_size % self._group.size:
            fitting = [str(n) for n in range(1, batch_size + 1) if batch_size % n == 0]
            raise ConfigError(
                f"this swarm's batches of {batch_size} sequences cannot be divided among "
                f"{self._group.size} ranks",
                where="the genesis, which is the same for all peers",
                hint=f"start one of these numbers of ranks: {', '.join(fitting)}",
            )
        self._group.told({"model": asdict(config.model), "optimizer": asdict(config.optimizer)})
        self._group.attach(replica)
        self._model, replica.ranks = replica.model, self

    def share(self, batches: Sequence[Batch]) -> list[Batch]:
        """Order a step of all ranks; returns rank 0's share of each batch."""
        shares = []
        self._steps += 1
        self._group.step(self._steps)
        for batch in batches:
            rows, columns = batch.tokens_BT.shape
            tensors = [batch.tokens_BT, batch.targets_BT]
            if batch.documents_BT is not None:
                tensors.append(batch.documents_BT)
            self._order(STEP, rows, columns, len(tensors))
            for tensor in tensors:
                self._group.engine.broadcast(tensor.contiguous())
            shares.append(_share(self._group, tensors))
        assert self._model is not None
        send_parameters(self._group, self._model)
        return shares

    def stop(self) -> None:
        """Let the other ranks end."""
        if self._model is None:
            self._group.told(None)
        else:
            self._order(STOP, 0, 0, 0)

    def _order(self, *numbers: int) -> None:
        self._group.engine.broadcast(torch.tensor(numbers, dtype=torch.int64))

    # --- as of one process, but for the sums ----------------------------------------------------

    def told(self, value: Any) -> Any:
        """Return the value."""
        return value

    def mean(self, *numbers: float) -> list[float]:
        """Return the averages of numbers over all ranks."""
        return self._group.mean(*numbers)

    def add_up(self, tensor: Tensor) -> None:
        """Put the sums over all ranks in the place of a tensor's values: loads of experts."""
        self._order(COUNT, 0, 0, 0)
        self._group.add_up(tensor)

    def in_turn(self, make: Callable[[], Made]) -> Made:
        """Make it."""
        return make()

    def agree(self, topic: str, values: dict[str, Any]) -> None:
        """Agree with oneself."""

    def place(self, model: nn.Module) -> None:
        """Leave the model where it is."""

    def attach(self, replica: Replica) -> None:
        """Do nothing: `attach_to` did."""

    def passing(self, *, last: bool) -> AbstractContextManager[object]:
        """Surround a pass."""
        return self._group.passing(last=last)

    def averaged(self) -> None:
        """Return once gradients are averages."""
        self._group.averaged()

    def step(self, number: int) -> None:
        """Do nothing: a peer counts rounds."""

    def save(self, save: Callable[..., Path], run: Path, **what: Any) -> Path:
        """Save it."""
        return save(run, **what)

    def load(self, path: Path, replica: Replica) -> dict[str, Any]:
        """Refuse: a peer's state is that of its swarm."""
        raise AssertionError("a peer takes its state from its swarm")


def as_one_peer(
    launch: Launch, config: Callable[[], Config], run: Callable[[OnePeer | None], Made]
) -> Made:
    """Run a peer on rank 0, with all ranks behind it; alone, just run it.

    Args:
        launch: who this process is.
        config: gives engine and backend; the rest is the swarm's.
        run: runs the peer. What it is given is to be attached to the peer's replica.

    Raises:
        ConfigError, ClusterError: as `Group`.
        ToldElsewhere: on the other ranks, when all is over.
    """
    if launch.is_alone:
        return run(None)
    with Group(launch, config(), trains=False) as group:
        if launch.rank == 0:
            peer = OnePeer(group)
            made = run(peer)
            peer.stop()
            return made
        torch.set_num_threads(threads_of(launch))
        serve(group)
    raise ToldElsewhere(0)


def serve(group: Group) -> None:
    """Share the steps of rank 0 until it says that it has ended; on every other rank."""
    for number in (signal.SIGINT, signal.SIGTERM):  # rank 0 hears it too, and says when to end
        signal.signal(number, signal.SIG_IGN)
    recipe = group.told(None)
    if recipe is None:
        return
    model = Transformer(ModelConfig(**recipe["model"]))
    optimizer = build_optimizer(model, OptimizerConfig(**recipe["optimizer"]))  # never stepped
    replica = Replica(model, optimizer, clip_norm=0.0, ranks=group)
    group.attach(replica)
    model.train()
    order, steps = torch.zeros(HEADER, dtype=torch.int64), 0
    while True:
        with group.watch.patience("waiting for rank 0's next step"):
            group.engine.broadcast(order)
        what, rows, columns, count = order.tolist()
        if what == STOP:
            return
        steps += what == STEP
        group.step(steps)
        if what == COUNT:
            model.after_step(group.add_up)  # what it moves is rank 0's again with the next step
            continue
        tensors = [torch.zeros(rows, columns, dtype=torch.int64) for _ in range(count)]
        for tensor in tensors:
            group.engine.broadcast(tensor)
        send_parameters(group, model)
        replica.gradients([_share(group, tensors)])


def _share(group: Group, tensors: list[Tensor]) -> Batch:
    """The rows of a batch's tensors (tokens, targets, perhaps documents) that are this rank's."""
    each = len(tensors[0]) // group.size
    mine = slice(group.rank * each, (group.rank + 1) * each)
    return Batch(*(tensor[mine] for tensor in tensors))


@torch.no_grad()
def send_parameters(group: Group, model: nn.Module) -> None:
    """Make all ranks' parameters rank 0's, in one broadcast."""
    parameters: list[Tensor] = [parameter.detach() for parameter in model.parameters()]
    flat = torch.cat([parameter.reshape(-1) for parameter in parameters])
    group.engine.broadcast(flat)
    if group.rank:
        pieces = flat.split([parameter.numel() for parameter in parameters])
        shaped = [piece.view_as(p) for piece, p in zip(pieces, parameters, strict=True)]
        torch._foreach_copy_(parameters, shaped)


def threads_of(launch: Launch) -> int:
    """Return how many threads a rank may take, where ranks share a host."""
    return max(1, (os.cpu_count() or 1) // launch.local_size)
