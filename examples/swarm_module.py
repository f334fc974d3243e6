"""Any torch module, trained by a swarm: one terminal founds it, others join by its ticket.

    python examples/swarm_module.py              # prints a ticket, and waits for two others
    python examples/swarm_module.py TICKET       # in two more terminals

All print the same state root at the end. What is particular to Peerformer is in `main`.
"""

import torch
from one_peer import arguments
from torch import Tensor, nn

import peerformer


class Net(nn.Module):
    """A module with a loss of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 1))

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """How far the net is from what it should say."""
        x, y = batch
        return (self.layers(x) - y).pow(2).mean()


def batches(seed: int):
    """Points of a surface: this peer's own data, without end."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        x = 2 * torch.rand(64, 2, generator=generator) - 1
        yield x, torch.sin(3 * x[:, :1]) * x[:, 1:]


def main() -> None:
    """Found or join, train, and tell what was agreed on."""
    told = arguments(__doc__)
    module = Net()
    mine = {"model": module, "optimizer": torch.optim.AdamW(module.parameters(), 1e-2)}
    if told.ticket:
        swarm = peerformer.Swarm.join(told.ticket, directory=told.directory, **mine)
    else:
        swarm = peerformer.Swarm.found(told.directory, settings={"inner_steps": 5}, **mine)
        print("ticket", swarm.invite(), flush=True)

    with swarm:
        first = swarm.wait_for(told.peers)
        for batch in batches(told.seed):
            loss = module.loss(batch)
            loss.backward()
            if swarm.step(loss):  # every fifth contributes, and adopts what was agreed
                print(f"round {swarm.agreed_round}   loss {loss.item():.4f}", flush=True)
            if swarm.agreed_round >= first + told.rounds:
                break
        swarm.adopt()
        print("state root", swarm.state_root, flush=True)


if __name__ == "__main__":
    main()
