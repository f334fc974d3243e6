"""Ranks as real processes: forked from one server that has torch already, or by a real launcher.

Importing torch takes seconds of a core, in each of four processes at once far longer. So one server
a session imports it and forks ranks that find the variables of a launcher in their environment.
The tests of the launchers themselves start them.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]
SECONDS_MAX = 100
SMALL = [
    *("--size", "nano", "--data", "synthetic:1"),
    *("--model.hidden_size", "32", "--model.intermediate_size", "64", "--model.num_layers", "2"),
    *("--model.num_heads", "2", "--model.num_kv_heads", "1", "--model.head_dim", "16"),
    *("--model.max_positions", "32", "--training.sequence_length", "32"),
    *("--data.vocab_size", "300", "--training.validation_sequences", "7"),
    *("--training.dtype", "float32", "--training.threads", "1"),
]

SERVER = r"""
import json, os, sys
import peerformer.cluster.training, peerformer.cluster.sharded, peerformer.cluster.saving
import peerformer.interface.commands.train
from peerformer.interface.cli import main

for line in sys.stdin:
    pids = []
    for rank in json.loads(line):
        pid = os.fork()
        if pid == 0:
            os.environ.update(rank["environment"])
            os.chdir(rank["directory"])
            for number, name in ((1, rank["out"]), (2, rank["err"])):
                file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
                os.dup2(file, number)
            code = 70
            try:
                code = main(rank["words"])
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        pids.append(pid)
    print(json.dumps(pids), flush=True)
    codes = []
    for pid in pids:
        codes.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    print(json.dumps(codes), flush=True)
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def environment(**more: str) -> dict[str, str]:
    """The environment of a rank: this one's, without any launcher's or setting's variables."""
    launchers = ("PEERFORMER_", "OMPI_", "PMI", "SLURM_", "TORCHELASTIC", "MASTER_", "MPI4PY_")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(launchers)}
    path = f"{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}"
    return {**kept, "PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **more}


@dataclass
class Ranks:
    """Ranks that run."""

    pids: list[int]
    folder: Path
    _answer: Callable[[], str]
    codes: list[int] = field(default_factory=list)

    def wait(self) -> list[int]:
        """The exit codes, by rank."""
        self.codes = self.codes or json.loads(self._answer())
        return self.codes

    def err(self, rank: int) -> str:
        return (self.folder / f"{rank}.err").read_text()

    def out(self, rank: int) -> str:
        return (self.folder / f"{rank}.out").read_text()

    def are_alive(self) -> bool:
        """Whether none has ended, which would wait to be looked after by the server."""
        return all(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE for pid in self.pids)

    def await_text(self, path: Path, text: str) -> None:
        """Wait until a file that a rank writes holds a text."""
        deadline = time.monotonic() + SECONDS_MAX
        while not path.exists() or text not in path.read_text(errors="replace"):
            assert time.monotonic() < deadline and self.are_alive(), [
                log.read_text() for log in sorted(self.folder.iterdir())
            ]
            time.sleep(0.05)


class Server:
    """Forks ranks."""

    def __init__(self) -> None:
        self.last: Ranks | None = None
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment(),
            text=True,
            start_new_session=True,
        )

    def start(self, folder: Path, *words: str, size: int = 2, **own: list[str]) -> Ranks:
        """Start ranks of one command; `rank1=[…]` gives a rank words of its own besides."""
        if self.last is not None and not self.last.codes:  # of a test that failed
            for pid in self.last.pids:
                os.kill(pid, signal.SIGKILL)
            self.last.wait()
        port, logs = free_port(), folder / f"ranks-{time.monotonic_ns()}"
        logs.mkdir()
        ranks = [
            {
                "environment": {
                    **{"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank)},
                    **{"LOCAL_WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1"},
                    "MASTER_PORT": str(port),
                    **dict(word.split("=", 1) for word in own.get(f"variables{rank}", [])),
                },
                "directory": str(folder),
                "out": str(logs / f"{rank}.out"),
                "err": str(logs / f"{rank}.err"),
                "words": [*words, *own.get(f"rank{rank}", [])],
            }
            for rank in range(size)
        ]
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(ranks) + "\n")
        self.process.stdin.flush()
        pids = json.loads(self.process.stdout.readline())
        self.last = Ranks(pids, logs, self.process.stdout.readline)
        return self.last

    def close(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)  # with whatever rank is left
        self.process.wait()


# More ranks than free cores: those that wait must not spin on a core that another needs.
OPEN_MPI = ["--allow-run-as-root", "--oversubscribe", "--mca", "mpi_yield_when_idle", "1"]


def mpi_launcher(kind: str) -> list[str] | None:
    """The command that starts ranks under an MPI, or None if that MPI is not here."""
    beside = str(Path(sys.executable).parent)
    for name in ("mpiexec", "mpirun", f"mpirun.{kind}", f"mpiexec.{kind}"):
        for path in (f"{beside}{os.pathsep}{os.environ['PATH']}", os.environ["PATH"]):
            found = shutil.which(name, path=path)
            if found is None:
                continue
            said = subprocess.run([found, "--version"], capture_output=True, text=True, check=False)
            is_open = "open" in said.stdout.lower()
            if is_open == (kind == "openmpi"):
                return [found, *(OPEN_MPI if is_open else [])]
    return None


def torchrun(ranks: int, *words: str) -> list[str]:
    """The command that starts ranks of `peerformer` under torchrun, with torchrun's own words."""
    port = f"--rdzv-endpoint=127.0.0.1:{free_port()}"
    own = ["--nproc-per-node", str(ranks), "--rdzv-backend=c10d", port, *words]
    return [sys.executable, "-m", "torch.distributed.run", *own, "-m", "--", "peerformer"]


def numbers(run: Path) -> dict[int, float]:
    """The losses of `metrics.csv`, by step."""
    rows = (run / "metrics.csv").read_text().splitlines()[1:]
    return {int(row.split(",")[0]): float(row.split(",")[1]) for row in rows}


def validated(run: Path) -> float:
    """The last validation loss of a run."""
    lines = (run / "journal.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines if '"validated"' in line]
    return float(found[-1]["loss"])
