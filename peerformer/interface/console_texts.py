"""What the console of a node answers, from plain status objects: no text here asks the network."""

import difflib
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from peerformer.interface.words import words_of
from peerformer.journal import read_journal
from peerformer.node.known_round import KnownRound
from peerformer.node.status import WITHOUT_QUORUM
from peerformer.protocol.certificates import decided_fault
from peerformer.protocol.identity import name_of
from peerformer.protocol.machine import Machine
from peerformer.protocol.membership import peers_of

TEST_HELP = (
    "decide one round on a known gradient, among 4 peers of this program on 127.0.0.1 with "
    "keys of their own and this swarm's limits, codec and rule; then check the certificate of the "
    "swarm's newest round. The swarm's training is not touched"
)


def unknown(word: str, commands: Iterable[str]) -> str:
    """Say that there is no such command."""
    near = difflib.get_close_matches(word.lower(), list(commands), n=1)
    also = f"; did you mean {near[0]}?" if near else "; help lists them"
    return f"no command is called {word!r:.80}{also}"


def stats(status: dict[str, Any], path: Path) -> str:
    """How a peer and its swarm are doing."""
    bits = list(status["bits_per_byte"].values())
    busy = status["utilisation"]
    rows = [
        ("peer", f"{status['name']}  {status['address']}"),
        (
            "swarm",
            f"{len(status['members'])} members, quorum {status['quorum']}, "
            f"tolerates {status['tolerates']}",
        ),
        ("round", f"{status['round']}, {status['state']}"),
        *(("", text) for text in _advice(status["state"], path)),
        ("loss", "–" if status["loss"] is None else f"{status['loss']:.3f}"),
        ("training", "–" if busy is None else f"{100 * busy:.0f} % of the time"),
        ("held out", f"{bits[-1]:.3f} bits per byte" if bits else "–"),
        (
            "traffic",
            f"{status['bytes_sent'] / 1e6:.1f} MB sent, "
            f"{status['bytes_received'] / 1e6:.1f} MB received",
        ),
        ("on disk", f"{status['disk_bytes'] / 1e6:.1f} MB"),
        ("state root", status["state_root"]),
    ]
    if status["hours"]:
        rows.append(("trains", f"{status['hours']}, local time"))
    if status["paused_by"]:
        rows.append(("paused", " and ".join(status["paused_by"])))
    if status["epsilon"] is not None:
        rows.append(("privacy", f"epsilon {status['epsilon']:.3g} spent (docs/privacy.md)"))
    return "\n".join(f"{name:<11} {value}" for name, value in rows)


def _advice(state: str, path: Path) -> list[str]:
    if state != WITHOUT_QUORUM:
        return []
    return ["if too many are gone for good: quit, then", f"peerformer recover {path}"]


def peers(status: dict[str, Any]) -> str:
    """Who belongs to the swarm."""
    lines = [
        f"{row['name']:<18} {row['role']:<9} {_link(row, status):<10} "
        f"accepted {row['accepted']}/{row['contributed']}  reputation {row['reputation']}"
        for row in status["members"]
    ]
    lines += [f"{row['name']:<18} evicted" for row in status["banned"]]
    return "\n".join(lines) or "none yet"


def _link(row: dict[str, Any], status: dict[str, Any]) -> str:
    if row["peer_id"] == status["peer_id"]:
        return "me"
    return "connected" if row["connected"] else "away"


def one_peer(row: dict[str, Any], address: str | None) -> str:
    """All about one member."""
    shown = {**row, "address": address or "not connected"}
    return "\n".join(f"{name.replace('_', ' '):<18} {value}" for name, value in shown.items())


def newest_round(machine: Machine) -> str:
    """Check the newest decided round from its bytes."""
    chain = machine.chain
    item = chain.item(chain.tip)
    if item is None:
        return "the swarm: no round is decided yet"
    voters = chain.past_members[chain.tip].voters
    fault = decided_fault(item, voters, chain.chain_id)
    signers = peers_of(voters, item.certificate.signers) or ()
    names = ", ".join(name_of(peer) for peer in signers)
    mine = machine.sync.state_round == chain.tip
    lines = [
        f"the swarm: round {chain.tip}, view {item.certificate.view}: "
        f"{fault or 'the certificate holds'}",
        f"  signed by {len(signers)} of {len(voters)}: {names}",
        f"  state root {item.header.state_root.hex()}"
        + ("  computed here too" if mine else "  not installed here yet"),
    ]
    return "\n".join(lines)


def known_round(known: KnownRound) -> str:
    """Tell a round on a known gradient, vote by vote."""
    lines = [
        f"the test: one round on a known gradient, codec {known.codec}, rule {known.rule}, "
        f"{known.blob_size} bytes a contribution"
    ]
    lines += [f"  {said.milliseconds:8.1f} ms  {said.kind:<13} {said.name}" for said in known.heard]
    peers = len(known.roots)
    signed = ", ".join(known.signers)
    holds = known.certificate_fault or "holds"
    lines += [
        f"  {known.milliseconds:8.1f} ms  all {peers} peers hold the state {known.roots[0][:16]}…",
        f"  certificate {holds}: {len(known.signers)} of {peers} signed: {signed}",
        f"  largest difference from the known answer: {known.difference_max} units of 2^-24",
        f"  {'PASSED' if known.fault is None else 'FAILED: ' + known.fault}",
    ]
    return "\n".join(lines)


def newest_events(journal: Path, count: int) -> str:
    """Return the last events of a journal that are news to a person."""
    lines: deque[str] = deque(maxlen=count)
    for event in read_journal(journal):
        words = words_of(event)
        if words is not None:
            lines.append(f"{event.time[11:19]}  {words}")
    return "\n".join(lines) or "nothing has happened yet"
