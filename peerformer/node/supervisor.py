"""Peers on one machine: real processes, forked from one server that has imported torch once.

The supervisor founds the swarm (or finds the one founded before), starts and restarts peers, passes
orders on, and answers `peerformer peer …` on a socket of this user's. It takes no part in the
protocol: kill it, and the peers stop; kill a peer, and the others go on.
"""

import contextlib
import json
import multiprocessing
import os
import secrets
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from peerformer.adversary import ATTACKS
from peerformer.config import Config
from peerformer.errors import ConfigError, PeerformerError, SwarmError
from peerformer.node import founding
from peerformer.node.assemble import PeerOptions
from peerformer.node.directory import SwarmDirectory, write_durably
from peerformer.node.inviting import invite_here
from peerformer.node.keyring import save_key
from peerformer.node.process import run_supervised
from peerformer.protocol.identity import KeyPair, name_of

PEERS_MAX = 64
START_SECONDS_MAX = 120.0
STOP_SECONDS_MAX = 15.0
ANSWER_SECONDS_MAX = 60.0
PRELOADED = ["peerformer.node.process"]
Entry = Callable[[Path, str, PeerOptions, Connection], None]


@dataclass(slots=True)
class Child:
    """One peer process."""

    name: str
    options: PeerOptions
    process: Any = None
    control: Connection | None = None
    address: str | None = None
    peer_id: bytes | None = None
    answers: list[Any] = field(default_factory=list)
    killed: bool = False

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self.process is not None and self.process.is_alive()


