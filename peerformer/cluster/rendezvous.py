"""Where ranks meet before they train: a store that all reach, and what they must agree on.

The store is torch's TCPStore, served by torchrun's agent or by rank 0. Each attempt of torchrun
gets a prefix of its own: what a killed attempt left in the agent's store must not be read by the
next one. Under mpirun with mpi4py at hand, rank 0 takes a free port and says which over MPI.

Agreement is asked for by topic: every rank puts down what it holds, rank 0 compares as they come,
and its verdict is what all of them end with, so that one error is told and nobody waits for a rank
that has left.
"""

import contextlib
import ctypes
import json
import os
import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from torch.distributed import PrefixStore, Store, TCPStore

from peerformer.cluster.launch import LOOPBACK, MPICH, OPEN_MPI, TORCHRUN, Launch
from peerformer.errors import ClusterError, ConfigError, PeerformerError, ToldElsewhere

MEET_SECONDS_MAX = 300.0  # importing torch from a cold network disk takes minutes
LATE_SECONDS_MAX = 30.0  # a rank that comes to a store that is gone would look for it for long
POLL_SECONDS = 0.02
TWICE = "twice"
SHOWN_CHARACTERS_MAX = 80  # of a value in an error
# How mpi4py calls an MPI, and the library of it, by launcher.
LIBRARIES = {OPEN_MPI: ("openmpi", "libmpi.so.40"), MPICH: ("mpich", "libmpi.so.12")}
Values = Mapping[str, str | int | float | bool | None]


@dataclass(frozen=True, slots=True)
class Meeting:
    """A store that all ranks of this attempt reach, and what another thread of a rank needs."""

    launch: Launch
    store: Store
    address: str
    port: int

    @property
    def serves(self) -> bool:
        """This process serves the store: it must be the last to leave."""
        return self.launch.rank == 0 and not self.launch.has_store

    def another(self) -> Store:
        """Return a connection of its own to the same store: one blocks while it waits."""
        return _prefixed(_client(self.launch, self.address, self.port), self.launch)


def meet(launch: Launch) -> Meeting:
    """Return the store of this launch's ranks.

    Raises:
        ConfigError: if rank 0's address is not known, cannot be resolved, or its port is taken.
        ClusterError: if rank 0 cannot be reached.
    """
    over_mpi = launch.launcher in (OPEN_MPI, MPICH) and "MASTER_PORT" not in os.environ
    comm = mpi_communicator(launch) if over_mpi else None
    if comm is not None:
        return _meet_over_mpi(launch, comm)
    if launch.address is None or launch.port is None:
        raise ConfigError(
            f"{launch.launcher} does not say where rank 0 is",
            where=f"rank {launch.rank} on {launch.host}",
            hint="pip install 'peerformer[mpi]', or set MASTER_ADDR and MASTER_PORT for all ranks",
        )
    if launch.rank == 0 and not launch.has_store:
        store = _serve(launch, launch.port)
        return Meeting(launch, _prefixed(store, launch), launch.address, store.port)
    client = _client(launch, launch.address, launch.port)
    return Meeting(launch, _prefixed(client, launch), launch.address, launch.port)


def mpi_communicator(launch: Launch) -> Any:
    """Return MPI's communicator of all ranks; None if there is none, or no mpi4py or library.

    Raises:
        ConfigError: if MPI sees other ranks than the launcher started.
    """
    # mpi4py loads whichever MPI it finds first; only the launcher's own knows these ranks.
    if launch.launcher == TORCHRUN:
        return None  # it starts no MPI
    if launch.launcher in LIBRARIES:
        abi, library = LIBRARIES[launch.launcher]
        os.environ.setdefault("MPI4PY_MPIABI", abi)
        _preload(library)
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError):  # no package; or no library of that MPI
        return None
    comm = MPI.COMM_WORLD
    if (comm.Get_rank(), comm.Get_size()) != (launch.rank, launch.size):
        raise ConfigError(
            f"MPI sees rank {comm.Get_rank()} of {comm.Get_size()}, but {launch.launcher} started"
            f" rank {launch.rank} of {launch.size}",
            where=f"rank {launch.rank} on {launch.host}",
            why=f"mpi4py has loaded {MPI.Get_library_version().splitlines()[0].strip()}",
            hint="use the mpirun of that library (under Slurm: srun --mpi=pmix), or set "
            "LD_LIBRARY_PATH to the launcher's",
        )
    return comm


def _preload(library: str) -> None:
    """Load a library beside Python or beside mpiexec, where the system does not look by itself."""
    launcher = shutil.which("mpiexec")
    prefixes = [Path(sys.prefix)] + ([Path(launcher).resolve().parent.parent] if launcher else [])
    for prefix in prefixes:
        if (prefix / "lib" / library).exists():
            with contextlib.suppress(OSError):  # then mpi4py says that there is none
                ctypes.CDLL(str(prefix / "lib" / library), mode=ctypes.RTLD_GLOBAL)
            return


def _meet_over_mpi(launch: Launch, comm: Any) -> Meeting:
    said: dict[str, Any] | None = None
    store: Store | None = None
    if launch.rank == 0:
        store = _serve(launch, 0)
        said = {"address": LOOPBACK if launch.is_one_host else launch.host, "port": store.port}
    said = comm.bcast(said)
    address, port = str(said["address"]), int(said["port"])
    store = store or _client(launch, address, port)
    return Meeting(launch, _prefixed(store, launch), address, port)


def _serve(launch: Launch, port: int) -> TCPStore:
    wait = timedelta(seconds=MEET_SECONDS_MAX)
    try:
        return TCPStore(LOOPBACK, port, is_master=True, timeout=wait, wait_for_workers=False)
    except RuntimeError as error:
        raise ConfigError(
            f"rank 0 cannot listen on port {port}: it is in use",
            where=f"rank 0 on {launch.host}",
            why=_first_line(error),
            hint=f"MASTER_PORT={port + 1}, the same for all ranks",
        ) from error


