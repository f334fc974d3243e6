"""What a scripted story may expect, by the words that stories use for it.

Each expectation looks at the stage as it stands and returns what it found instead, or None. What
the peers agree on (members, evictions, refusals) is looked up with every honest peer that is up.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

from peerformer.events import CheckpointAwaited, Misbehaved, SyncFinished
from peerformer.protocol.conduct import describe
from peerformer.protocol.machine import Machine
from peerformer.protocol.membership import Member, subject_of
from peerformer.protocol.merkle import state_root
from peerformer.protocol.messages import Certified, Eviction
from peerformer.protocol.refusals import REFUSAL_WORDS
from peerformer.simulate.stage import Stage

Peers = tuple[int, ...]


def decided(stage: Stage, number: int, peers: Peers) -> str | None:
    """These peers decided a round."""
    late = [peer for peer in peers if stage.world.tip(peer) < number]
    return f"not by {_list(late)}" if late else None


def undecided(stage: Stage, number: int, peers: Peers | None) -> str | None:
    """Nobody honest, or none of these, decided a round."""
    watched = [host.index for host in stage.running()] if peers is None else list(peers)
    early = [peer for peer in watched if stage.world.tip(peer) >= number]
    return f"decided by {_list(early)}" if early else None


def view_of(stage: Stage, number: int, view: int) -> str | None:
    """A round was decided in this view."""
    seen = stage.world.invariants.view_of.get(number)
    return None if seen == view else f"it is {seen}"


def view_at_most(stage: Stage, number: int, view: int) -> str | None:
    """A round was decided in this view, or in an earlier one."""
    seen = stage.world.invariants.view_of.get(number)
    return None if seen is not None and seen <= view else f"it is {seen}"


def built(stage: Stage, number: int, peer: int) -> str | None:
    """The header decided was built by this peer, whoever led when it was decided."""
    return _of_round(stage, number, lambda item: _by(stage, item.header.builder, peer))


def accepted(stage: Stage, number: int, peers: Peers) -> str | None:
    """A round's update is made of these contributions."""

    def differs(item: Certified) -> str | None:
        found = _indices(stage, (entry.peer for entry in item.header.contributions))
        return None if found == sorted(peers) else f"made of {_list(found)}"

    return _of_round(stage, number, differs)


def refused(stage: Stage, peer: int, number: int | None, words: str) -> str | None:
    """A contribution of this peer was refused in these words, in this round or in any."""
    seen: list[str] = []
    for item in _decided(stage):
        for entry in item.header.refused:
            of_round = number in (None, item.header.round)
            if of_round and entry.peer == stage.world.hosts[peer].me:
                seen.append(REFUSAL_WORDS[entry.reason])
    return None if words in seen else _instead(seen, "it was not refused")


def nobody_refused(stage: Stage) -> str | None:
    """Nothing was refused in any round."""
    found = _indices(stage, (r.peer for item in _decided(stage) for r in item.header.refused))
    return f"{_list(found)} was" if found else None


def evicted(stage: Stage, peer: int, words: str) -> str | None:
    """Everybody evicted this peer on evidence that begins with these words."""
    seen = [words for index, words in _evictions(stage) if index == peer]
    if not any(found.startswith(words) for found in seen):
        return _instead(seen, "it was not evicted")
    return banned(stage, peer)


def nobody_evicted(stage: Stage) -> str | None:
    """No round evicted anybody."""
    found = [f"{index} was: {words}" for index, words in _evictions(stage)]
    return "; ".join(found) or None


def banned(stage: Stage, peer: int) -> str | None:
    """This peer's key may never join again."""
    me = stage.world.hosts[peer].me
    trusting = [i for i, machine in _machines(stage) if me not in machine.chain.members.banned]
    return f"not with {_list(trusting)}" if trusting else None


def members(stage: Stage, peers: Peers) -> str | None:
    """The members of the open round are these."""
    return _same_peers(stage, peers, lambda m: [one.peer for one in m.chain.members.members])


def voters(stage: Stage, peers: Peers) -> str | None:
    """The voters of the open round are these."""
    return _same_peers(stage, peers, lambda m: list(m.chain.members.voters))


def quarantined(stage: Stage, peer: int) -> str | None:
    """This peer gets no slot for a while."""
    return _standing(stage, peer, lambda one, number: one.quarantined_until >= number)


def in_good_standing(stage: Stage, peer: int) -> str | None:
    """This peer is a member and is not quarantined."""
    return _standing(stage, peer, lambda one, number: one.quarantined_until < number)


