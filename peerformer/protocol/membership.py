"""Who belongs to the swarm: agreed state that moves from round to round by the header alone.

`next_members(members, header, limits)` is a pure function, so everybody who knows the headers knows
the members, their standing and the banned. A change decided in round r takes effect in round r + 1.

A *voter* contributes, attests and votes; a *guest* only contributes. A voter that no header counts
among its attesters for `idle_rounds_max` rounds in a row is *suspended*: the quorum is counted
without it, or a swarm whose laptops went to bed one by one would stop for good. It keeps its
membership and its standing, which stands still, and votes again once it says that it is back. The
last voters are never suspended. Reputation costs slots and order, never the vote. Who left lately
is remembered for as long as a request to join is valid: it can still be convicted of what it did.

Whoever vouched for a peer answers for it: when that peer is evicted, each of its vouchers that is
a member still gets a *strike*. It loses as much reputation as for a harmful contribution, even
while it is quarantined or suspended, and none of its vouchers counts for the next 100 rounds.
"""

from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Annotated

from peerformer.protocol.audits import AUDIT_ROUNDS, AUDITS_MAX, Audit, draw_audits
from peerformer.protocol.codec import U8, U16, U32, U64, Hash, Many, PeerId, encode
from peerformer.protocol.committee import drawn
from peerformer.protocol.conduct import accused_of
from peerformer.protocol.genesis import Genesis, Limits
from peerformer.protocol.identity import hash_of
from peerformer.protocol.messages import (
    MEMBERS_MAX,
    VOTERS_MAX,
    VOUCHERS_MAX,
    Admission,
    Departure,
    Eviction,
    Header,
    Join,
    Operation,
    Return,
)
from peerformer.protocol.refusals import (
    AUDIT,
    BAD,
    EQUIVOCATED,
    HARMFUL,
    NO_SLOT,
    NORM,
    QUARANTINED,
)

VOTER, GUEST, SUSPENDED = 0, 1, 2
ROLE_WORDS = ("voter", "guest", "suspended")

REPUTATION_START = 500
REPUTATION_MAX = 1_000
REPUTATION_QUARANTINE = 200  # below it a member gets no slot for a while
REPUTATION_AFTER_QUARANTINE = 250
QUARANTINE_ROUNDS = 8
ACCEPTED_GAIN, AUDIT_LOSS, HARM_LOSS, SILENCE_LOSS = 10, 300, 100, 5
EPOCH_ROUNDS = 100  # a request to join is valid, and quotas count, for so many rounds
STRIKE_ROUNDS = 100  # whoever vouched for an evicted peer may not vouch for so many rounds
STRIKES_MAX = (1 << 16) - 1


Vouchers = Annotated[tuple[PeerId, ...], Many(VOUCHERS_MAX)]


@dataclass(frozen=True, slots=True)
class Member:
    """One member's standing."""

    peer: PeerId
    role: U8
    chain_anchor: Hash
    joined: U64  # the first round it belongs to
    reputation: U32
    quarantined_until: U64  # no slot in rounds before this one
    idle_rounds: U32  # without an attestation in a header, the last ones in a row
    suspended_from: U64 = 0  # the first round of its suspension; 0 if it is not suspended
    vouched_by: Vouchers = ()  # who answers for its conduct; nobody for a founder
    strikes: U16 = 0  # so many peers that it vouched for were evicted
    barred_until: U64 = 0  # may not vouch in rounds before this one


@dataclass(frozen=True, slots=True)
class Departed:
    """Somebody that left lately."""

    peer: PeerId
    left: U64  # the round whose header let it go
    vouched_by: Vouchers = ()


@dataclass(frozen=True)
class Members:
    """The members of one round, sorted by id, the banned keys, and who left lately."""

    members: Annotated[tuple[Member, ...], Many(MEMBERS_MAX)]
    banned: Annotated[tuple[PeerId, ...], Many(MEMBERS_MAX)]
    departed: Annotated[tuple[Departed, ...], Many(MEMBERS_MAX)] = ()
    committee: Annotated[tuple[PeerId, ...], Many(VOTERS_MAX)] = ()  # who votes; none: all voters
    drawn: Annotated[tuple[PeerId, ...], Many(VOTERS_MAX)] = ()  # who contributes; none: all
    audits: Annotated[tuple[Audit, ...], Many(AUDITS_MAX)] = ()  # of the last rounds

    @cached_property
    def hash(self) -> bytes:
        """The hash that headers carry."""
        return hash_of("members", encode(self))

    @cached_property
    def voters(self) -> tuple[bytes, ...]:
        """The ids of those who vote in this round, sorted."""
        return self.committee or self.electorate

    @cached_property
    def electorate(self) -> tuple[bytes, ...]:
        """The ids of all voters, sorted, whether or not they were drawn to vote."""
        return tuple(member.peer for member in self.members if member.role == VOTER)

    @cached_property
    def circle(self) -> tuple[bytes, ...]:
        """The ids of all that have work in this round, sorted; empty where all talk to all."""
        return tuple(sorted({*self.voters, *self.contributors})) if self.committee else ()

    @cached_property
    def ids(self) -> tuple[bytes, ...]:
        """The ids of all members, sorted."""
        return tuple(member.peer for member in self.members)

    @cached_property
    def contributors(self) -> tuple[bytes, ...]:
        """The ids of those that may contribute in this round, sorted: with or without a vote."""
        able = (member.peer for member in self.members if member.role != SUSPENDED)
        return self.drawn or tuple(able)

    def get(self, peer: bytes) -> Member | None:
        """Return the member with this id, if it is one."""
        return self._by_peer.get(peer)

    @cached_property
    def _by_peer(self) -> dict[bytes, Member]:
        return {member.peer: member for member in self.members}

    def departure_of(self, peer: bytes) -> Departed | None:
        """Return how a peer left, if it did lately."""
        return next((entry for entry in self.departed if entry.peer == peer), None)

    def vouchers_of(self, peer: bytes) -> tuple[bytes, ...]:
        """Return who vouched for a member, or for one that left lately."""
        entry = self.get(peer) or self.departure_of(peer)
        return entry.vouched_by if entry is not None else ()

    def is_accountable(self, peer: bytes) -> bool:
        """Tell whether evidence against a peer has any effect: it is a member, or was lately."""
        return self.get(peer) is not None or self.departure_of(peer) is not None


