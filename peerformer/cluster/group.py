"""The ranks of a launcher as the loop sees them: who I am, and what we do together.

A group is made once a process: it meets the others at a store, agrees with them on the settings,
starts the watch and the engine. All ranks call its methods in the same order; each call is a point
at which a rank that does not come is found (see `watch`). Leaving the group says to the others
whether all is well: where one rank fails, it tells why and all end with its exit code.
"""

import json
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

import peerformer
from peerformer.cluster.engines import DataParallel, Engine, MessagePassing
from peerformer.cluster.launch import Launch
from peerformer.cluster.rendezvous import Meeting, agree, meet, mpi_communicator, part
from peerformer.cluster.watch import Watch
from peerformer.config import Config
from peerformer.data.batches import Batch
from peerformer.errors import ConfigError, Interrupted, PeerformerError, ToldElsewhere
from peerformer.model.experts import routers_of
from peerformer.settings import to_json
from peerformer.train.checkpoint import kept_numbers, take_numbers
from peerformer.train.optimizer import load_optimizer_tensors, optimizer_tensors
from peerformer.train.precision import autocast_dtype
from peerformer.train.ranks import OneProcess
from peerformer.train.replica import Replica

# A rank's own affair; of `data.` only the digest of its tokens must be alike.
OWN_SETTINGS = ("training.threads", "data.", "training.hang_seconds")
COLLECTIVE_DAYS_MAX = 365  # the watch finds a rank that does not come; torch need not guess
# Variables by which MPI libraries say that they take memory of a GPU.
GPU_AWARE_VARIABLES = ("OMPI_MCA_opal_cuda_support", "MPIR_CVAR_ENABLE_GPU", "I_MPI_OFFLOAD")
Made = TypeVar("Made")


@dataclass(frozen=True, slots=True)
class Place:
    """Which device a rank computes on."""

    device: torch.device
    name: str  # as others may hold it too: the GPU's own number, or nothing on a CPU

    @classmethod
    def of(cls, launch: Launch) -> "Place":
        """Choose by the local rank; one that has no GPU of its own on a host with some is refused.

        Raises:
            ConfigError: if this host has GPUs, but fewer than ranks.
        """
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if not count:
            return cls(torch.device("cpu"), "")
        # Slurm may show each rank its own GPU alone; then all of them are number 0.
        index = 0 if count == 1 else launch.local_rank
        if index >= count:
            raise ConfigError(
                f"rank {launch.rank} has no GPU: {launch.host} has {count}, for "
                f"{launch.local_size} ranks",
                where=f"rank {launch.rank} on {launch.host}",
                hint=f"start {count} ranks a host, or CUDA_VISIBLE_DEVICES= for CPUs",
            )
        torch.cuda.set_device(index)
        identity = torch.cuda.get_device_properties(index).uuid
        return cls(torch.device("cuda", index), str(identity))


