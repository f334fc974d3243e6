"""The primitive alone: gradients in, the same gradients out on every honest peer, certified.

    python examples/coordinate.py                # prints a ticket, and waits for two others
    python examples/coordinate.py TICKET         # in two more terminals

Who starts from the same parameters and applies what is agreed on, and nothing else, holds the same
parameters after every step, to the bit. All print the same digest of them at the end.
"""

from hashlib import blake2b

import torch
from one_peer import arguments
from torch import nn

import peerformer


def net() -> nn.Module:
    """Zeros and a fixed pattern: what all begin with must be the same."""
    model = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.linspace(-0.5, 0.5, parameter.numel()).view(parameter.shape))
    return model


def main() -> None:
    """Found or join, train step by step, and tell what came of it."""
    told = arguments(__doc__)
    model, generator = net(), torch.Generator().manual_seed(told.seed)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    where = told.directory
    if told.ticket:
        coordinator = peerformer.Coordinator.join(told.ticket, like=model, directory=where)
    else:
        coordinator = peerformer.Coordinator.found(where, like=model)
        print("ticket", coordinator.invite(), flush=True)

    with coordinator:
        coordinator.wait_for(told.peers)
        for _ in range(told.rounds):
            x = torch.randn(32, 4, generator=generator)
            optimizer.zero_grad()
            loss = (model(x) - torch.sin(x.sum(1, keepdim=True))).pow(2).mean()
            loss.backward()
            local_gradients = {name: p.grad for name, p in model.named_parameters()}
            try:
                consensus_gradients = coordinator.coordinate_training_step(local_gradients)
            except peerformer.NoQuorum as error:  # nothing was applied: stop, or try again
                raise SystemExit(str(error)) from error
            for name, gradient in consensus_gradients.items():
                model.get_parameter(name).grad = gradient
            optimizer.step()
            signers = len(consensus_gradients.certificate.certificate.signatures)
            print(f"round {consensus_gradients.round}   loss {loss.item():.4f}   {signers} signed",
                  flush=True)  # fmt: skip
        data = b"".join(p.detach().numpy().tobytes() for p in model.parameters())
        print("state root", coordinator.state_root, flush=True)
        print("parameters", blake2b(data).hexdigest()[:32], flush=True)


if __name__ == "__main__":
    main()
