"""Where a swarm and its peers lie on disk.

runs/NAME/                     the swarm as seen from this machine
    run.json                   settings and what they were derived from
    genesis.bin                what the chain id is the hash of
    tokenizer.json  validation.bin  state-0.bin    named by hash in the genesis
    data/                      this machine's own text as tokens
    peers/amber-finch/         one peer: key, protocol.db, blobs/, states/, journal.jsonl, …
    checkpoints/  latest       loadable models of agreed states
    supervisor.json            how `peerformer peer …` reaches the running swarm
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peerformer.errors import SwarmError
from peerformer.node.faults import reach
from peerformer.protocol.codec import MalformedError
from peerformer.protocol.genesis import Genesis


def write_durably(path: Path, data: bytes) -> None:
    """Write a file whole or not at all: temporary file, fsync, rename, fsync of the directory."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        reach("file.before-fsync")
        os.fsync(file.fileno())
    reach("file.before-rename")
    temporary.replace(path)
    reach("file.before-directory")
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


@dataclass(frozen=True, slots=True)
class PeerDirectory:
    """The files of one peer."""

    path: Path

    @property
    def name(self) -> str:
        """The peer's name."""
        return self.path.name

    @property
    def key(self) -> Path:
        """The identity."""
        return self.path / "key"

    @property
    def journal(self) -> Path:
        """Everything that happened, one JSON line each."""
        return self.path / "journal.jsonl"

    @property
    def log(self) -> Path:
        """Tracebacks and warnings."""
        return self.path / "peerformer.log"

    @property
    def status(self) -> Path:
        """How the peer is doing, rewritten as it changes."""
        return self.path / "status.json"

    @property
    def printout(self) -> Path:
        """The state of the protocol as text, when somebody has asked for it."""
        return self.path / "printout.json"

    @property
    def released(self) -> Path:
        """How many contributions were made, where privacy is counted."""
        return self.path / "released"

    @property
    def states(self) -> Path:
        """Snapshots of agreed states."""
        return self.path / "states"

    @property
    def local(self) -> Path:
        """The residual and the optimizer: this peer's alone."""
        return self.path / "local.safetensors"

    @property
    def blobs(self) -> Path:
        """Contributions held."""
        return self.path / "blobs"

    def make(self) -> "PeerDirectory":
        """Create what is missing."""
        for directory in (self.path, self.states, self.blobs, self.path / "evidence"):
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        return self

    def read_status(self) -> dict[str, Any] | None:
        """Return the newest status, if the peer has ever written one."""
        try:
            status = json.loads(self.status.read_bytes())
        except (OSError, ValueError):
            return None
        return status if isinstance(status, dict) else None


@dataclass(frozen=True, slots=True)
class SwarmDirectory:
    """The files of one swarm on this machine."""

    path: Path

    @property
    def genesis_file(self) -> Path:
        """The genesis."""
        return self.path / "genesis.bin"

    @property
    def tokenizer(self) -> Path:
        """The tokenizer that the genesis names."""
        return self.path / "tokenizer.json"

    @property
    def validation(self) -> Path:
        """The held-out set that the genesis names."""
        return self.path / "validation.bin"

    @property
    def first_state(self) -> Path:
        """The state of round 0."""
        return self.path / "state-0.bin"

    @property
    def supervisor(self) -> Path:
        """How to reach the running supervisor."""
        return self.path / "supervisor.json"

    def genesis(self) -> Genesis:
        """Read the genesis.

        Raises:
            SwarmError: if there is none, or it is damaged.
        """
        try:
            return Genesis.from_bytes(self.genesis_file.read_bytes())
        except FileNotFoundError as error:
            raise SwarmError(
                "there is no swarm here", where=str(self.path), hint="peerformer up --peers 7"
            ) from error
        except (OSError, MalformedError) as error:
            raise SwarmError(
                "the genesis of this swarm cannot be read",
                where=str(self.genesis_file),
                why=str(error),
                hint="copy genesis.bin from another peer of the swarm",
            ) from error

    def peers(self) -> list[PeerDirectory]:
        """Return the peers that have a directory here, by name."""
        root = self.path / "peers"
        found = sorted(root.iterdir()) if root.is_dir() else []
        return [PeerDirectory(path) for path in found if path.is_dir()]

    def peer(self, name: str) -> PeerDirectory:
        """Return the directory of a peer."""
        return PeerDirectory(self.path / "peers" / name)


def find_swarm(name: str | None, root: Path = Path("runs")) -> SwarmDirectory:
    """Return the swarm of a name, a path, or (None) the one used last.

    Raises:
        SwarmError: if there is none, naming those that are there.
    """
    swarms = [path.parent for path in root.glob("*/genesis.bin")]
    if name is None:
        if not swarms:
            raise SwarmError(
                "there is no swarm on this machine yet",
                where=str(root.resolve()),
                hint="peerformer up --peers 7",
            )
        return SwarmDirectory(max(swarms, key=_last_used))
    exact = [path for path in (Path(name), root / name) if (path / "genesis.bin").is_file()]
    matching = exact or [path for path in swarms if path.name.endswith(name)]
    if len(matching) < 1 or (len(matching) > 1 and not exact):
        known = ", ".join(sorted(path.name for path in swarms)) or "none"
        raise SwarmError(
            f"there is no swarm called {name}" if not matching else f"{name} names several swarms",
            where=str(root.resolve()),
            why=f"known: {known}",
            hint="peerformer status",
        )
    return SwarmDirectory(matching[0])


def _last_used(path: Path) -> float:
    times = [p.stat().st_mtime for p in path.glob("peers/*/status.json")]
    return max(times, default=(path / "genesis.bin").stat().st_mtime)


def bytes_under(directory: Path) -> int:
    """Return how many bytes the files under a directory take."""
    total = 0
    for path in directory.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except OSError:
            continue  # it went meanwhile
    return total
