"""A small convolutional net on made images: stripes that lie, stand or slant.

    python examples/swarm_cnn.py                 # prints a ticket, and waits for two others
    python examples/swarm_cnn.py TICKET          # in two more terminals

Its batch normalisation keeps running statistics. They are buffers: each peer's own, not agreed on.
Each peer scores what others contribute on images that are the same for all.
"""

import torch
from one_peer import arguments
from torch import Tensor, nn
from torch.nn import functional as F

import peerformer

SIZE = 16


def net() -> nn.Module:
    """Two convolutions, normalised, pooled, and a classifier of four directions."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(16, 4),
    )  # fmt: skip


def images(generator: torch.Generator, count: int = 32) -> tuple[Tensor, Tensor]:
    """Noisy stripes, and in which of four directions they run."""
    directions = torch.randint(4, (count,), generator=generator)
    across, down = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    ways = torch.stack([across, down, across + down, across - down]).float()
    stripes = torch.sin(1.5 * ways[directions] + torch.rand(count, 1, 1, generator=generator))
    return (stripes + torch.randn(stripes.shape, generator=generator)).unsqueeze(1), directions


def score(model: nn.Module) -> float:
    """The loss on held-out images: the same for all peers, as their seed is."""
    x, y = images(torch.Generator().manual_seed(0), 64)
    return float(F.cross_entropy(model(x), y))


def main() -> None:
    """Found or join, train, and tell what was agreed on."""
    told = arguments(__doc__)
    model, generator = net(), torch.Generator().manual_seed(told.seed)
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    mine = {"model": model, "optimizer": optimizer, "score": score}
    if told.ticket:
        swarm = peerformer.Swarm.join(told.ticket, directory=told.directory, **mine)
    else:
        settings = {"inner_steps": 4, "harm_micronats": 20_000}
        swarm = peerformer.Swarm.found(told.directory, settings=settings, **mine)
        print("ticket", swarm.invite(), flush=True)
    with swarm:
        until = swarm.wait_for(told.peers) + told.rounds
        while swarm.agreed_round < until:
            x, y = images(generator)
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            if swarm.step(loss):
                print(f"round {swarm.agreed_round}   loss {loss.item():.4f}", flush=True)
        swarm.adopt()
        print("state root", swarm.state_root, flush=True)


if __name__ == "__main__":
    main()
