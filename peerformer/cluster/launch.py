"""Ranks from torchrun, mpirun or Slurm; one process when there is none.

Every launcher tells a process who it is by environment variables, each by its own. They are read
here and nowhere else, from a mapping that is given, so that `detect` is a function of its input.
What a launcher does not tell (Open MPI and MPICH name no address) is derived where it can be: ranks
of one host meet on its loopback, at a port made of the job's name; across hosts rank 0's address
comes from Slurm's list of nodes, from MASTER_ADDR, or over MPI itself (see `rendezvous`).

Knows nothing of torch and opens no connection.
"""

import re
import socket
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

from peerformer.errors import ConfigError

TORCHRUN, OPEN_MPI, MPICH, SLURM = "torchrun", "Open MPI", "MPICH or Intel MPI", "Slurm"
LOOPBACK = "127.0.0.1"
PORT_FIRST, PORTS = 20_000, 12_000  # derived ports; below those that Linux hands out by itself
HELP = "torchrun, mpirun or srun starts several: docs/cluster.md"


@dataclass(frozen=True, slots=True)
class Launch:
    """Who this process is among those that were started together.

    Attributes:
        launcher: what started them; empty for one process on its own.
        rank: 0 to size - 1, over all hosts.
        size: how many processes there are.
        local_rank: 0 to local_size - 1, on this host; it chooses the GPU.
        local_size: how many of them this host has.
        host: this host's name.
        address: where rank 0 can be reached; None if the launcher does not say.
        port: at which port; None if the launcher does not say.
        attempt: how often torchrun has started the ranks anew.
        has_store: torchrun serves the store that ranks meet at.
        remark: what a person may wonder about, in a line.
    """

    launcher: str
    rank: int
    size: int
    local_rank: int
    local_size: int
    host: str
    address: str | None = None
    port: int | None = None
    attempt: int = 0
    has_store: bool = False
    remark: str = ""

    @property
    def is_alone(self) -> bool:
        """There is nobody to train with."""
        return self.size == 1

    @property
    def is_one_host(self) -> bool:
        """All ranks are on this host."""
        return self.local_size == self.size

    def in_words(self) -> str:
        """What was found, in a line."""
        if not self.is_alone:
            hosts = "one host" if self.is_one_host else "several hosts"
            return f"{self.size} ranks on {hosts}, started by {self.launcher}"
        if self.launcher:
            return f"one process, started by {self.launcher} as the only rank"
        return f"one process; {self.remark or HELP}"


def detect(environment: Mapping[str, str], host: str | None = None, parent: int = 0) -> Launch:
    """Return who this process is, by the variables of whatever launcher started it.

    Args:
        environment: the process's environment variables.
        host: this host's name; None asks the system.
        parent: the process that started this one; names a job that has no name.

    Raises:
        ConfigError: if a launcher's variables are not numbers, or contradict each other.
    """
    host = host or socket.gethostname()
    if "RANK" in environment and "WORLD_SIZE" in environment:
        return _torchrun(environment, host)
    if "OMPI_COMM_WORLD_RANK" in environment:
        names = (
            "OMPI_COMM_WORLD_RANK",
            "OMPI_COMM_WORLD_SIZE",
            "OMPI_COMM_WORLD_LOCAL_RANK",
            "OMPI_COMM_WORLD_LOCAL_SIZE",
        )
        job = environment.get("PMIX_NAMESPACE", f"{parent or ''}")
        return _meeting(_numbers(environment, names), OPEN_MPI, host, environment, job)
    if "PMI_RANK" in environment and "PMI_SIZE" in environment:
        # Started by srun, MPICH knows its local rank from Slurm only.
        slurm = "SLURM_LOCALID" in environment and "MPI_LOCALRANKID" not in environment
        local = "SLURM_LOCALID" if slurm else "MPI_LOCALRANKID"
        numbers = _numbers(environment, ("PMI_RANK", "PMI_SIZE", local, "MPI_LOCALNRANKS"))
        return _meeting(numbers, MPICH, host, environment, f"{parent or ''}")
    if "SLURM_PROCID" in environment and "SLURM_STEP_NUM_TASKS" in environment:
        return _slurm(environment, host)
    remark = ""
    if "SLURM_JOB_ID" in environment:
        remark = "this is a Slurm job, but srun did not start this process: srun peerformer …"
    return Launch("", 0, 1, 0, 1, host, remark=remark)