def _client(launch: Launch, address: str, port: int) -> TCPStore:
    wait = timedelta(seconds=MEET_SECONDS_MAX)
    try:
        return TCPStore(address, port, is_master=False, timeout=wait, wait_for_workers=False)
    except RuntimeError as error:
        raise ClusterError(
            f"rank {launch.rank} cannot reach rank 0 at {address}:{port}",
            where=f"rank {launch.rank} on {launch.host}",
            why=_first_line(error),
            hint="peerformer doctor cluster, under the same launcher",
        ) from error


def _prefixed(store: Store, launch: Launch) -> Store:
    return PrefixStore(f"peerformer/{launch.attempt}", store)


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__


# --- agreement -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Rank:
    """Who put something down."""

    number: int
    host: str

    def __str__(self) -> str:
        return f"rank {self.number} on {self.host}"


def agree(
    meeting: Meeting, topic: str, mine: Values, seconds: float = MEET_SECONDS_MAX
) -> list[dict[str, Any]]:
    """Return what all ranks hold, by rank, once rank 0 has found all of it alike.

    Args:
        meeting: the ranks.
        topic: what it is about; asked once.
        mine: what this rank holds. Names that begin with `~` are its own and may differ.
        seconds: how long rank 0 waits for the last one.

    Raises:
        ConfigError: on one rank: something differs; it names rank, host and field.
        ToldElsewhere: on the other ranks.
    """
    launch, store = meeting.launch, meeting.store
    held = {"~rank": launch.rank, "~host": launch.host, "world size": launch.size, **mine}
    if store.add(f"{topic}/came/{launch.rank}", 1) == 1:
        store.set(f"{topic}/{launch.rank}", json.dumps(held))
    else:
        store.set(f"{topic}/{TWICE}", json.dumps(held))
    if launch.rank == 0:
        error = _compare(meeting, topic, held, seconds)
        store.set(f"{topic}/verdict", json.dumps({"error": error is not None, "size": launch.size}))
        if error is not None:
            part(meeting, topic)
            raise error
    wait = timedelta(seconds=seconds + 60)
    try:
        store.wait([f"{topic}/verdict"], wait)
        verdict = json.loads(store.get(f"{topic}/verdict"))
    except RuntimeError as error:
        raise ClusterError(
            "rank 0 is gone", where=f"rank {launch.rank} on {launch.host}", why=_first_line(error)
        ) from error
    if verdict["error"]:
        part(meeting, topic)
        raise ToldElsewhere(ConfigError.exit_code)
    if verdict["size"] != launch.size:  # rank 0 waited for fewer, and knows nothing of this one
        raise _differing(
            "world size", Rank(0, "its host"), verdict["size"], _me(launch), launch.size
        )
    keys = [f"{topic}/{rank}" for rank in range(launch.size)]
    return [json.loads(value) for value in store.multi_get(keys)]


def _compare(
    meeting: Meeting, topic: str, mine: dict[str, Any], seconds: float
) -> PeerformerError | None:
    """Compare what ranks put down as it comes: a wrong rank may be why another never comes."""
    store, deadline = meeting.store, time.monotonic() + seconds
    missing = set(range(1, meeting.launch.size))
    while missing:
        came = {rank for rank in missing if store.check([f"{topic}/{rank}"])}
        for rank in sorted(came):
            held = json.loads(store.get(f"{topic}/{rank}"))
            for name in sorted(mine.keys() | held.keys()):
                if not name.startswith("~") and held.get(name) != mine.get(name):
                    other = Rank(rank, held["~host"])
                    me = _me(meeting.launch)
                    return _differing(name, me, mine.get(name), other, held.get(name))
        missing -= came
        if store.check([f"{topic}/{TWICE}"]):
            held = json.loads(store.get(f"{topic}/{TWICE}"))
            return ConfigError(
                f"two processes say that they are rank {held['~rank']}",
                where=str(Rank(held["~rank"], held["~host"])),
                hint="start every rank once, with one launcher",
            )
        if missing and time.monotonic() > deadline:
            return ClusterError(
                f"rank {min(missing)} has not come within {seconds:.0f} s",
                why=f"{len(missing)} of {meeting.launch.size} ranks are missing",
                hint="look at what the launcher says about it",
            )
        if missing:
            time.sleep(POLL_SECONDS)
    return None


def _me(launch: Launch) -> Rank:
    return Rank(launch.rank, launch.host)


def _differing(name: str, one: Rank, its: Any, other: Rank, others: Any) -> ConfigError:
    its, others = (repr(value)[:SHOWN_CHARACTERS_MAX] for value in (its, others))
    return ConfigError(
        f"the ranks do not agree on {name}",
        where=str(other),
        why=f"{its} on {one}, {others} on {other}",
        hint="start all ranks with one command, the same version and the same text",
    )


def part(meeting: Meeting, topic: str) -> None:
    """Let rank 0, which may serve the store, go last: when all have read what was agreed on."""
    if meeting.launch.rank == 0:
        _await_goodbyes(meeting, topic)
        return
    with contextlib.suppress(RuntimeError):  # rank 0 does not wait for ever
        meeting.store.add(f"{topic}/left", 1)


def _await_goodbyes(meeting: Meeting, topic: str) -> None:
    """Serve the verdict until all have read it, also those that come late."""
    store, deadline = meeting.store, time.monotonic() + LATE_SECONDS_MAX
    while store.add(f"{topic}/left", 0) < meeting.launch.size - 1 and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
