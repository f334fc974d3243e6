"""An adapter learned by a swarm: the base is frozen and the same for all, the adapter agreed on.

    python examples/swarm_lora.py                # prints a ticket, and waits for two others
    python examples/swarm_lora.py TICKET         # in two more terminals

Only the adapter crosses the network. A peer with another base is refused by the first parameter
that differs. In earnest the base comes from `peerformer.load_model`, or `peft` adapts another's.
"""

from hashlib import blake2b

import torch
from one_peer import arguments

import peerformer
from peerformer.config import LoraConfig, ModelConfig
from peerformer.model.lora import add_adapters
from peerformer.model.transformer import Transformer, initialise

LENGTH, BATCH = 32, 8
SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_layers": 2, "num_heads": 4}


def adapted() -> Transformer:
    """A base that all have alike, frozen, with an adapter beside every matrix."""
    config = ModelConfig(vocab_size=64, num_kv_heads=2, head_dim=8, max_positions=LENGTH, **SHAPE)
    model = Transformer(config)
    initialise(model, seed=1)
    model.requires_grad_(False)
    add_adapters(model, LoraConfig(rank=4, alpha=16.0), seed=2)
    return model


def base_digest(model: Transformer) -> str:
    """A hash of all that is frozen."""
    frozen = [p for p in model.parameters() if not p.requires_grad]
    return blake2b(b"".join(p.detach().numpy().tobytes() for p in frozen)).hexdigest()[:16]


def main() -> None:
    """Found or join, train, and tell what was agreed on."""
    told = arguments(__doc__)
    model, generator = adapted(), torch.Generator().manual_seed(told.seed)
    trained = [p for p in model.parameters() if p.requires_grad]
    before = base_digest(model)
    mine = {"model": model, "optimizer": torch.optim.AdamW(trained, 1e-2)}
    if told.ticket:
        swarm = peerformer.Swarm.join(told.ticket, directory=told.directory, **mine)
    else:
        swarm = peerformer.Swarm.found(told.directory, settings={"inner_steps": 3}, **mine)
        print("ticket", swarm.invite(), flush=True)
    with swarm:
        until = swarm.wait_for(told.peers) + told.rounds
        while swarm.agreed_round < until:
            starts = torch.randint(64, (BATCH, 1), generator=generator)
            tokens = (starts + 3 * torch.arange(LENGTH + 1)) % 64  # it learns to count by threes
            loss = model.loss(tokens[:, :-1], tokens[:, 1:])
            loss.backward()
            if swarm.step(loss):
                print(f"round {swarm.agreed_round}   loss {loss.item():.4f}", flush=True)
        swarm.adopt()
        assert base_digest(model) == before
        print(f"{sum(p.numel() for p in trained)} of {sum(p.numel() for p in model.parameters())}"
              " parameters agreed on", flush=True)  # fmt: skip
        print("state root", swarm.state_root, flush=True)


if __name__ == "__main__":
    main()