def _torchrun(environment: Mapping[str, str], host: str) -> Launch:
    """Torchrun's variables, which Kubernetes' operators set as well."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    rank, size, local_rank, local_size = _numbers(environment, names)
    attempt = _number(environment, "TORCHELASTIC_RESTART_COUNT", 0)
    return Launch(
        TORCHRUN,
        rank,
        size,
        local_rank,
        local_size,
        host,
        address=environment.get("MASTER_ADDR"),
        port=_port(environment),
        attempt=attempt,
        has_store=environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
    )


def _slurm(environment: Mapping[str, str], host: str) -> Launch:
    nodes = environment.get("SLURM_STEP_NODELIST", environment.get("SLURM_NODELIST", host))
    names = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")
    rank, size, local_rank, _ = _numbers(environment, (*names, ""))
    here = tasks_per_node(environment.get("SLURM_STEP_TASKS_PER_NODE", str(size)))
    node = _number(environment, "SLURM_NODEID", 0)
    if not 0 <= node < len(here):
        raise _unusable(f"SLURM_NODEID is {node}, of {len(here)} nodes")
    job = environment.get("SLURM_JOB_ID", "") + "." + environment.get("SLURM_STEP_ID", "")
    numbers = (rank, size, local_rank, here[node])
    address = None if len(here) == 1 else first_node(nodes)
    return _meeting(numbers, SLURM, host, environment, job, address)


def _meeting(
    numbers: tuple[int, int, int, int],
    launcher: str,
    host: str,
    environment: Mapping[str, str],
    job: str,
    address: str | None = None,
) -> Launch:
    """A launch with an address and a port where they can be known."""
    rank, size, local_rank, local_size = numbers
    address = environment.get("MASTER_ADDR") or address
    if address is None and local_size == size:
        address = LOOPBACK
    port = _port(environment)
    if port is None and job:
        port = PORT_FIRST + zlib.crc32(job.encode()) % PORTS
    return Launch(launcher, rank, size, local_rank, local_size, host, address, port)


def tasks_per_node(text: str) -> list[int]:
    """Return how many tasks each node has, of Slurm's short form, such as `2(x3),1`.

    Raises:
        ConfigError: if it is none.
    """
    counts: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"(\d{1,6})(?:\(x(\d{1,6})\))?", part.strip())
        if found is None:
            raise _unusable(f"SLURM_STEP_TASKS_PER_NODE is {text!r}")
        counts += [int(found[1])] * int(found[2] or 1)
    return counts


def first_node(text: str) -> str:
    """Return the first name of Slurm's short form of a list, such as `gpu[03-04,07],login`."""
    found = re.match(r"([^\[,]*)(?:\[(\w+)[^\]]*\]([^\[,]*))?", text.strip())
    assert found is not None  # every text begins so
    return found[1] + (found[2] or "") + (found[3] or "")


def _numbers(environment: Mapping[str, str], names: tuple[str, ...]) -> tuple[int, int, int, int]:
    """Rank, size, local rank and local size; what is not told is taken for a single host's."""
    rank, size = (_number(environment, name, None) for name in names[:2])
    local_rank = _number(environment, names[2], rank)
    local_size = _number(environment, names[3], size)
    if not 0 <= rank < size:
        raise _unusable(f"{names[0]} is {rank}, and {names[1]} is {size}")
    if not (0 <= local_rank < max(1, local_size) and local_size <= size):
        raise _unusable(f"{names[2]} is {local_rank}, and {names[3]} is {local_size} of {size}")
    return rank, size, local_rank, local_size


def _number(environment: Mapping[str, str], name: str, absent: int | None) -> int:
    text = environment.get(name, "")
    if not text and absent is not None:
        return absent
    if not re.fullmatch(r"\d{1,9}", text):
        raise _unusable(f"{name} is {text!r}")
    return int(text)


def _port(environment: Mapping[str, str]) -> int | None:
    if "MASTER_PORT" not in environment:
        return None
    port = _number(environment, "MASTER_PORT", None)
    if not 0 < port < 65_536:
        raise _unusable(f"MASTER_PORT is {port}")
    return port


def _unusable(why: str) -> ConfigError:
    return ConfigError(
        "the launcher's variables cannot be used",
        where="environment",
        why=why,
        hint="start it with torchrun, mpirun or srun; for one process unset what is left of them",
    )
