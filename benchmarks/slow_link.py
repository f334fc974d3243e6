"""Train over slow lines: how much of the time is spent training, and how much sooner it is done.

Eight real peers, each in a network namespace behind a line of 50 Mbit/s up and down and 50 ms
each way (`slow_network.py`), with `sparse-2bit` and staleness 1. Beside it PyTorch's
DistributedDataParallel over Gloo: the same model, text, batches and optimizer on the same lines.

    utilisation      the share of the rounds' time that is spent in training steps
    time to loss     until held-out loss is what the swarm's last state has. DDP's loss after so
                     many steps is that of one process with the eight batches of a step, so its
                     steps are counted there (best of three learning rates) and timed on the lines

Eight peers on two cores cannot compute like eight machines. So a step is made to take the same
constant time everywhere (`step_seconds`, in the output): it computes for a part of that and
sleeps for the rest. And what is not a step (checks, aggregation, TLS) must not wait for seven
others: time is stretched. With `--stretch 4` steps and delays last four times as long and lines
carry a quarter, so that each peer has a core to itself, and all times are told divided by four.
The protocol's own waits are not stretched: in proportion they are shorter here. Disks are shared
too: `--keep /dev/shm/NAME` runs it in memory.

    python benchmarks/slow_link.py [--quick] [--rounds 12] [--json]
"""

import importlib.util
import multiprocessing
import os
import sys
import time
from dataclasses import dataclass, replace
from datetime import datetime
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from slow_network import SlowNetwork, need_namespaces
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from trial_records import compare_chains
from trial_swarm import (
    Folder,
    SlowSteps,
    TrialSwarm,
    arguments,
    enter_namespace,
    note,
    report,
)

from peerformer import events
from peerformer.config import Config
from peerformer.data.batches import Batches
from peerformer.data.shards import ShardSet, open_shards
from peerformer.data.tokenizer import Tokenizer
from peerformer.gradients.fixed_point import AgreedState, to_float
from peerformer.model.transformer import Transformer
from peerformer.node.directory import SwarmDirectory
from peerformer.settings import resolve
from peerformer.train.evaluate import evaluate
from peerformer.train.optimizer import build_optimizer
from peerformer.train.recipe import recipe_config
from peerformer.train.replica import Replica
from peerformer.train.schedule import learning_rate_scale

PEERS = 8
MEGABITS, DELAY_SECONDS = 50.0, 0.05
UTILISATION_MIN = 0.95
RATIO_AIMED = 20.0
RATE_FACTORS = (1.0, 2.0, 4.0)  # of the learning rate, for DDP's batch that is eight times as large
DDP_STEPS_MAX = 4_000
EVALUATED_EVERY = 10
HELD_OUT_SEQUENCES = 64
DDP_SECONDS_MAX = 600.0
STEADY_FROM = 3  # the first two rounds wait as long as they would for slow peers


@dataclass(frozen=True, slots=True)
class Size:
    """How large a trial is."""

    width: int
    layers: int
    inner_steps: int
    step_seconds: float
    rounds: int
    ddp_steps_timed: int
    stretch: float

    @property
    def slept_seconds(self) -> float:
        """How long a step lasts here."""
        return self.step_seconds * self.stretch

    def config(self) -> Config:
        """Return the swarm's settings."""
        return resolve(
            size="nano",
            overrides={
                "model.hidden_size": self.width,
                "model.intermediate_size": 3 * self.width,
                "model.num_layers": self.layers,
                "model.num_heads": 4,
                "model.num_kv_heads": 4,
                "model.head_dim": self.width // 4,
                "model.max_positions": 64,
                "data.path": "synthetic:1",
                "data.vocab_size": 512,
                "training.sequence_length": 64,
                "training.batch_size": 1,
                "training.dtype": "float32",
                "training.schedule": "constant",
                "optimizer.name": "adamw",
                "swarm.peers": PEERS,
                "swarm.inner_steps": self.inner_steps,
                "swarm.codec": "sparse-2bit",
                "swarm.staleness": 1,
            },
        ).config


QUICK = Size(128, 2, 20, 0.2, 5, 3, 1.0)
FULL = Size(256, 4, 30, 0.25, 40, 12, 4.0)
UTILISATION_MIN_QUICK = 0.5  # five rounds of four seconds, in which checks wait for each other


# --- the swarm ------------------------------------------------------------------------------------


def run_swarm(directory: Path, network: SlowNetwork, size: Size) -> tuple[TrialSwarm, int]:
    """Train for some rounds on slow lines; returns the stopped swarm and the bytes of it all."""
    trial = TrialSwarm.found(directory / "swarm", size.config())
    network.place(trial)
    for name in trial.names:
        trial.place(name, attach=SlowSteps(size.slept_seconds))
    try:
        trial.start(*trial.names)
        network.counted()
        allowed = 120 + 4 * size.rounds * size.inner_steps * size.slept_seconds
        if not trial.reach(size.rounds, seconds=allowed):
            raise TimeoutError(f"the swarm stands at {trial.rounds()}")
        sent, _, late_seconds = network.counted()
        note(f"rounds {trial.rounds()}; the router was {1e3 * late_seconds:.0f} ms late at worst")
    finally:
        trial.stop()
    return trial, sum(sent)


