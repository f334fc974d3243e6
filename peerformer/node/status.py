"""How one peer is doing, as one JSON object: written to a file that others may read at any time."""

import json
import os
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peerformer.events import RoundCommitted
from peerformer.peer import Peer
from peerformer.protocol.identity import name_of
from peerformer.protocol.machine import Machine
from peerformer.protocol.membership import ROLE_WORDS, SUSPENDED, quorum, tolerated_faults

WITHOUT_QUORUM = "waiting for a quorum"
DISK_FULL = "waiting for room on the disk"


@dataclass(slots=True)
class Tally:
    """Contributions counted from the chain, header by header."""

    counted: int = 0  # the newest round that is
    contributed: Counter[bytes] = field(default_factory=Counter)
    accepted: Counter[bytes] = field(default_factory=Counter)

    def update(self, machine: Machine) -> None:
        """Count the headers that are new."""
        new = max(0, self.counted - machine.chain.base.round)
        for item in machine.chain.items[new:]:
            refused = {entry.peer for entry in item.header.refused}
            for entry in item.header.contributions:
                self.contributed[entry.peer] += 1
                self.accepted[entry.peer] += entry.peer not in refused
            self.contributed.update(refused - {e.peer for e in item.header.contributions})
        self.counted = machine.chain.tip


def phase_of(machine: Machine) -> str:
    """Return in a word what the peer is doing."""
    me = machine.chain.members.get(machine.me)
    current = machine.collection
    if machine.forked:
        return "stopped: fork"
    if machine.me in machine.chain.members.banned:
        return "evicted"
    voters = set(machine.chain.members.voters)
    greeted = machine.neighbourhood.greeted
    if not machine.sync.ready and (greeted or machine.me not in voters):
        return "fetching state" if machine.sync.to_compute is None else "computing the state"
    if me is None:
        return "joining"
    if me.role == SUSPENDED:
        return "suspended"
    if machine.paused:
        return "paused"
    if len(voters & {machine.me, *greeted}) < quorum(len(voters)):
        return WITHOUT_QUORUM
    if me.quarantined_until > current.number:
        return f"quarantined to round {me.quarantined_until - 1}"
    if not current.trained:
        return "training"
    if not current.revealed:
        return "waiting for others"
    if not current.attested:
        return "checking"
    return "voting" if machine.me in voters else "waiting for the vote"


def status_of(peer: Peer, tally: Tally, extra: dict[str, Any]) -> dict[str, Any]:
    """Return the status object of a peer; `extra` is added to it."""
    machine = peer.machine
    tally.update(machine)
    voters = machine.chain.members.voters
    members = [
        {
            "name": name_of(member.peer),
            "peer_id": member.peer.hex(),
            "role": ROLE_WORDS[member.role],
            "connected": member.peer == machine.me or member.peer in machine.neighbourhood.greeted,
            "contributed": tally.contributed[member.peer],
            "accepted": tally.accepted[member.peer],
            "reputation": member.reputation,
            "quarantined_until": member.quarantined_until,
            "strikes": member.strikes,
        }
        for member in machine.chain.members.members
    ]
    return {
        "name": name_of(machine.me),
        "peer_id": machine.me.hex(),
        "chain_id": machine.chain.chain_id.hex(),
        "pid": os.getpid(),
        "round": machine.chain.tip,
        "view": machine.ballot.consensus.view,
        "state": phase_of(machine),
        "state_round": machine.sync.state_round,
        "state_root": machine.chain.state_root.hex(),
        "quorum": quorum(len(voters)),
        "tolerates": tolerated_faults(len(voters)),
        "members": members,
        "banned": [
            {
                "name": name_of(peer),
                "peer_id": peer.hex(),
                "contributed": tally.contributed[peer],
                "accepted": tally.accepted[peer],
            }
            for peer in machine.chain.members.banned
        ],
        **extra,
    }


def utilisation(rounds: Collection[RoundCommitted]) -> float | None:
    """Return the share of the time of these rounds that was spent in training steps."""
    seconds = sum(event.seconds for event in rounds)
    return min(1.0, sum(e.training_seconds for e in rounds) / seconds) if seconds > 0 else None


def write_status(path: Path, status: dict[str, Any]) -> None:
    """Replace the status file; readers see the old or the new one."""
    temporary = path.with_suffix(".part")
    temporary.write_text(json.dumps(status))
    temporary.replace(path)