class Supervisor:
    """The peers of one swarm on this machine."""

    def __init__(self, swarm: SwarmDirectory, entry: Entry = run_supervised) -> None:
        """Prepare the fork server; nothing runs yet. `entry` is what a child does."""
        self.swarm, self._entry = swarm, entry
        self.children: dict[str, Child] = {}
        self._lock = threading.RLock()
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(PRELOADED)
        self._socket: socket.socket | None = None
        self._socket_directory: Path | None = None

    # --- founding --------------------------------------------------------------------------------

    def found(self, config: Config, report: Callable[[str], None]) -> None:
        """Draw keys with distinct names and found the swarm with them."""
        seeds: dict[str, bytes] = {}
        while len(seeds) < config.swarm.peers:
            seed = secrets.token_bytes(32)
            seeds.setdefault(name_of(KeyPair.from_seed(seed).peer_id), seed)
        founding.found(self.swarm, config, list(seeds.values()), report)
        for name, seed in seeds.items():
            save_key(self.swarm.peer(name).make().key, seed)

    # --- peers -----------------------------------------------------------------------------------

    def start(self, name: str, options: PeerOptions | None = None) -> Child:
        """Start a peer, or start it again, and tell it one running peer's address.

        Raises:
            SwarmError: if it runs already, or does not come up.
        """
        with self._lock:
            before = self.children.get(name)
            if before is not None and before.alive:
                raise SwarmError(f"{name} is running", hint="peerformer status")
            child = Child(name, options or (before.options if before else PeerOptions(threads=1)))
            ours, theirs = self._context.Pipe()
            child.control = ours
            child.process = self._context.Process(
                target=self._entry,
                args=(self.swarm.path, name, child.options, theirs),
                name=f"peerformer {name}",
                daemon=True,
            )
            child.process.start()
            theirs.close()
            self.children[name] = child
        return child

    def await_listening(self, children: list[Child]) -> None:
        """Wait until these peers listen, and bring each together with one that runs."""
        deadline = time.monotonic() + START_SECONDS_MAX
        waiting = [child for child in children if child.address is None]
        while waiting:
            self._read(waiting, max(0.0, deadline - time.monotonic()))
            for child in waiting:
                if not child.alive or time.monotonic() > deadline:
                    raise SwarmError(
                        f"{child.name} did not come up",
                        where=str(self.swarm.peer(child.name).log),
                        hint="read that log",
                    )
            waiting = [child for child in waiting if child.address is None]
        for child in children:
            others = (c for c in self.children.values() if c.alive and c.address and c is not child)
            known = next(others, None)
            if known is not None:
                self.order(child.name, "bootstrap", known.address, known.peer_id)

    def _read(self, children: list[Child], seconds: float) -> None:
        """Read what these children say, for at most so long."""
        sentinels = [child.process.sentinel for child in children]
        controls = [child.control for child in children if child.control is not None]
        ready = wait([*controls, *sentinels], timeout=min(seconds, 0.5))
        for child in children:
            if child.control is None or child.control not in ready:
                continue
            try:
                message = child.control.recv()
            except (EOFError, OSError):
                continue
            match message:
                case ("listening", address, peer_id):
                    child.address, child.peer_id = address, peer_id
                case _:
                    child.answers.append(message)

    def order(self, name: str, *words: Any) -> None:
        """Send an order to a running peer."""
        child = self._running(name)
        assert child.control is not None
        with contextlib.suppress(BrokenPipeError):
            child.control.send(words)

    def _running(self, name: str) -> Child:
        child = self.children.get(name)
        if child is None or not child.alive:
            known = ", ".join(sorted(n for n, c in self.children.items() if c.alive))
            raise SwarmError(
                f"no running peer is called {name}",
                why=f"running: {known}",
                hint="peerformer status",
            )
        return child

    def kill(self, name: str) -> None:
        """Kill a peer without a goodbye (SIGKILL)."""
        with self._lock:
            child = self._running(name)
            child.killed = True
            os.kill(child.process.pid, signal.SIGKILL)
            child.process.join(STOP_SECONDS_MAX)

    def partition(self, *groups: list[str]) -> None:
        """Let running peers of different groups have no connection; one group of all heals.

        Raises:
            SwarmError: if one of them does not run.
        """
        with self._lock:
            sides = [[self._running(name) for name in group] for group in groups]
            for side in sides:
                others = [child.peer_id for other in sides if other is not side for child in other]
                for child in side:
                    self.order(child.name, "cut", others)

    def add(self, attack: str | None) -> str:
        """Add a peer with a new key; it joins by itself. Returns its name.

        Raises:
            ConfigError: if there is no such attack, or the machine runs enough peers.
        """
        if attack is not None and attack not in ATTACKS:
            raise ConfigError(
                f"there is no adversary called {attack}", why=f"known: {', '.join(ATTACKS)}"
            )
        with self._lock:
            if sum(child.alive for child in self.children.values()) >= PEERS_MAX:
                raise ConfigError(f"{PEERS_MAX} peers run already")
            seed = secrets.token_bytes(32)
            while (self.swarm.path / "peers" / name_of(KeyPair.from_seed(seed).peer_id)).exists():
                seed = secrets.token_bytes(32)
            name = name_of(KeyPair.from_seed(seed).peer_id)
            save_key(self.swarm.peer(name).make().key, seed)
            invite_here(self.swarm, self.swarm.peer(name))
            child = self.start(name, PeerOptions(threads=1, attack=attack, validates=False))
        self.await_listening([child])
        return name

    def save_checkpoint(self, name: str) -> Path:
        """Let a peer save the agreed model; returns where."""
        return self._written(name, "checkpoint")

    def print_state(self, name: str) -> Path:
        """Let a peer write the state of its protocol as text; returns where."""
        return self._written(name, "state")

    def _written(self, name: str, order: str) -> Path:
        """Order a peer to write a file, and wait for it."""
        child = self._running(name)
        child.answers.clear()
        self.order(name, order)
        deadline = time.monotonic() + ANSWER_SECONDS_MAX
        while time.monotonic() < deadline and child.alive:
            self._read([child], 0.5)
            for answer in child.answers:
                if answer[0] == order:
                    return Path(answer[1])
        raise SwarmError(f"{name} did not save its {order}", where=str(self.swarm.path))

    def stop(self) -> None:
        """Stop all peers: politely, then not."""
        alive = [child for child in self.children.values() if child.alive]
        for child in alive:
            with contextlib.suppress(PeerformerError):
                self.order(child.name, "stop")
        deadline = time.monotonic() + STOP_SECONDS_MAX
        for child in alive:
            child.process.join(max(0.1, deadline - time.monotonic()))
            if child.process.is_alive():
                child.process.kill()
                child.process.join(5)
        self.close_socket()

    # --- orders from other terminals -------------------------------------------------------------

    def listen(self, handle: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        """Answer requests of this user's other commands on a Unix socket."""
        self._socket_directory = Path(tempfile.mkdtemp(prefix="peerformer-"))  # mode 0700
        path = self._socket_directory / "s"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.bind(str(path))
        self._socket.listen(8)
        note = {"socket": str(path), "pid": os.getpid()}
        write_durably(self.swarm.supervisor, json.dumps(note).encode())
        threading.Thread(target=self._answer_all, args=(handle,), daemon=True).start()

    def _answer_all(self, handle: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        assert self._socket is not None
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return  # closed: the swarm is stopping
            with connection, connection.makefile("rwb") as stream:
                try:
                    answer = handle(json.loads(stream.readline()))
                except PeerformerError as error:
                    answer = {"error": error.what, "why": error.why, "hint": error.hint}
                except (ValueError, KeyError, TypeError) as error:
                    answer = {"error": f"not a request: {error}"}
                with contextlib.suppress(OSError):
                    stream.write(json.dumps(answer).encode() + b"\n")

    def close_socket(self) -> None:
        """Stop answering."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
            self.swarm.supervisor.unlink(missing_ok=True)
        if self._socket_directory is not None:
            (self._socket_directory / "s").unlink(missing_ok=True)
            self._socket_directory.rmdir()
            self._socket_directory = None
