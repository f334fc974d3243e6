"""Our data-parallel step against bare PyTorch DDP, and over MPI, on one machine and model.

All make the same steps on the same batches, in turns A B A B in the same processes. *bare* is what
one would write in an afternoon: DDP around the model, forward, backward, clip, AdamW. *ours* is the
step of `peerformer train` with DDP; *mpi* the same over MPI, where mpirun started it.

    torchrun --nproc-per-node 2 benchmarks/all_reduce.py [--rounds 7] [--steps 4] [--quick]
    mpirun -np 2 python benchmarks/all_reduce.py
"""

import argparse
import copy
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from peerformer.cluster.engines import MessagePassing
from peerformer.cluster.group import Group
from peerformer.cluster.rendezvous import mpi_communicator
from peerformer.cluster.training import this_launch
from peerformer.config import Config
from peerformer.data.batches import Batches
from peerformer.data.prepare import prepare
from peerformer.model.transformer import Transformer, initialise
from peerformer.settings import resolve
from peerformer.train.optimizer import build_optimizer
from peerformer.train.ranks import share_of
from peerformer.train.replica import Replica

Step = Callable[[int], object]


def share(config: Config, batches: Batches, group: Group, number: int):
    """This rank's part of a step's batch."""
    size = config.training.batch_size
    return batches.batch(0, number, batch_size=size, slots=share_of(group, range(size)))


def ours(config: Config, shape, batches: Batches, group: Group) -> Step:
    """The step of `peerformer train` on a group."""
    model = Transformer(shape)
    initialise(model, 0)
    optimizer = build_optimizer(model, config.optimizer)
    replica = Replica(model, optimizer, clip_norm=config.optimizer.clip_norm, ranks=group)
    group.attach(replica)

    def step(number: int) -> None:
        replica.gradients([share(config, batches, group, number)])
        replica.apply(1.0)
        group.mean(0.0)  # whether somebody asked to stop

    return step


def bare(config: Config, shape, batches: Batches, group: Group) -> Step:
    """A step of a plain loop around DDP."""
    model = Transformer(shape)
    initialise(model, 0)
    wrapped = nn.parallel.DistributedDataParallel(model)
    settings = config.optimizer
    betas = (settings.beta1, settings.beta2)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=settings.learning_rate, betas=betas, fused=True
    )

    def step(number: int) -> None:
        batch = share(config, batches, group, number)
        optimizer.zero_grad(set_to_none=True)
        logits = wrapped(batch.tokens_BT)
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), batch.targets_BT.flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), settings.clip_norm)
        optimizer.step()
        loss.item()

    return step


def measure(steppers: dict[str, Step], group: Group, rounds: int, steps: int) -> dict[str, float]:
    """Seconds a step of each in turns: the median, and of the ratios to `bare` in each turn."""
    seconds: dict[str, list[float]] = {name: [] for name in steppers}
    for number in range(rounds + 1):
        for name, step in steppers.items():
            group.mean(0.0)  # all ranks begin together
            began = time.perf_counter()
            for index in range(steps):
                step(number * steps + index)
            if number:  # the first turn warms up
                seconds[name].append((time.perf_counter() - began) / steps)
    found = {f"{name}_milliseconds": 1e3 * statistics.median(s) for name, s in seconds.items()}
    for name in steppers:
        pairs = zip(seconds[name], seconds["bare"], strict=True)
        found[f"{name}_over_bare"] = statistics.median(a / b for a, b in pairs)
    return {name: round(value, 3) for name, value in found.items()}


def main() -> None:
    """Run on every rank, print on the first."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--size", default="tiny")
    parser.add_argument("--quick", action="store_true", help="a tiny model, two turns")
    arguments = parser.parse_args()
    size, rounds = ("nano", 2) if arguments.quick else (arguments.size, arguments.rounds)
    overrides = {"data.path": "synthetic:1", "optimizer.name": "adamw", "training.threads": 1}
    config = resolve(size=size, overrides=overrides).config
    torch.set_num_threads(1)
    launch = this_launch()
    if launch.is_alone:
        sys.exit("error: start several ranks with torchrun or mpirun, as the first lines say.")
    with Group(launch, config) as group, tempfile.TemporaryDirectory() as folder:
        place = Path(group.told(folder))
        prepared = group.in_turn(lambda: prepare(config.data, place))
        shape = replace(config.model, vocab_size=prepared.tokenizer.vocab_size)
        batches = Batches(prepared.train, config.training.sequence_length)
        steppers = {
            "ours": ours(config, shape, batches, group),
            "bare": bare(config, shape, batches, group),
        }
        comm = mpi_communicator(launch)
        if comm is not None:
            over_mpi = copy.copy(group)
            over_mpi.engine = MessagePassing(comm, torch.device("cpu"))
            steppers["mpi"] = ours(config, shape, batches, over_mpi)
        found = measure(steppers, group, rounds, arguments.steps)
        if launch.rank == 0:
            print(json.dumps({"ranks": launch.size, "size": size, **found}), flush=True)


if __name__ == "__main__":
    main()
