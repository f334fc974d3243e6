"""What a byte buys: `python benchmarks/loss_against_bytes.py [--steps 400] [--batch 8]`.

Peers learn from Python's own prose (model and text are those of `simulate --replica real`) with
every codec and H local steps a round, without liars, network or votes: only what is trained,
encoded, combined and stepped. Beside them synchronous data parallel: one model, the same optimizer,
the mean gradient of all peers at every step, 4 bytes a parameter sent for it. All see as many
tokens. Prints a table of the loss against it and of how many times fewer bytes a peer sends, or
with --json one object. Scores are left out: nobody lies.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import mean, stdev

import numpy as np
import torch

from peerformer.config import Config
from peerformer.data.batches import Batches
from peerformer.gradients.fixed_point import AgreedState
from peerformer.model.transformer import Transformer, initialise
from peerformer.protocol.identity import hash_of
from peerformer.simulate import texts
from peerformer.simulate.learning import END_OF_TEXT, VOCAB_SIZE, Learning
from peerformer.train.agreed import AgreedReplica, initial_state
from peerformer.train.evaluate import evaluate
from peerformer.train.optimizer import build_optimizer
from peerformer.train.replay import rate_scale
from peerformer.train.replica import Replica

CODECS = ("none", "dense-int8", "dense-int4", "sparse-2bit")
STEPS_A_ROUND = (1, 10, 30, 100)
SEQUENCES = 64


@dataclass(frozen=True, slots=True)
class Size:
    """How much is trained: steps, sequences a step and peer, and peers."""

    steps: int
    batch: int
    peers: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """Bits per byte on held-out text, and the bytes that a peer sent."""

    bits_per_byte: float
    bytes_sent: int


def text_of(config: Config) -> tuple[Batches, Batches]:
    """Return what all train on, and what is held out."""
    train, held_out = texts.documents(texts.PROSE)
    length = config.training.sequence_length
    return Batches(texts.shards(train), length), Batches(texts.shards(held_out), length)


def bits_of(model: Transformer, held_out: Batches) -> float:
    """Return bits per byte on the held-out text."""
    byte_lengths_V = np.ones(VOCAB_SIZE, dtype=np.int32)
    byte_lengths_V[END_OF_TEXT] = 0
    found = evaluate(model, held_out, sequences=SEQUENCES, byte_lengths_V=byte_lengths_V)
    return found.bits_per_byte


def config_of(codec: str, rule: str, inner_steps: int, seed: int, size: Size) -> Config:
    """Return the configuration of a run."""
    config = Learning(codec, rule, inner_steps).config(seed)
    training = replace(config.training, steps=size.steps, batch_size=size.batch)
    return replace(config, training=training)


def run_swarm(config: Config, peers: int) -> Outcome:
    """Train in rounds, each peer on its own windows of the text."""
    train, held_out = text_of(config)
    first = Transformer(config.model)
    initialise(first, config.training.seed)
    state = initial_state(first)

    def replica() -> AgreedReplica:
        copy = AgreedState.from_bytes(state.to_bytes(), len(state.theta_P))
        models = Transformer(config.model), Transformer(config.model)
        return AgreedReplica(config, *models, copy, train, held_out)

    replicas, sent = [replica() for _ in range(peers)], 0
    for number in range(1, config.training.steps // config.swarm.inner_steps + 1):
        blobs = []
        for index, one in enumerate(replicas):
            seed = hash_of("benchmark", number.to_bytes(8, "little"), bytes([index]))
            made = one.train(number, seed, lambda: False)
            if made is not None:
                blobs.append((bytes([index]), made.blob))
        sent += max(len(blob) for _, blob in blobs)
        found = replicas[0].apply(number, blobs, hash_of("draw", number.to_bytes(8, "little")))
        assert found is not None
        after, refused = found
        present = {author for author, _ in blobs} - set(refused)
        for index, one in enumerate(replicas):
            one.move_to(number, after, accepted=bytes([index]) in present)
    model = replicas[0].agreed_model()
    assert isinstance(model, Transformer)
    return Outcome(bits_of(model, held_out), sent)


def run_synchronous(config: Config, peers: int) -> Outcome:
    """Train one model on the mean gradient of all peers at every step."""
    train, held_out = text_of(config)
    model = Transformer(config.model)
    initialise(model, config.training.seed)
    optimizer = build_optimizer(model, config.optimizer)
    replica = Replica(model, optimizer, clip_norm=config.optimizer.clip_norm)
    model.train()
    steps = config.training.steps
    for step in range(steps):
        batches = [
            train.batch(index, step, batch_size=config.training.batch_size)
            for index in range(peers)
        ]
        replica.gradients(batches)
        replica.apply(rate_scale(config, 1, step, steps))
    size = sum(parameter.numel() for parameter in model.parameters())
    return Outcome(bits_of(model, held_out), 4 * size * steps)


def several(run: Callable[[int], Outcome], seeds: int) -> tuple[float, float, int]:
    """Return the mean and the spread of bits per byte over seeds, and the bytes sent."""
    found = [run(seed) for seed in range(seeds)]
    bits = [one.bits_per_byte for one in found]
    return mean(bits), stdev(bits) if seeds > 1 else 0.0, found[0].bytes_sent


def main() -> None:
    """Run all codecs and numbers of steps."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", type=int, default=8)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--batch", type=int, default=8, help="sequences a step and peer")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rules", nargs="+", default=["mean", "robust"])
    parser.add_argument("--codecs", nargs="+", default=CODECS, choices=CODECS)
    parser.add_argument("--steps-a-round", nargs="+", type=int, default=STEPS_A_ROUND)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    size = Size(asked.steps, asked.batch, asked.peers)
    base = several(
        lambda seed: run_synchronous(config_of("none", "mean", 1, seed, size), size.peers),
        asked.seeds,
    )
    rows = [{"rule": "synchronous", "codec": "float32", "H": 1, "bits_per_byte": base[0],
             "spread": base[1], "bytes": base[2], "worse_percent": 0.0, "fewer": 1.0}]  # fmt: skip
    for rule in asked.rules:
        for codec in asked.codecs:
            for inner in (n for n in asked.steps_a_round if n <= size.steps):
                bits, spread, sent = several(
                    lambda seed, c=codec, r=rule, n=inner: run_swarm(
                        config_of(c, r, n, seed, size), size.peers
                    ),
                    asked.seeds,
                )
                worse, fewer = 100 * (bits / base[0] - 1), base[2] / sent
                rows.append({"rule": rule, "codec": codec, "H": inner, "bits_per_byte": bits,
                             "spread": spread, "bytes": sent, "worse_percent": worse,
                             "fewer": fewer})  # fmt: skip
                if not asked.json:
                    line = f"{rule} {codec} H {inner}: {worse:+.2f} %, {fewer:.0f} times fewer"
                    print(line, flush=True)
    if asked.json:
        print(json.dumps(rows))
        return
    print("\n| rule | codec | H | bits per byte | against synchronous | bytes, times fewer |")
    print("|---|---|--:|--:|--:|--:|")
    for row in rows:
        bits = f"{row['bits_per_byte']:.3f} ± {row['spread']:.3f}"
        compared = f"{row['worse_percent']:+.2f} % | {row['fewer']:.0f}"
        print(f"| {row['rule']} | {row['codec']} | {row['H']} | {bits} | {compared} |")


if __name__ == "__main__":
    main()
