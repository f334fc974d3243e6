"""What the trials share: a swarm of real processes, watched from outside while it is maltreated.

Peers are the product's own, started by its supervisor; a trial sees what anybody on the machine
could see: status files, journals, stores. In addition each peer writes down the frames that it
receives, so that what was *sent* can be held against what was *kept*. A trial ends with `report`:
one JSON object with `passed`, and exit code 1 where something did not hold.
"""

import argparse
import ctypes
import json
import os
import platform
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil

from peerformer.bench import ServedState
from peerformer.config import Config
from peerformer.errors import SwarmError
from peerformer.journal import read_journal
from peerformer.node.assemble import PeerOptions
from peerformer.node.directory import SwarmDirectory
from peerformer.node.faults import VARIABLE
from peerformer.node.keyring import save_key
from peerformer.node.overview import overview
from peerformer.node.process import run_supervised
from peerformer.node.supervisor import Child, Supervisor
from peerformer.protocol.identity import KeyPair, name_of
from peerformer.settings import resolve
from peerformer.train.replica import Applied, Replica

TOY = {
    "model.hidden_size": 32,
    "model.intermediate_size": 64,
    "model.num_layers": 1,
    "model.num_heads": 2,
    "model.num_kv_heads": 1,
    "model.head_dim": 16,
    "model.max_positions": 32,
    "data.path": "synthetic:1",
    "data.vocab_size": 300,
    "training.sequence_length": 32,
    "training.batch_size": 4,
    "swarm.inner_steps": 4,
    "swarm.joins_per_voucher": 0,
}
PLAN = "trial.json"  # what a peer's process does before it is a peer, by name
FRAMES = "frames"  # folder of a peer with the frames that it received
LOOK_SECONDS = 0.1
LINES_TOLD = 16  # of a log, from an exception on
NETNS_FLAG = 0x4000_0000  # CLONE_NEWNET


def toy(peers: int, **more: object) -> Config:
    """Return the configuration of a swarm that decides a round in about a second."""
    return resolve(size="nano", overrides={**TOY, "swarm.peers": peers, **more}).config


# --- what runs in a peer's process ----------------------------------------------------------------


@dataclass(slots=True)
class FrameLog:
    """Writes down every frame that a peer receives: length, sender, bytes; a file for each start.

    A write is one system call on an unbuffered file, so a kill tears nothing but perhaps the last.
    """

    directory: Path
    file: Any = None

    def __call__(self, sender: bytes, frame: bytes) -> None:
        """Write one down."""
        if self.file is None:
            self.directory.mkdir(exist_ok=True)
            path = self.directory / f"{time.time_ns()}-{os.getpid()}"
            self.file = path.open("ab", buffering=0)
        self.file.write(len(frame).to_bytes(4, "little") + sender + frame)


@dataclass(frozen=True, slots=True)
class SlowSteps:
    """Makes each training step take so long, whatever this machine has to do besides.

    Several peers on two cores then behave as on as many machines that each need `seconds` a step:
    the rest of a step is slept through, in slices between which checks and votes get their turn,
    as they do between the layers of a real step.
    """

    seconds: float
    slice_seconds: float = 0.005

    def __call__(self, replica: Replica, _: Config) -> None:
        """Slow a replica down."""
        gradients, apply = replica.gradients, replica.apply
        layers = [m for m in replica.model.modules() if m._forward_pre_hooks]
        began = 0.0

        def begin(batches: Any) -> float:
            nonlocal began
            began = time.thread_time()
            return gradients(batches)

        def end(scale: float) -> Applied:
            applied = apply(scale)
            # Not the wall's time: the other peers of this machine had most of that.
            left = self.seconds - (time.thread_time() - began)
            while left > 0.0:
                slept = time.monotonic()
                time.sleep(min(left, self.slice_seconds))
                left -= time.monotonic() - slept
                for layer in layers[:1]:
                    for give_way in list(layer._forward_pre_hooks.values()):
                        give_way(layer, ())
            return applied

        replica.gradients, replica.apply = begin, end  # type: ignore[method-assign]


def lie_about_states() -> None:
    """Let this process serve false chunks of every state, of the right length."""
    honest = ServedState.chunk
    ServedState.chunk = lambda self, index: honest(self, index)[::-1]  # type: ignore[method-assign]


def enter_namespace(name: str) -> None:
    """Let this thread, and all that it starts, use another network namespace: a name or a path."""
    path = name if name.startswith("/") else f"/run/netns/{name}"
    with open(path, "rb") as file:
        if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), NETNS_FLAG):
            raise OSError(ctypes.get_errno(), f"cannot enter the namespace {name}")


def run_by_plan(swarm: Path, name: str, options: PeerOptions, control: Connection) -> None:
    """Be a peer, in the namespace and with the faults that the trial planned for it."""
    plan = swarm / PLAN
    mine = json.loads(plan.read_bytes()).get(name, {}) if plan.exists() else {}
    os.environ[VARIABLE] = mine.get("faults", "")
    if mine.get("namespace"):
        enter_namespace(mine["namespace"])
    if mine.get("lies"):
        lie_about_states()
    run_supervised(swarm, name, options, control)


# --- the swarm, from outside ----------------------------------------------------------------------