def used(trial: TrialSwarm, rounds: int, stretch: float) -> dict[str, float]:
    """Return where the time of the steady rounds went, over all peers."""
    decided = [
        event
        for name in trial.names
        for event in trial.events_of(name, events.RoundCommitted)
        if STEADY_FROM <= event.round <= rounds
    ]
    seconds, count = sum(event.seconds for event in decided), len(decided)
    checking = sum(event.checking_seconds for event in decided) / count
    voting = sum(event.voting_seconds for event in decided) / count
    return {
        "utilisation": round(sum(event.training_seconds for event in decided) / seconds, 4),
        "round_seconds": round(seconds / count / stretch, 2),
        "contributions_accepted": round(sum(event.accepted for event in decided) / count, 2),
        "checking_seconds": round(checking / stretch, 2),
        "voting_seconds": round(voting / stretch, 2),
    }


def seconds_until(trial: TrialSwarm, number: int) -> float:
    """Return how long it took from the start of the last peer until half of them had a round."""
    started = max(_at(trial.events_of(name, events.NodeStarted)[0]) for name in trial.names)
    decided = sorted(
        _at(event)
        for name in trial.names
        for event in trial.events_of(name, events.RoundCommitted)
        if event.round == number
    )
    return decided[len(decided) // 2] - started


def _at(event: Any) -> float:
    return datetime.fromisoformat(event.time).timestamp()


# --- loss -----------------------------------------------------------------------------------------


class Text:
    """The swarm's model, text and first state in this process: to score, and to train as DDP."""

    def __init__(self, directory: Path) -> None:
        swarm = SwarmDirectory(directory)
        self.config = recipe_config(swarm.genesis().recipe, threads=1, data=None)
        length = self.config.training.sequence_length
        held_out = ShardSet.from_bytes(swarm.validation.read_bytes())
        self.held_out = Batches(held_out, length)
        self.text = Batches(open_shards(swarm.path / "data" / "train", verify=False), length)
        self.lengths_V = Tokenizer.from_bytes(swarm.tokenizer.read_bytes()).byte_lengths_V()
        self.model = Transformer(self.config.model)
        self.parameters = sum(parameter.numel() for parameter in self.model.parameters())
        self.first = swarm.first_state.read_bytes()

    def load(self, state: bytes) -> None:
        """Put an agreed state into the model."""
        theta_P = to_float(AgreedState.from_bytes(state, self.parameters).theta_P)
        named = list(self.model.parameters())
        pieces = theta_P.split([parameter.numel() for parameter in named])
        with torch.no_grad():
            for parameter, piece in zip(named, pieces, strict=True):
                parameter.copy_(piece.view_as(parameter))

    def loss(self) -> float:
        """Return the held-out loss of what is in the model, in nats a token."""
        found = evaluate(
            self.model,
            self.held_out,
            sequences=HELD_OUT_SEQUENCES,
            byte_lengths_V=self.lengths_V,
        )
        self.model.train()
        return found.loss_nats_per_token

    def replica(self, rate_factor: float) -> Replica:
        """Return the model with an optimizer at its beginning."""
        self.load(self.first)
        settings = self.config.optimizer
        settings = replace(settings, learning_rate=rate_factor * settings.learning_rate)
        optimizer = build_optimizer(self.model, settings)
        return Replica(self.model, optimizer, clip_norm=settings.clip_norm)

    def steps_until(self, loss: float, rate_factor: float, steps_max: int) -> int | None:
        """Return after how many steps on the batches of all peers the loss is reached."""
        training = self.config.training
        replica = self.replica(rate_factor)
        for step in range(1, steps_max + 1):
            batch = self.text.batch(training.seed, step, batch_size=PEERS * training.batch_size)
            replica.gradients([batch])
            replica.apply(learning_rate_scale(step, training))
            if step % EVALUATED_EVERY == 0 and self.loss() <= loss:
                return step
        return None


# --- DDP ------------------------------------------------------------------------------------------


def ddp_worker(
    rank: int, network: tuple[list[str], list[str]], swarm: Path, size: Size, control: Connection
) -> None:
    """Be one rank: train some steps over the lines and tell how long each took."""
    enter_namespace(network[0][rank])
    os.environ.update(GLOO_SOCKET_IFNAME="tun0", MASTER_ADDR=network[1][0], MASTER_PORT="8889")
    torch.set_num_threads(1)
    text = Text(swarm)
    training, replica = text.config.training, text.replica(1.0)
    batch = text.text.batch(1, rank, batch_size=training.batch_size)

    def step(loss_of: Any) -> None:
        replica.optimizer.zero_grad()
        loss_of(batch.tokens_BT, batch.targets_BT).backward()
        replica.apply(1.0)

    for _ in range(3):  # what a step computes, without the others; the first ones warm up
        began = time.thread_time()
        step(text.model.loss)
        computes = time.thread_time() - began
    dist.init_process_group("gloo", rank=rank, world_size=PEERS)
    together = DistributedDataParallel(Loss(text.model))
    took = []
    for _ in range(size.ddp_steps_timed + 1):
        began = time.monotonic()
        time.sleep(max(0.0, size.slept_seconds - computes))
        step(together)
        took.append(time.monotonic() - began)
    control.send(took[1:])  # the first one also connects the ranks
    control.poll(None)  # for others of the ranks are not done yet: until all are killed


class Loss(torch.nn.Module):
    """A model whose `forward` is its loss, as DDP wants it."""

    def __init__(self, model: Transformer) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
        """Return the loss."""
        return self.model.loss(tokens_BT, targets_BT)


def ddp_step_seconds(swarm: Path, network: SlowNetwork, size: Size) -> float:
    """Return the median seconds of a step of DDP over the lines."""
    context = multiprocessing.get_context("forkserver")
    ours, workers = [], []
    for rank in range(PEERS):
        end, theirs = context.Pipe()
        places = (network.names, network.addresses)
        arguments = (rank, places, swarm, size, theirs)
        workers.append(context.Process(target=ddp_worker, args=arguments, daemon=True))
        workers[-1].start()
        theirs.close()
        ours.append(end)
    try:
        if not ours[0].poll(DDP_SECONDS_MAX):
            raise TimeoutError("DDP did not train")
        return float(median(ours[0].recv())) / size.stretch
    finally:
        for worker in workers:
            worker.kill()
            worker.join()


# --- all of it ------------------------------------------------------------------------------------


def run(directory: Path, network: SlowNetwork, size: Size) -> dict[str, Any]:
    """Run the swarm and DDP on the same lines; returns the figures."""
    trial, sent_bytes = run_swarm(directory, network, size)
    text, decided = Text(trial.swarm.path), compare_chains(trial, trial.names)
    newest = max(trial.swarm.peer(trial.names[0]).states.glob("*.state"))
    text.load(newest.read_bytes())
    number, loss = int(newest.stem), text.loss()
    ours = seconds_until(trial, number) / size.stretch
    note(f"the swarm: loss {loss:.4f} after {number} rounds and {ours:.0f} s; now DDP")
    ddp_seconds = ddp_step_seconds(trial.swarm.path, network, size)
    note(f"DDP: {ddp_seconds:.2f} s a step; now how many it needs")
    needed = {factor: text.steps_until(loss, factor, DDP_STEPS_MAX) for factor in RATE_FACTORS}
    best = min((steps for steps in needed.values() if steps), default=DDP_STEPS_MAX)
    text.load(text.first)
    swarm_steps = number * size.inner_steps
    return {
        "peers": PEERS,
        "megabits": MEGABITS,
        "delay_seconds": DELAY_SECONDS,
        "parameters": text.parameters,
        "step_seconds": size.step_seconds,
        "stretch": size.stretch,
        "inner_steps": size.inner_steps,
        **used(trial, number, size.stretch),
        "rounds": number,
        "forks": len(decided.forks),
        "loss_first": round(text.loss(), 4),
        "loss": round(loss, 4),
        "seconds": round(ours, 1),
        "bytes_sent_a_peer_and_round": round(sent_bytes / PEERS / max(1, number)),
        "ddp_step_seconds": round(ddp_seconds, 3),
        "ddp_steps": best,
        "ddp_steps_by_rate_factor": {str(factor): steps for factor, steps in needed.items()},
        "ddp_seconds": round(best * ddp_seconds, 1),
        "steps_of_a_peer": swarm_steps,
        "sooner_by": round(best * ddp_seconds / ours, 1),
        "sooner_by_aimed_at": RATIO_AIMED,
        "hivemind": hivemind_here(),
        "unhandled_exceptions": len(trial.faults_in_logs()),
    }


def hivemind_here() -> str:
    """Say whether hivemind could have run beside it."""
    found = importlib.util.find_spec("hivemind")
    return "not installed here" if found is None else "installed, not compared"


def main() -> int:
    """Run and report."""
    parser = arguments(__doc__)
    parser.add_argument("--rounds", type=int, help=f"{FULL.rounds}; with --quick {QUICK.rounds}")
    parser.add_argument("--stretch", type=float, help=f"{FULL.stretch}; --quick {QUICK.stretch}")
    given = parser.parse_args()
    need_namespaces()
    size = QUICK if given.quick else FULL
    size = replace(size, rounds=given.rounds or size.rounds, stretch=given.stretch or size.stretch)
    torch.set_num_threads(1)
    lines = SlowNetwork(
        PEERS, megabits=MEGABITS / size.stretch, delay_seconds=DELAY_SECONDS * size.stretch
    )
    with Folder(given.keep) as directory, lines as network:
        found = run(directory, network, size)
    needed = UTILISATION_MIN_QUICK if given.quick else UTILISATION_MIN
    found["utilisation_needed"] = needed
    passed = found["utilisation"] >= needed and (given.quick or found["sooner_by"] > 1)
    passed = passed and not found["forks"] and not found["unhandled_exceptions"]
    return report(found, passed=passed, as_json=given.json)


if __name__ == "__main__":
    sys.exit(main())