def tolerated_faults(voters: int) -> int:
    """Return f, the Byzantine voters that n voters withstand."""
    return (voters - 1) // 3


def quorum(voters: int) -> int:
    """Return the votes that decide: strictly more than two thirds, in integers."""
    return 2 * voters // 3 + 1


@lru_cache(maxsize=4)
def founders(genesis: Genesis) -> Members:
    """Return the members of round 1."""
    founding = tuple(
        Member(founder.peer, VOTER, founder.chain_anchor, 1, REPUTATION_START, 0, 0)
        for founder in genesis.founders
    )
    return _at_work(Members(founding, ()), (), first_beacon(genesis), 1, genesis.limits)


def first_beacon(genesis: Genesis) -> bytes:
    """Return the beacon that round 1 draws from."""
    return hash_of("beacon", genesis.chain_id)


def bits_of(voters: tuple[bytes, ...], chosen: set[bytes] | frozenset[bytes]) -> bytes:
    """Return the bitmap of `chosen` among `voters`, as short as the voters allow."""
    bitmap = bytearray(-(-len(voters) // 8))
    for index, voter in enumerate(voters):
        if voter in chosen:
            bitmap[index // 8] |= 1 << index % 8
    return bytes(bitmap)


def peers_of(voters: tuple[bytes, ...], bitmap: bytes) -> tuple[bytes, ...] | None:
    """Return the voters of a bitmap, or None if it is not the canonical one of any subset."""
    if len(bitmap) != -(-len(voters) // 8):
        return None
    if len(voters) % 8 and bitmap[-1] >> len(voters) % 8:
        return None
    return tuple(v for index, v in enumerate(voters) if bitmap[index // 8] >> index % 8 & 1)


def subject_of(operation: Operation) -> bytes:
    """Return the peer that an operation is about."""
    match operation:
        case Eviction(evidence):
            return accused_of(evidence)
        case Departure(leave):
            return leave.sender
        case Return(rejoin):
            return rejoin.sender
        case Admission(join, _):
            return join.sender


def next_members(members: Members, header: Header, limits: Limits) -> Members:
    """Return the members of the round after `header`, whose operations are valid and distinct."""
    accepted = {entry.peer for entry in header.contributions}
    refused = {entry.peer: entry.reason for entry in header.refused}
    attesters = set(peers_of(members.voters, header.attesters) or ())
    attesters |= set(members.electorate) - set(members.voters)  # nobody waited for theirs
    spared = set(members.ids) - set(members.contributors) | _auditors(members, header.round)
    evicted = [subject_of(op) for op in header.operations if isinstance(op, Eviction)]
    struck = Counter(voucher for peer in evicted for voucher in members.vouchers_of(peer))
    by_peer = {}
    for member in members.members:
        member = _struck(member, struck[member.peer], header.round + 1)
        by_peer[member.peer] = _next_member(member, header, accepted, refused, attesters, spared)
    banned, number = set(members.banned), header.round + 1
    departed = {e.peer: e for e in members.departed if e.left + EPOCH_ROUNDS > number}
    for operation in header.operations:
        subject = subject_of(operation)
        match operation:
            case Eviction():
                by_peer.pop(subject, None)
                departed.pop(subject, None)
                banned.add(subject)
            case Departure():
                by_peer.pop(subject, None)
                departed[subject] = Departed(subject, header.round, members.vouchers_of(subject))
            case Return():
                by_peer[subject] = _returned(by_peer[subject], number)
            case Admission():
                departed.pop(subject, None)
                by_peer[subject] = _admitted(operation, by_peer.get(subject), number)
    _suspend_idle(by_peer, number, limits)
    after = Members(
        tuple(by_peer[peer] for peer in sorted(by_peer)),
        tuple(sorted(banned)),
        tuple(departed[peer] for peer in sorted(departed)),
    )
    after = _at_work(after, members.committee, header.beacon, number, limits)
    return replace(after, audits=_next_audits(members, after, header, limits))


def _auditors(members: Members, round_number: int) -> set[bytes]:
    """Return whose findings are due in a round."""
    due = (audit for audit in members.audits if audit.round + AUDIT_ROUNDS == round_number)
    return {auditor for audit in due for auditor in audit.auditors}


def _next_audits(
    members: Members, after: Members, header: Header, limits: Limits
) -> tuple[Audit, ...]:
    """Return the audits that are still to be told of, and those of the round just decided."""
    if not limits.audit_permille:
        return ()
    kept = (audit for audit in members.audits if audit.round + AUDIT_ROUNDS > header.round)
    made = draw_audits(
        header.contributions, after.voters, header.beacon, header.round, limits.audit_permille
    )
    return tuple(audit for audit in (*kept, *made) if after.get(audit.peer) is not None)


def _at_work(
    members: Members, before: tuple[bytes, ...], beacon: bytes, number: int, limits: Limits
) -> Members:
    """Return the members with those drawn who vote and who contribute in a round.

    A committee serves an epoch; whoever of it is gone is missed until a third is, or the epoch
    ends, when another is drawn.
    """
    size, slots = limits.committee_size, 2 * limits.contributions_max
    electorate, committee = set(members.electorate), tuple[bytes, ...]()
    if len(electorate) > size:
        committee = tuple(peer for peer in before if peer in electorate)
        if number % limits.committee_rounds == 0 or 3 * len(committee) < 2 * size:
            committee = drawn(members.electorate, beacon, "committee", size)
    crowded = bool(committee) and len(members.contributors) > slots
    able = drawn(members.contributors, beacon, "contributors", slots) if crowded else ()
    return replace(members, committee=committee, drawn=able)


def _suspend_idle(by_peer: dict[bytes, Member], number: int, limits: Limits) -> None:
    """Suspend from a round on the voters that were idle for too long, unless all were."""
    voters = [member for member in by_peer.values() if member.role == VOTER]
    longest = limits.idle_rounds_max
    idle = [member for member in voters if longest and member.idle_rounds >= longest]
    if len(idle) < len(voters):
        for member in idle:
            by_peer[member.peer] = replace(member, role=SUSPENDED, suspended_from=number)


def _returned(member: Member, number: int) -> Member:
    """Return a suspended member as the voter it is from a round on; a quarantine starts anew."""
    until = number + QUARANTINE_ROUNDS if member.quarantined_until else 0
    return replace(member, role=VOTER, suspended_from=0, idle_rounds=0, quarantined_until=until)


def _struck(member: Member, times: int, number: int) -> Member:
    """Return a member after so many strikes, the effect of which begins with a round."""
    if not times:
        return member
    return replace(
        member,
        reputation=max(0, member.reputation - times * HARM_LOSS),
        strikes=min(member.strikes + times, STRIKES_MAX),
        barred_until=number + STRIKE_ROUNDS,
    )


def _admitted(admission: Admission, before: Member | None, number: int) -> Member:
    """Return the member that a join makes from a round on; a guest keeps its standing.

    Those who vouch for the vote of a guest answer for it from then on, instead of the others.
    """
    join = admission.join.statement
    assert isinstance(join, Join)
    return Member(
        peer=admission.join.sender,
        role=join.role,
        chain_anchor=join.chain_anchor,
        joined=number,
        reputation=before.reputation if before else REPUTATION_START,
        quarantined_until=before.quarantined_until if before else 0,
        idle_rounds=0,
        vouched_by=tuple(voucher.sender for voucher in admission.vouchers),
    )


def _next_member(
    member: Member,
    header: Header,
    accepted: set[bytes],
    refused: dict[bytes, int],
    attesters: set[bytes],
    spared: set[bytes],
) -> Member:
    if member.role == SUSPENDED:
        return member
    reason = refused.get(member.peer)
    change = -SILENCE_LOSS
    if reason == AUDIT:
        change = -AUDIT_LOSS
    elif reason in (BAD, HARMFUL, EQUIVOCATED):
        change = -HARM_LOSS
    elif reason in (QUARANTINED, NO_SLOT, NORM) or not header.contributions:
        change = 0  # it contributed but could not earn anything, or the round was a null one
    elif member.peer in spared and member.peer not in accepted:
        change = 0  # it was not its turn, or it had a training of another's to repeat first
    elif member.peer in accepted:
        change = ACCEPTED_GAIN
    reputation = min(max(member.reputation + change, 0), REPUTATION_MAX)
    until = member.quarantined_until
    if until > header.round + 1:
        reputation = member.reputation  # frozen while it serves its quarantine
    elif until == header.round + 1:
        reputation, until = REPUTATION_AFTER_QUARANTINE, 0
    elif reputation < REPUTATION_QUARANTINE:
        until = header.round + 1 + QUARANTINE_ROUNDS
    return replace(
        member,
        chain_anchor=header.reveal if member.peer == header.builder else member.chain_anchor,
        reputation=reputation,
        quarantined_until=until,
        idle_rounds=0 if member.peer in attesters else member.idle_rounds + 1,
    )