class TrialSwarm:
    """Some peers of one swarm, each a process of its own, on ports that stay the same."""

    def __init__(self, directory: Path, **options: Any) -> None:
        """Look at the swarm in a directory; `options` are those of all peers."""
        self.swarm = SwarmDirectory(directory)
        self.supervisor = Supervisor(self.swarm, run_by_plan)
        self._options = PeerOptions(threads=1, validates=False, **options)
        self.options: dict[str, PeerOptions] = {}
        self.plan: dict[str, dict[str, str]] = {}

    @classmethod
    def found(cls, directory: Path, config: Config, **options: Any) -> "TrialSwarm":
        """Found a swarm in a directory."""
        made = cls(directory, **options)
        made.supervisor.found(config, lambda _: None)
        return made

    @property
    def names(self) -> list[str]:
        """The peers that have a directory."""
        return [peer.name for peer in self.swarm.peers()]

    def tell(self, name: str, **what: str) -> None:
        """Plan something for the next start of a peer."""
        self.plan.setdefault(name, {}).update(what)
        (self.swarm.path / PLAN).write_text(json.dumps(self.plan))

    def place(self, name: str, **options: Any) -> None:
        """Give a peer options of its own."""
        self.options[name] = replace(self.options.get(name, self._options), **options)

    def new_peer(self) -> str:
        """Make a key for one more peer; it joins when it starts."""
        seed = secrets.token_bytes(32)
        name = name_of(KeyPair.from_seed(seed).peer_id)
        if (self.swarm.path / "peers" / name).exists():
            return self.new_peer()
        save_key(self.swarm.peer(name).make().key, seed)
        return name

    def start(self, *names: str, seconds_max: float = 600.0) -> int:
        """Start peers and wait until they listen; one that a fault kills meanwhile starts again.

        Returns how many a fault killed.
        """
        deadline, killed = time.monotonic() + seconds_max, 0
        pending = [self._start(name) for name in names]
        while pending:
            try:
                self.supervisor.await_listening(pending)
            except SwarmError:
                dead = [child for child in pending if not child.alive]
                faulted = [child.process.exitcode == -signal.SIGKILL for child in dead]
                if not all(faulted) or time.monotonic() > deadline:
                    raise
                killed += len(dead)
                pending = [self._start(c.name) if c in dead else c for c in pending]
            else:
                pending = []
        return killed

    def _start(self, name: str) -> Child:
        if not self.options.setdefault(name, self._options).port:
            self.place(name, port=free_port())
        self.place(name, watch=FrameLog(self.swarm.peer(name).path / FRAMES))
        return self.supervisor.start(name, self.options[name])

    def alive(self, name: str) -> bool:
        """Whether a peer's process runs."""
        child = self.supervisor.children.get(name)
        return child is not None and child.alive

    def pid(self, name: str) -> int:
        """The process of a peer that runs."""
        return int(self.supervisor.children[name].process.pid)

    def rows(self) -> dict[str, dict[str, Any]]:
        """What each peer's status file says."""
        return {row["name"]: row for row in overview(self.swarm)["peers"]}

    def rounds(self, names: Iterable[str] | None = None) -> list[int]:
        """The round whose state each of these peers holds."""
        found = (self.swarm.peer(name).read_status() or {} for name in names or self.names)
        return [int(status.get("state_round") or 0) for status in found]

    def reach(self, number: int, names: Iterable[str] | None = None, *, seconds: float) -> bool:
        """Wait until these peers hold the state of a round; False if they do not in time."""
        names = list(names or self.names)
        return wait_until(lambda: min(self.rounds(names)) >= number, seconds)

    def events_of(self, name: str, kind: type[Any]) -> list[Any]:
        """The events of a kind in a peer's journal."""
        path = self.swarm.peer(name).journal
        if not path.exists():
            return []
        return [event for event in read_journal(path) if isinstance(event, kind)]

    def stop(self) -> None:
        """Stop all peers."""
        self.supervisor.stop()

    def faults_in_logs(self) -> list[str]:
        """The lines of all logs that tell of an exception that nobody handled; all are told now."""
        found = []
        for peer in self.swarm.peers():
            lines = peer.log.read_text(errors="replace").splitlines() if peer.log.exists() else []
            marks = ("Traceback", "Task exception was never", "exception was never retrieved")
            for number, line in enumerate(lines):
                if any(mark in line for mark in marks):
                    found.append(f"{peer.name}: {line}")
                    note("\n".join([peer.name, *lines[number : number + LINES_TOLD]]))
        return found


def free_port(host: str = "127.0.0.1") -> int:
    """Return a port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def wait_until(holds: Callable[[], bool], seconds: float) -> bool:
    """Look again and again; False if it does not hold in time."""
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(LOOK_SECONDS)
    return True


# --- how a trial is begun and reported ------------------------------------------------------------


def arguments(about: str | None, **defaults: Any) -> argparse.ArgumentParser:
    """Return the parser that all trials share; further options are the trial's own."""
    parser = argparse.ArgumentParser(
        description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a small size, in under a minute")
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    parser.add_argument("--keep", type=Path, help="run in this folder and leave it there")
    parser.set_defaults(**defaults)
    # Stopped from outside, a trial still takes its peers, namespaces and folders with it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    return parser


def note(text: str) -> None:
    """Say how far a trial is."""
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {text}\n")
    sys.stderr.flush()


def report(found: dict[str, Any], *, passed: bool, as_json: bool) -> int:
    """Print the figures; returns the exit code."""
    machine = {"cores": psutil.cpu_count(), "machine": platform.machine()}
    found = {"passed": passed, **found, **machine}
    if as_json:
        print(json.dumps(found))
    else:
        for name, value in found.items():
            print(f"{name:<34} {value}")
    return 0 if passed else 1


class Folder:
    """The folder of a trial: a temporary one, or one that is kept."""

    def __init__(self, keep: Path | None) -> None:
        self._keep, self._made = keep, ""

    def __enter__(self) -> Path:
        if self._keep is not None:
            self._keep.mkdir(parents=True, exist_ok=True)
            return self._keep
        self._made = tempfile.mkdtemp(prefix="peerformer-trial-")
        return Path(self._made)

    def __exit__(self, *_: object) -> None:
        if self._made:
            shutil.rmtree(self._made, ignore_errors=True)
