"""A model of Hugging Face's `transformers` in a swarm: a tiny Llama, made from a configuration.

    python examples/swarm_transformers.py           # prints a ticket, and waits for two others
    python examples/swarm_transformers.py TICKET    # in two more terminals

In earnest: AutoModelForCausalLM.from_pretrained(...) and a data set. Nothing is downloaded here.
"""

import torch
from one_peer import arguments
from transformers import LlamaConfig, LlamaForCausalLM

import peerformer

TEXT = b"the quick brown fox jumps over the lazy dog, and the dog does not mind. " * 20
LENGTH, BATCH = 32, 8


def model() -> LlamaForCausalLM:
    """A Llama of two layers over bytes."""
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=LENGTH,
    )
    return LlamaForCausalLM(config)


def batches(seed: int):
    """Pieces of the text at random places, without end."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.frombuffer(bytearray(TEXT), dtype=torch.uint8).long()
    while True:
        starts = torch.randint(len(tokens) - LENGTH, (BATCH,), generator=generator)
        yield torch.stack([tokens[start : start + LENGTH] for start in starts])


def main() -> None:
    """Found or join, train, and tell what was agreed on."""
    told = arguments(__doc__)
    llama = model()
    mine = {"model": llama, "optimizer": torch.optim.AdamW(llama.parameters(), 5e-3)}
    if told.ticket:
        swarm = peerformer.Swarm.join(told.ticket, directory=told.directory, **mine)
    else:
        swarm = peerformer.Swarm.found(told.directory, settings={"inner_steps": 3}, **mine)
        print("ticket", swarm.invite(), flush=True)
    with swarm:
        until = swarm.wait_for(told.peers) + told.rounds
        for tokens in batches(told.seed):
            loss = llama(input_ids=tokens, labels=tokens).loss
            loss.backward()
            if swarm.step(loss):
                print(f"round {swarm.agreed_round}   loss {loss.item():.4f}", flush=True)
            if swarm.agreed_round >= until:
                break
        swarm.adopt()
        print("state root", swarm.state_root, flush=True)


if __name__ == "__main__":
    main()
