"""What a swarm's peers signed and decided, read from their stores and from what others received.

A key that signed two statements for one slot, a decided round that a store lost, a state that is
not the one that was certified: each is found here if it happened, whoever kept the trace of it.
"""

import shutil
import sqlite3
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from trial_swarm import TrialSwarm

from peerformer import events
from peerformer.node.stored import stored_headers
from peerformer.protocol.codec import MalformedError, decode
from peerformer.protocol.conduct import contradiction, slot_of
from peerformer.protocol.identity import name_of
from peerformer.protocol.merkle import state_root
from peerformer.protocol.messages import Certified, Envelope, Statement, is_genuine, unpack


@dataclass(slots=True)
class Signed:
    """All signed statements that were seen of a swarm's keys, wherever they were seen."""

    chain_id: bytes
    slots: dict[tuple[bytes, str, int, int], dict[bytes, Statement]] = field(default_factory=dict)
    offsets: dict[Path, int] = field(default_factory=dict)

    def add(self, envelope: Envelope) -> None:
        """Take one in; what its sender did not sign says nothing about it."""
        try:
            statement = envelope.statement
        except MalformedError:
            return
        slot = slot_of(statement)
        if slot is None or envelope.body in self.slots.get((envelope.sender, *slot), ()):
            return
        if is_genuine(envelope, self.chain_id):
            self.slots.setdefault((envelope.sender, *slot), {})[envelope.body] = statement

    def read_frames(self, folder: Path) -> None:
        """Take in what a peer received since the last look."""
        for path in sorted(folder.glob("*")):
            with path.open("rb") as file:
                file.seek(self.offsets.get(path, 0))
                while len(head := file.read(36)) == 36:
                    frame = file.read(size := int.from_bytes(head[:4], "little"))
                    if len(frame) < size:
                        break
                    self.offsets[path] = file.tell()
                    for envelope in envelopes_in(frame):
                        self.add(envelope)

    def read_store(self, peer: Path) -> set[tuple[bytes, str, int, int]]:
        """Take in the statements that a peer's store kept; returns their slots."""
        kept = set()
        for data in records(peer, "slot/"):
            envelope = decode(Envelope, data)
            self.add(envelope)
            slot = slot_of(envelope.statement)
            if slot is not None:
                kept.add((envelope.sender, *slot))
        return kept

    def sent_in(self, sender: bytes, after_round: int) -> set[tuple[bytes, str, int, int]]:
        """The slots after a round that others saw used by this key."""
        return {slot for slot in self.slots if slot[0] == sender and slot[2] > after_round}

    def double(self) -> list[str]:
        """The double signs, in words: two statements for a slot, or a lock denied."""
        found = [
            f"{name_of(sender)} signed {len(said)} {kind}s for round {number}, view {view}"
            for (sender, kind, number, view), said in self.slots.items()
            if len(said) > 1
        ]
        commits: dict[tuple[bytes, int], list[Statement]] = {}
        for (sender, kind, number, _), said in self.slots.items():
            if kind in ("commit", "timeout"):
                commits.setdefault((sender, number), []).extend(said.values())
        for (sender, _), said_by in commits.items():
            for index, first in enumerate(said_by):
                for second in said_by[index + 1 :]:
                    if slot_of(first) != slot_of(second) and (why := contradiction(first, second)):
                        found.append(f"{name_of(sender)} {why}")
        return found


def envelopes_in(frame: bytes) -> list[Envelope]:
    """Return the signed statements that a frame brings."""
    try:
        packet = unpack(frame)
    except MalformedError:
        return []
    held = [getattr(packet, "envelope", None), *getattr(packet, "attestations", ())]
    return [one for one in held if isinstance(one, Envelope)]


def records(peer: Path, prefix: str) -> list[bytes]:
    """Return the records of a stopped peer's store; a copy is opened, the store left as it is."""
    with tempfile.TemporaryDirectory() as scratch:
        for path in peer.glob("protocol.db*"):
            shutil.copy2(path, scratch)
        database = Path(scratch) / "protocol.db"
        if not database.exists():
            return []
        connection = sqlite3.connect(database)
        try:
            rows = connection.execute(
                "SELECT data FROM records WHERE key >= ? AND key < ? ORDER BY key",
                (prefix, prefix + "~"),
            )
            return [bytes(data) for (data,) in rows]
        finally:
            connection.close()


def chain_in(trial: TrialSwarm, name: str) -> dict[int, Certified]:
    """Return the decided rounds in a peer's store."""
    stored = stored_headers(trial.swarm.peer(name))
    items = [decode(Certified, data) for _, data in stored.records]
    return {item.header.round: item for item in items}


@dataclass(frozen=True, slots=True)
class Decided:
    """What the chains and journals of a swarm say about each other."""

    forks: list[str]
    lost: list[str]
    unequal: list[str]
    tip: int


def compare_chains(trial: TrialSwarm, names: Iterable[str]) -> Decided:
    """Hold all stores, journals and snapshots of a stopped swarm against each other."""
    chains = {name: chain_in(trial, name) for name in names}
    forks, lost, unequal = [], [], []
    decided: dict[int, set[bytes]] = {}
    for chain in chains.values():
        for number, item in chain.items():
            decided.setdefault(number, set()).add(item.header.digest)
    forks += [f"round {n}: {len(found)} headers" for n, found in decided.items() if len(found) > 1]
    for name, chain in chains.items():
        for event in trial.events_of(name, events.RoundCommitted):
            item = chain.get(event.round)
            if item is None:
                lost.append(f"{name}: round {event.round} was decided and is not in its store")
            elif item.header.digest.hex() != event.digest:
                forks.append(f"{name}: round {event.round} was decided twice")
        forks += [f"{name} stopped: fork" for _ in trial.events_of(name, events.ForkSeen)]
        for path in trial.swarm.peer(name).states.glob("*.state"):
            item = chain.get(int(path.stem))
            if item is not None and state_root(path.read_bytes()) != item.header.state_root:
                unequal.append(f"{name}: its state of round {int(path.stem)} is another")
    return Decided(forks, lost, unequal, min(max(chain, default=0) for chain in chains.values()))