class Group:
    """Ranks that train together; see `train.ranks.Ranks`."""

    def __init__(self, launch: Launch, config: Config, *, trains: bool = True) -> None:
        """Meet the others. Who only measures need not be able to share a batch out.

        Raises:
            ConfigError: if the ranks cannot be divided, or do not agree; on one rank.
            ClusterError: if a rank does not come.
            ToldElsewhere: on the other ranks.
        """
        self.launch, self.config = launch, config
        if launch.is_one_host and sys.platform == "linux":
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        place = Place.of(launch)
        self.device = place.device
        self.meeting: Meeting = meet(launch)
        try:
            held = agree(self.meeting, "start", self._held(place))
            self._refuse(held, trains=trains)
        except ToldElsewhere:
            raise
        except PeerformerError as error:
            if launch.rank:  # all ranks have found the same
                raise ToldElsewhere(error.exit_code) from error
            raise
        hosts = [rank["~host"] for rank in held]
        self.hosts = hosts
        self.watch = Watch(self.meeting, hosts, config.training.hang_seconds)
        self._told = 0
        self.engine: Engine = self._build_engine(held)

    @property
    def rank(self) -> int:
        """0 to size - 1; rank 0 alone prints and writes."""
        return self.launch.rank

    @property
    def size(self) -> int:
        """How many ranks there are."""
        return self.launch.size

    def _refuse(self, held: list[dict[str, Any]], *, trains: bool) -> None:
        """Refuse what cannot be run with what the ranks hold: all of them find the same."""
        try:
            refuse_shared_gpus(held)
            if trains:
                refuse_indivisible(self.config, self.launch)
            refuse_impossible(self.config, held)
        except PeerformerError:
            part(self.meeting, "start")
            raise

    def _held(self, place: Place) -> dict[str, Any]:
        """What this rank puts down at the start."""
        versions = {"version": peerformer.__version__, "torch": torch.__version__.split("+")[0]}
        settings: dict[str, Any] = {}
        for section, value in to_json(self.config).items():
            pairs = value.items() if isinstance(value, dict) else [("", value)]
            settings |= {f"{section}.{key}".rstrip("."): item for key, item in pairs}
        shared = {k: v for k, v in settings.items() if not k.startswith(OWN_SETTINGS)}
        self._comm = mpi_communicator(self.launch) if self.config.training.engine == "mpi" else None
        return {**versions, **shared, "~gpu": place.name, "~mpi": self._comm is not None}

    def _build_engine(self, held: list[dict[str, Any]]) -> Engine:
        training, on_gpus = self.config.training, all(rank["~gpu"] for rank in held)
        if training.engine == "mpi":
            aware = any(os.environ.get(name, "") == "1" for name in GPU_AWARE_VARIABLES)
            return MessagePassing(self._comm, self.device, gpu_aware=aware)
        backend = training.backend
        if backend == "auto":
            backend = "nccl" if on_gpus else "gloo"
        if backend == "gloo":
            self.device = torch.device("cpu")
        self.watch.meets("starting the engine")
        dist.init_process_group(
            "gloo" if backend == "gloo" else "cpu:gloo,cuda:nccl",
            store=dist.PrefixStore("torch", self.meeting.another()),
            rank=self.rank,
            world_size=self.size,
            timeout=timedelta(days=COLLECTIVE_DAYS_MAX),
        )
        if training.engine == "fsdp":
            from peerformer.cluster.sharded import Sharded

            dtype = autocast_dtype(self.told(training.dtype))
            return Sharded(self.device, dtype)
        return DataParallel(self.device)

    # --- what the loop asks ----------------------------------------------------------------------

    def told(self, value: Any) -> Any:
        """Return rank 0's value, which JSON can hold."""
        store, self._told = self.meeting.store, self._told + 1
        key = f"told/{self._told}"
        with self.watch.patience("waiting for rank 0's word"):
            if self.rank == 0:
                store.set(key, json.dumps(value))
                return value
            store.wait([key], timedelta(days=COLLECTIVE_DAYS_MAX))
            return json.loads(store.get(key))

    def mean(self, *numbers: float) -> list[float]:
        """Return the averages of numbers over all ranks."""
        self.watch.meets("adding numbers up")
        return self.engine.mean([float(number) for number in numbers])

    def add_up(self, tensor: Tensor) -> None:
        """Put the sums over all ranks in the place of a tensor's values."""
        self.watch.meets("adding counts up")
        self.engine.add_up(tensor)

    def in_turn(self, make: Callable[[], Made]) -> Made:
        """Make something that lies on disk: rank 0, then a rank of each other host, then all.

        Hosts may have the disk in common or not: whoever comes later finds it or makes it.
        """
        turn = 0 if self.rank == 0 else 1 if self.launch.local_rank == 0 else 2
        made: Made | None = None
        for now in range(3):
            with self.watch.patience("preparing text"):
                if now == turn:
                    made = make()
                self._barrier("turn")
        assert made is not None
        return made

    def _barrier(self, name: str) -> None:
        """Wait at the store, where a wait may take as long as it wants."""
        store, self._told = self.meeting.store, self._told + 1
        key = f"{name}/{self._told}"
        if store.add(key, 1) == self.size:
            store.set(f"{key}/all", "")
        store.wait([f"{key}/all"], timedelta(days=COLLECTIVE_DAYS_MAX))

    def agree(self, topic: str, values: dict[str, Any]) -> list[dict[str, Any]]:
        """Refuse to go on unless all ranks hold the same; returns what all of them hold.

        Raises:
            ConfigError: on one rank, if they do not.
            ToldElsewhere: on the others.
        """
        with self.watch.patience(f"comparing {topic}"):
            return agree(self.meeting, topic, values)

    def place(self, model: nn.Module) -> None:
        """Put a model where it is trained, before it gets an optimizer."""
        self.engine.place(model)

    def attach(self, replica: Replica) -> None:
        """Let a replica's gradients be averages over all ranks."""
        for router in routers_of(replica.model):
            router.add_up = self.add_up
        loss = self.engine.attach(replica, replica.loss)

        def on_device(*batch: Tensor, **more: Tensor) -> Tensor:
            self.watch.meets("forward and backward")
            moved = [tensor.to(self.device) for tensor in batch]
            return loss(*moved, **{name: tensor.to(self.device) for name, tensor in more.items()})

        replica.loss = on_device

    def share(self, batches: Sequence[Batch]) -> Sequence[Batch]:
        """Return all of them: they are this rank's slots already."""
        return batches

    def passing(self, *, last: bool) -> AbstractContextManager[object]:
        """Surround forward and backward of a pass; gradients are averaged in a step's last one."""
        return self.engine.passing(last=last)

    def averaged(self) -> None:
        """Return once the gradients of a step are averages over all ranks."""
        self.engine.averaged()

    def step(self, number: int) -> None:
        """Begin a step."""
        self.watch.step(number)

    def save(self, save: Callable[..., Path], run: Path, **what: Any) -> Path:
        """Save a checkpoint: rank 0 for all, or each rank its part of a model that is divided."""
        if self.engine.name == "fsdp":
            from peerformer.cluster.saving import save_sharded

            with self.watch.patience("saving"):
                return save_sharded(self, run, **what)
        self.agree(f"replica/{what['replica'].step}", {"replica": what["replica"].digest()})
        with self.watch.patience("saving"):
            return Path(self.told(str(save(run, **what)) if self.rank == 0 else ""))

    def load(self, path: Path, replica: Replica) -> dict[str, Any]:
        """Load a checkpoint: rank 0 reads and sends it; a divided model is read by all."""
        if self.engine.name == "fsdp":
            from peerformer.cluster.saving import load_sharded

            with self.watch.patience("loading"):
                return load_sharded(self, path, replica)
        position = self.told(OneProcess().load(path, replica) if self.rank == 0 else None)
        self.send(replica)
        return dict(position)

    def send(self, replica: Replica) -> None:
        """Make all replicas rank 0's: parameters, optimizer, step and what it remembers."""
        with self.watch.patience("sending the replica"):
            send_replica(self, replica)

    # --- leaving ---------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Leave: together if all is well, else with what went wrong, told by one rank.

        Raises:
            PeerformerError: what is to be told in the place of `error`.
            ToldElsewhere: if another rank tells it.
        """
        if error is None or isinstance(error, Interrupted):
            self._barrier("end")
            self._close()
            return
        if isinstance(error, RuntimeError) and not isinstance(error, PeerformerError):
            first = (
                str(error).splitlines()[0][:160] if str(error) else kind.__name__ if kind else ""
            )
            if is_connection(str(error)):
                error = self.watch.who_is_gone(first)
        if isinstance(error, ToldElsewhere):
            self.watch.close(None)
            return
        code = 130 if isinstance(error, KeyboardInterrupt) else 1
        code = error.exit_code if isinstance(error, PeerformerError) else code
        if not self.watch.close(code):
            raise ToldElsewhere(code) from error
        if isinstance(error, PeerformerError):
            raise error

    def _close(self) -> None:
        self.watch.close(None)
        if dist.is_initialized():
            dist.destroy_process_group()
        store = self.meeting.store
        if self.meeting.serves:  # the others are done with the store once they have said so
            wait = timedelta(seconds=30)
            if self.size > 1:
                store.wait([f"closed/{rank}" for rank in range(1, self.size)], wait)
        else:
            store.set(f"closed/{self.rank}", "")


def is_connection(text: str) -> bool:
    """Tell whether a failure of a collective says that somebody is gone."""
    words = ("onnection", "gloo", "NCCL", "MPI", "peer", "ocket")
    return any(word in text for word in words)


def refuse_shared_gpus(held: list[dict[str, Any]]) -> None:
    """Refuse two ranks on one GPU.

    Raises:
        ConfigError: naming both.
    """
    owners: dict[tuple[str, str], int] = {}
    for rank in held:
        if not rank["~gpu"]:
            continue
        place = (rank["~host"], rank["~gpu"])
        if place in owners:
            raise ConfigError(
                f"rank {owners[place]} and rank {rank['~rank']} ask for the same GPU",
                where=f"GPU {rank['~gpu']} of {rank['~host']}",
                hint="as many ranks a host as it has GPUs: torchrun --nproc-per-node gpu",
            )
        owners[place] = rank["~rank"]


def refuse_impossible(config: Config, held: list[dict[str, Any]]) -> None:
    """Refuse an engine or a backend that a rank does not have.

    Raises:
        ConfigError: naming the rank.
    """
    training = config.training
    for rank in held:
        where = f"rank {rank['~rank']} on {rank['~host']}"
        if training.engine == "mpi" and not rank["~mpi"]:
            raise ConfigError(
                "training.engine is mpi, and no MPI has started these ranks, or mpi4py finds none",
                where=where,
                hint="mpirun -np 2 peerformer train … after pip install 'peerformer[mpi]'",
            )
        if training.backend == "nccl" and not rank["~gpu"]:
            raise ConfigError(
                "training.backend is nccl, and not every rank has a GPU",
                where=where,
                hint="--set training.backend=gloo",
            )


def refuse_indivisible(config: Config, launch: Launch) -> None:
    """Refuse a batch that cannot be shared out evenly.

    Raises:
        ConfigError: saying how many ranks would do.
    """
    training = config.training
    each_pass = training.batch_size // training.accumulation
    if each_pass % launch.size:
        passes = f" in {training.accumulation} passes" if training.accumulation > 1 else ""
        fitting = [str(n) for n in range(1, each_pass + 1) if each_pass % n == 0]
        up = -(-each_pass // launch.size) * launch.size * training.accumulation
        raise ConfigError(
            f"training.batch_size ({training.batch_size}{passes}) cannot be divided among "
            f"{launch.size} ranks",
            where="training.batch_size is of all ranks together",
            hint=f"--set training.batch_size={up}, or one of these numbers of ranks: "
            f"{', '.join(fitting)}",
        )


def send_replica(group: Group, replica: Replica) -> None:
    """Broadcast what a replica holds from rank 0, in place."""
    for parameter in replica.model.parameters():
        group.engine.broadcast(parameter.detach())
    tensors = optimizer_tensors(replica.optimizer)
    shapes = group.told({name: list(tensor.shape) for name, tensor in tensors.items()})
    if group.rank:
        empty = {name: torch.zeros(shape) for name, shape in shapes.items()}
        load_optimizer_tensors(replica.optimizer, empty)
        tensors = optimizer_tensors(replica.optimizer)
    for name in sorted(shapes):
        group.engine.broadcast(tensors[name])
    averages = replica.average.weights if replica.average is not None else {}
    for name in sorted(averages):
        group.engine.broadcast(averages[name])
    step, kept = group.told([replica.step, kept_numbers(replica)])
    take_numbers(replica, step, kept)
