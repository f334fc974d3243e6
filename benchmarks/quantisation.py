"""Rounded weights: training with them against rounding afterwards, at equal steps.

One model is trained in float32 and rounded when it is done; others are trained with rounded
weights, from the first step or for the last quarter of the steps. All see the same text in the
same order, and the rate falls to zero: weights between two levels come to rest only then. Held-out
loss in nats a token, mean over seeds.

    python benchmarks/quantisation.py            as in docs/finetuning.md
    python benchmarks/quantisation.py --quick    a few seconds
    python benchmarks/quantisation.py --size nano --steps 1000
"""

import argparse
import tempfile
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from statistics import mean

import torch

from peerformer.config import Config
from peerformer.data.batches import Batches
from peerformer.data.prepare import Prepared, prepare
from peerformer.model.quantise import quantise_layers
from peerformer.model.transformer import Transformer, initialise
from peerformer.settings import resolve
from peerformer.train.evaluate import evaluate
from peerformer.train.optimizer import build_optimizer
from peerformer.train.replica import Replica
from peerformer.train.schedule import learning_rate_scale

KINDS = ("int8", "int4")
WAYS = ("rounded afterwards", "rounded from the start", "rounded in the last quarter")
SMALL = {  # so small that it is trained in a minute
    "model.hidden_size": 64,
    "model.intermediate_size": 192,
    "model.num_layers": 2,
    "model.num_heads": 2,
    "model.num_kv_heads": 1,
    "model.max_positions": 64,
    "training.sequence_length": 64,
    "data.vocab_size": 512,
}


class Course:
    """One way through the steps, which may be left at any step by a copy of itself."""

    def __init__(self, config: Config, prepared: Prepared, seed: int) -> None:
        self.config, self.seed = config, seed
        self.batches = Batches(prepared.train, config.training.sequence_length)
        self.held_out = Batches(prepared.validation, config.training.sequence_length)
        self.byte_lengths_V = prepared.tokenizer.byte_lengths_V()
        self.model = Transformer(replace(config.model, vocab_size=prepared.tokenizer.vocab_size))
        initialise(self.model, seed)
        optimizer = build_optimizer(self.model, config.optimizer)
        self.replica = Replica(self.model, optimizer, clip_norm=config.optimizer.clip_norm)

    def go(self, steps: int) -> "Course":
        """Train up to a step."""
        size = self.config.training.batch_size
        while self.replica.step < steps:
            step = self.replica.step
            self.replica.gradients([self.batches.batch(self.seed, step, batch_size=size)])
            self.replica.apply(learning_rate_scale(step, self.config.training))
        return self

    def rounding(self, kind: str) -> "Course":
        """A copy whose weights are rounded from here on."""
        copy = Course.__new__(Course)
        copy.__dict__ |= self.__dict__
        copy.replica = deepcopy(self.replica)
        assert isinstance(copy.replica.model, Transformer)
        copy.model = copy.replica.model
        quantise_layers(copy.model, kind, "all")
        copy.replica.loss = copy.model.loss
        return copy

    def loss(self) -> float:
        """Loss on held-out text."""
        count = self.config.training.validation_sequences
        found = evaluate(
            self.model, self.held_out, sequences=count, byte_lengths_V=self.byte_lengths_V
        )
        return found.loss_nats_per_token


def losses(
    config: Config, prepared: Prepared, seed: int, kinds: list[str]
) -> dict[tuple[str, str], float]:
    """The loss of float32, and of each kind and way."""
    steps, found = config.training.steps, {}
    first = Course(config, prepared, seed)
    for kind in kinds:
        found[kind, WAYS[1]] = first.rounding(kind).go(steps).loss()
    plain = first.go(steps * 3 // 4)
    for kind in kinds:
        found[kind, WAYS[2]] = plain.rounding(kind).go(steps).loss()
    found["", "float32"] = plain.go(steps).loss()
    for kind in kinds:
        found[kind, WAYS[0]] = plain.rounding(kind).loss()
    return found


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--size", help="a preset; without it a model of 0.1 M parameters")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--final", type=float, default=0.0, help="share of the rate at the end")
    parser.add_argument("--data", default="synthetic:1")
    given = parser.parse_args()
    if given.quick:
        given.steps, given.seeds = 40, 1
    torch.set_num_threads(1)
    overrides = {"data.path": given.data, "training.steps": given.steps}
    overrides["training.final_fraction"] = given.final
    overrides |= {"training.validation_sequences": 128} | ({} if given.size else SMALL)
    config = resolve(size=given.size, overrides=overrides).config
    with tempfile.TemporaryDirectory() as scratch:
        prepared = prepare(config.data, Path(scratch))
        print(f"{given.steps} steps, {given.seeds} seeds, {prepared.description}", flush=True)
        found = [losses(config, prepared, seed, given.kinds) for seed in range(given.seeds)]
    means = {key: mean(one[key] for one in found) for key in found[0]}
    floats = means["", "float32"]
    print(f"{'weights':34} {'loss':>8} {'to float32':>11}\n{'float32':34} {floats:8.4f}")
    for kind in given.kinds:
        for way in WAYS:
            loss = means[kind, way]
            print(f"{f'{kind}, {way}':34} {loss:8.4f} {loss / floats - 1:+11.2%}")


if __name__ == "__main__":
    main()