def locked(stage: Stage, peers: Peers, view: int) -> str | None:
    """These peers are locked in this view of their open round."""
    found = {peer: _lock(stage, peer) for peer in peers}
    wrong = [f"{peer}: {seen}" for peer, seen in found.items() if seen != view]
    return f"locks found: {', '.join(wrong)}" if wrong else None


def unlocked(stage: Stage, peers: Peers) -> str | None:
    """These peers are locked on nothing in their open round."""
    bound = [peer for peer in peers if _lock(stage, peer) is not None]
    return f"{_list(bound)} is locked" if bound else None


def in_view(stage: Stage, peers: Peers, view: int) -> str | None:
    """These peers are in this view of their open round."""
    found = {peer: stage.machine(peer) for peer in peers}
    wrong = [
        f"{peer}: {machine.ballot.consensus.view if machine else 'down'}"
        for peer, machine in found.items()
        if machine is None or machine.ballot.consensus.view != view
    ]
    return ", ".join(wrong) or None


def leads(stage: Stage, peer: int, number: int, view: int) -> str | None:
    """It is this peer's turn in a view of the open round."""
    for _, machine in _machines(stage):
        if machine.ballot.number == number:
            return _by(stage, machine.ballot.leader(view), peer)
    return f"round {number} is not open"


def said(stage: Stage, peer: int, kind: str, number: int, view: int | None) -> str | None:
    """An honest peer said this."""
    return None if _has_said(stage, peer, kind, number, view) else "it did not"


def never_said(stage: Stage, peer: int, kind: str, number: int, view: int | None) -> str | None:
    """An honest peer never said this."""
    return "it did" if _has_said(stage, peer, kind, number, view) else None


def blamed(stage: Stage, peer: int, peers: Peers, words: str) -> str | None:
    """These peers noticed that this one sent something false, in words that contain these."""
    culprit = stage.world.hosts[peer].me.hex()
    for watcher in peers:
        reports = stage.world.hosts[watcher].reports
        seen = [r.reason for r in reports if isinstance(r, Misbehaved) and r.peer == culprit]
        if not any(words in reason for reason in seen):
            return f"by {watcher}: " + _instead(sorted(set(seen)), "not at all")
    return None


def same_state(stage: Stage, peers: Peers) -> str | None:
    """Each holds, byte for byte, the state that the newest round or the one before it names."""
    tip = stage.tip()
    for peer in peers:
        participant = stage.world.hosts[peer].peer
        if participant is None:
            return f"{peer} is down"
        number, state = stage.world.replicas.state_of(participant.bench)
        if number < max(1, tip - 1):
            return f"{peer} is at round {number} of {tip}"
        fault = _of_round(stage, number, partial(_differs, state_root(state)))
        if fault:
            return f"{peer} {fault} in round {number}"
    return None


def _differs(root: bytes, item: Certified) -> str | None:
    return None if item.header.state_root == root else "differs"


def caught_up(stage: Stage, peer: int) -> str | None:
    """This peer is at most one round behind, with its state installed."""
    machine, tip = stage.machine(peer), stage.tip()
    if machine is None:
        return "it is down"
    number = min(machine.chain.tip, machine.sync.state_round)
    return None if number >= tip - 1 else f"its state is of round {number}, others are at {tip}"


def begins(stage: Stage, peer: int, number: int) -> str | None:
    """This peer's chain begins after a round."""
    machine = stage.machine(peer)
    if machine is None:
        return "it has no chain"
    base = machine.chain.base.round
    return None if base == number else f"it begins after round {base}"


def awaits_checkpoint(stage: Stage, peer: int, words: str) -> str | None:
    """This peer has no chain yet, and its last report of that contains these words."""
    host = stage.world.hosts[peer]
    if host.anchoring is None:
        return "it is up with a chain" if host.peer else "it is down"
    seen = [r.reason for r in host.reports if isinstance(r, CheckpointAwaited)]
    return None if seen and words in seen[-1] else _instead(seen, "it did not say so")


def fetched_state(stage: Stage, peer: int) -> str | None:
    """This peer fetched a proven state instead of computing it."""
    reports = stage.world.hosts[peer].reports
    return None if any(isinstance(r, SyncFinished) for r in reports) else "it did not"


def retired(stage: Stage, peer: int) -> str | None:
    """This peer's key must not vote any more: its disk is lost."""
    return None if stage.world.hosts[peer].retired else "it is not"


