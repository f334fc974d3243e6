"""What else could train over slow lines, beside which `slow_link.py` runs: DDP and hivemind.

All have the swarm's model, text, first state, optimizer and constant time a step. DDP averages the
gradients of every step. hivemind (`pip install hivemind`, not a dependency) trains with local
updates and averages parameters in the background, as float16, each time that all together have made
as many steps as a round of the swarm has: of its settings the ones for slow lines.
"""

import contextlib
import importlib
import importlib.util
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import count
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from slow_network import PORT, SlowNetwork
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from trial_swarm import enter_namespace

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
RATE_FACTORS = (1.0, 2.0, 4.0)  # of the learning rate, for DDP's batch that is eight times as large
DDP_STEPS_MAX = 4_000
EVALUATED_EVERY, DDP_EVALUATED_EVERY = 10, 2  # steps: of DDP each costs seconds
HELD_OUT_SEQUENCES = 64
DDP_STEP_SECONDS_MAX = 60.0
HIVEMIND_TIMES_MAX = 2.0  # of the swarm's time
READY_SECONDS_MAX = 300.0
MATCHMAKING_SECONDS = 3.0

Places = tuple[list[str], list[str]]  # namespaces of the hosts, and their addresses


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
                "data.path": str(Path(__file__).parents[1] / "docs"),
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
            if step % DDP_EVALUATED_EVERY == 0 and self.loss() <= loss:
                return step
        return None


# --- DDP ------------------------------------------------------------------------------------------


def ddp_worker(rank: int, network: Places, swarm: Path, size: Size, control: Connection) -> None:
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

    computes = seconds_of(lambda: step(text.model.loss))
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


def seconds_of(step: Callable[[], None]) -> float:
    """Return what a step computes, without the others; the first ones warm up."""
    for _ in range(3):
        began = time.thread_time()
        step()
    return time.thread_time() - began


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
        if not ours[0].poll(DDP_STEP_SECONDS_MAX * size.stretch * (size.ddp_steps_timed + 1)):
            raise TimeoutError("DDP did not train")
        return float(median(ours[0].recv())) / size.stretch
    finally:
        for worker in workers:
            worker.kill()
            worker.join()


# --- hivemind -------------------------------------------------------------------------------------


def hivemind_is_here() -> bool:
    """Tell whether hivemind can run beside the swarm."""
    return importlib.util.find_spec("hivemind") is not None


def hivemind_worker(
    rank: int, network: Places, swarm: Path, size: Size, control: Connection
) -> None:
    """Be one peer: train until killed; the first one tells seconds and loss now and then."""
    os.setsid()  # with all that hivemind starts, which it forks
    multiprocessing.set_start_method("fork", force=True)
    os.environ["HIVEMIND_LOGLEVEL"] = "ERROR"
    enter_namespace(network[0][rank])
    hivemind: Any = importlib.import_module("hivemind")
    torch.set_num_threads(1)
    text = Text(swarm)
    training = text.config.training

    def step(number: int, optimizer: Any) -> None:
        batch = text.text.batch(rank, number, batch_size=training.batch_size)
        optimizer.zero_grad()
        text.model.loss(batch.tokens_BT, batch.targets_BT).backward()
        torch.nn.utils.clip_grad_norm_(text.model.parameters(), text.config.optimizer.clip_norm)
        optimizer.step()

    warm_up = plain_adamw(text)
    computes = seconds_of(lambda: step(0, warm_up))
    text.load(text.first)
    address = f"/ip4/{network[1][rank]}/tcp/{PORT}"
    known = control.recv()
    dht = hivemind.DHT(start=True, host_maddrs=[address], initial_peers=known)
    optimizer = hivemind.Optimizer(
        dht=dht,
        run_id="slow",
        batch_size_per_step=training.batch_size,
        target_batch_size=PEERS * size.inner_steps * training.batch_size,
        optimizer=plain_adamw(text),
        use_local_updates=True,
        delay_state_averaging=True,
        state_averaging_compression=hivemind.compression.Float16Compression(),
        matchmaking_time=MATCHMAKING_SECONDS * size.stretch,
        averaging_timeout=60.0 * size.stretch,
    )
    control.send([str(one) for one in dht.get_visible_maddrs()])
    control.recv()  # all are there
    began, looking = time.monotonic(), 0.0
    for number in count(1):
        time.sleep(max(0.0, size.slept_seconds - computes))
        step(number, optimizer)
        if rank == 0 and number % EVALUATED_EVERY == 0:
            looked = time.monotonic()
            control.send((looked - began - looking, text.loss()))
            looking += time.monotonic() - looked


def plain_adamw(text: Text) -> torch.optim.Optimizer:
    """Return PyTorch's optimizer with the settings of the swarm's."""
    settings = text.config.optimizer
    return torch.optim.AdamW(
        text.model.parameters(),
        lr=settings.learning_rate,
        betas=(settings.beta1, settings.beta2),
        eps=settings.epsilon,
        weight_decay=settings.weight_decay,
    )


def hivemind_until(
    loss: float, swarm: Path, network: Places, size: Size, seconds_max: float
) -> tuple[float | None, float]:
    """Train with hivemind over the lines until the first peer's model has a loss.

    Returns after how many seconds, or None if it took longer than it may, and its lowest loss.
    """
    context = multiprocessing.get_context("forkserver")
    ours: list[Connection] = []
    workers: list[Any] = []
    lowest, known = float("inf"), None
    try:
        for rank in range(PEERS):
            end, theirs = context.Pipe()
            given = (rank, network, swarm, size, theirs)
            workers.append(context.Process(target=hivemind_worker, args=given))
            workers[-1].start()
            theirs.close()
            ours.append(end)
            end.send(known)
            if not end.poll(READY_SECONDS_MAX):
                raise TimeoutError(f"peer {rank} of hivemind did not come up")
            known = known or end.recv()
        for end in ours:
            end.send("go")
        while ours[0].poll(seconds_max * size.stretch):
            seconds, found = ours[0].recv()
            lowest = min(lowest, found)
            if found <= loss or seconds > seconds_max * size.stretch:
                return (seconds / size.stretch if found <= loss else None), lowest
        return None, lowest
    finally:
        for worker in workers:
            with contextlib.suppress(ProcessLookupError):  # it may not lead a group yet
                os.killpg(worker.pid, signal.SIGKILL)
            worker.kill()
            worker.join()
