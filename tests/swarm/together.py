"""A few peers of one swarm in this process, each with a node of its own, over real sockets."""

import contextlib
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

import peerformer
from peerformer.errors import NoQuorum
from peerformer.swarm.membership import Membership

SECONDS_MAX = 30.0  # a wait as long as this is a failure
INPUTS, WIDTH, BATCH = 6, 8, 16
TRUTH = torch.linspace(-1.0, 1.0, INPUTS)

Peer = TypeVar("Peer", bound=Membership)
Answer = TypeVar("Answer")


class Net(nn.Module):
    """A small net with a normalisation, so that it has buffers."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.first = nn.Linear(INPUTS, width)
        self.norm = nn.BatchNorm1d(width)
        self.last = nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.norm(self.first(x))))


def net(seed: int = 0, **more: int) -> Net:
    torch.manual_seed(seed)
    return Net(**more)


def batch(seed: int) -> tuple[Tensor, Tensor]:
    x = torch.randn(BATCH, INPUTS, generator=torch.Generator().manual_seed(seed))
    return x, torch.sin(x @ TRUTH).unsqueeze(1)


def loss_of(model: nn.Module, seed: int) -> Tensor:
    x, y = batch(seed)
    return (model(x) - y).pow(2).mean()


def sgd(model: nn.Module, rate: float = 0.05) -> torch.optim.Optimizer:
    return torch.optim.SGD([p for p in model.parameters() if p.requires_grad], rate)


def bits(model: nn.Module) -> bytes:
    """The parameters' bytes."""
    return b"".join(p.detach().numpy().tobytes() for p in model.parameters())


def all_at_once(works: Sequence[Callable[[], Answer]]) -> list[Answer]:
    """Do several works on threads of their own; the first failure is raised."""
    with ThreadPoolExecutor(len(works)) as pool:
        return [future.result() for future in [pool.submit(work) for work in works]]


def swarms(path: Path, count: int, make: Callable[[int], nn.Module] = net, **more: Any) -> list:
    """Found a swarm and let others join; all are voters. `own` is a list of each one's options."""
    own = more.pop("own", [{}] * count)
    settings = {"inner_steps": 2, **more}
    models = [make(index) for index in range(count)]
    founded = peerformer.Swarm.found(
        path / "0",
        model=models[0],
        optimizer=sgd(models[0]),
        settings=settings,
        timeout_seconds=SECONDS_MAX,
        **own[0],
    )
    return _joined(
        founded,
        [
            lambda ticket, i=index: peerformer.Swarm.join(
                ticket,
                model=models[i],
                optimizer=sgd(models[i]),
                directory=path / str(i),
                timeout_seconds=SECONDS_MAX,
                **own[i],
            )
            for index in range(1, count)
        ],
    )


def coordinators(path: Path, count: int, like: Any, **more: Any) -> list:
    """Found a swarm that agrees on gradients, and let others join; all are voters."""
    own = more.pop("own", [{}] * count)
    founded = peerformer.Coordinator.found(
        path / "0", like=like, settings=more, timeout_seconds=SECONDS_MAX, **own[0]
    )
    return _joined(
        founded,
        [
            lambda ticket, i=index: peerformer.Coordinator.join(
                ticket, like=like, directory=path / str(i), timeout_seconds=SECONDS_MAX, **own[i]
            )
            for index in range(1, count)
        ],
    )


def _joined(founded: Peer, joins: Sequence[Callable[[str], Peer]]) -> list[Peer]:
    peers = [founded]
    try:
        if joins:
            ticket = founded.invite()
            peers += all_at_once([lambda join=join: join(ticket) for join in joins])
            all_at_once([lambda peer=peer: peer.wait_for(len(peers)) for peer in peers])
    except BaseException:
        close(peers)
        raise
    return peers


def close(peers: Sequence[Membership]) -> None:
    """Stop all nodes, whatever else went wrong."""
    all_at_once([peer.close for peer in peers])


def pass_rounds(peers: Sequence[Membership], until: int) -> None:
    """Let empty rounds go by, so that nobody is waited for as a newcomer."""

    def idle(peer: Membership) -> None:
        with contextlib.suppress(NoQuorum):
            peer.wait_for(len(peers) + 1, timeout_seconds=0.3)

    while min(peer.agreed_round for peer in peers) < until:
        all_at_once([lambda peer=peer: idle(peer) for peer in peers])


def settled(peers: Sequence[Membership]) -> str:
    """Wait until all hold the outcome of the same round; returns its state root."""
    deadline = time.monotonic() + SECONDS_MAX
    while True:
        seen = {(peer.agreed_round, peer.state_root) for peer in peers}
        if len(seen) == 1:
            return seen.pop()[1]
        assert time.monotonic() < deadline, seen
        time.sleep(0.05)


def train(swarm: peerformer.Swarm, until: int, seed: int) -> list[float]:
    """Train to an agreed round on data of one's own; returns the losses."""
    losses = []
    while swarm.agreed_round < until:
        loss = loss_of(swarm.model, seed * 1_000 + len(losses))
        loss.backward()
        swarm.step(loss)
        losses.append(float(loss.detach()))
    return losses