def down(stage: Stage, peers: Peers) -> str | None:
    """These peers do not run."""
    running = [peer for peer in peers if stage.world.hosts[peer].peer is not None]
    return f"{_list(running)} is up" if running else None


def stopped(stage: Stage, peers: Peers) -> str | None:
    """These peers saw two certificates for one round, and stopped."""
    going = [p for p in peers if (machine := stage.machine(p)) is None or not machine.forked]
    return f"{_list(going)} goes on" if going else None


EXPECTATIONS: dict[str, Callable[..., str | None]] = {
    "decided round N by PEERS": decided,
    "not decided round N [by PEERS]": undecided,
    "view of round N is N": view_of,
    "view of round N is at most N": view_at_most,
    "built round N by PEER": built,
    "accepted in round N: PEERS": accepted,
    "refused PEER [in round N]: WORDS": refused,
    "nobody refused": nobody_refused,
    "evicted PEER: WORDS": evicted,
    "nobody evicted": nobody_evicted,
    "banned PEER": banned,
    "members PEERS": members,
    "voters PEERS": voters,
    "quarantined PEER": quarantined,
    "in good standing PEER": in_good_standing,
    "locked PEERS view N": locked,
    "unlocked PEERS": unlocked,
    "in view PEERS view N": in_view,
    "leads PEER in round N view N": leads,
    "said PEER KIND in round N [view N]": said,
    "never said PEER KIND in round N [view N]": never_said,
    "blamed PEER by PEERS: WORDS": blamed,
    "same state PEERS": same_state,
    "caught up PEER": caught_up,
    "begins PEER after round N": begins,
    "awaits its checkpoint PEER: WORDS": awaits_checkpoint,
    "fetched state PEER": fetched_state,
    "retired PEER": retired,
    "down PEERS": down,
    "stopped PEERS": stopped,
}


# --- looking -----------------------------------------------------------------------------------


def _machines(stage: Stage) -> list[tuple[int, Machine]]:
    found = [(host.index, host.machine) for host in stage.running()]
    return [(index, machine) for index, machine in found if machine is not None]


def _decided(stage: Stage) -> Sequence[Certified]:
    """Return the longest chain of an honest peer; the invariants compare the chains."""
    chains: list[Sequence[Certified]] = [machine.chain.items for _, machine in _machines(stage)]
    return max(chains, key=len, default=[])


def _of_round(stage: Stage, number: int, judge: Callable[[Certified], str | None]) -> str | None:
    found = (machine.chain.item(number) for _, machine in _machines(stage))
    item = next(filter(None, found), None)
    return judge(item) if item is not None else "it is not decided"


def _evictions(stage: Stage) -> Iterator[tuple[int, str]]:
    for item in _decided(stage):
        for operation in item.header.operations:
            if isinstance(operation, Eviction):
                (index,) = _indices(stage, (subject_of(operation),))
                yield index, describe(operation.evidence)


def _indices(stage: Stage, ids: Iterator[bytes] | tuple[bytes, ...] | list[bytes]) -> list[int]:
    return sorted({stage.world.by_id[peer][0].index for peer in ids})


def _by(stage: Stage, found: bytes, peer: int) -> str | None:
    (index,) = _indices(stage, (found,))
    return None if index == peer else f"by {index}"


def _same_peers(stage: Stage, peers: Peers, ids_of: Callable[[Machine], list[bytes]]) -> str | None:
    for index, machine in _machines(stage):
        found = _indices(stage, ids_of(machine))
        if found != sorted(peers):
            return f"for {index}: {_list(found)}"
    return None


def _standing(stage: Stage, peer: int, fits: Callable[[Member, int], bool]) -> str | None:
    for index, machine in _machines(stage):
        member = machine.chain.members.get(stage.world.hosts[peer].me)
        if member is None:
            return f"for {index} it is no member"
        if not fits(member, machine.chain.tip + 1):
            return f"for {index}: reputation {member.reputation}"
    return None


def _lock(stage: Stage, peer: int) -> int | None:
    machine = stage.machine(peer)
    high = machine.ballot.consensus.high if machine else None
    return high.view if high else None


def _has_said(stage: Stage, peer: int, kind: str, number: int, view: int | None) -> bool:
    slot = (kind, number, view or 0)
    return (stage.world.hosts[peer].me, slot) in stage.world.invariants.said


def _list(peers: list[int]) -> str:
    return ",".join(map(str, peers)) or "nobody"


def _instead(seen: list[str], nothing: str) -> str:
    return "; ".join(seen) or nothing
