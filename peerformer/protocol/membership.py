"""Who belongs to the swarm: agreed state that moves from round to round by the header alone.

`next_members(members, header)` is a pure function, so everybody who knows the headers knows the
members, their standing and the banned. A change decided in round r takes effect in round r + 1.
Reputation costs slots and order, never the vote.
"""

from dataclasses import dataclass, replace
from typing import Annotated

from peerformer.protocol.codec import U8, U32, U64, Hash, Many, PeerId, encode
from peerformer.protocol.conduct import culprit_of
from peerformer.protocol.genesis import ADMISSION_OPEN, Genesis
from peerformer.protocol.identity import hash_of
from peerformer.protocol.messages import (
    MEMBERS_MAX,
    Admission,
    Departure,
    Envelope,
    Eviction,
    Header,
    Join,
    Leave,
    Operation,
    Voucher,
    is_genuine,
)
from peerformer.protocol.refusals import BAD, EQUIVOCATED, HARMFUL, NORM, QUARANTINED

VOTER, GUEST = 0, 1
ROLE_WORDS = ("voter", "guest")

REPUTATION_START = 500
REPUTATION_MAX = 1_000
REPUTATION_QUARANTINE = 200  # below it a member gets no slot for a while
REPUTATION_AFTER_QUARANTINE = 250
QUARANTINE_ROUNDS = 8
ACCEPTED_GAIN, HARM_LOSS, SILENCE_LOSS = 10, 100, 5
EPOCH_ROUNDS = 100  # a request to join or leave is valid for so many rounds


@dataclass(frozen=True, slots=True)
class Member:
    """One member's standing."""

    peer: PeerId
    role: U8
    chain_anchor: Hash
    joined: U64  # the first round it belongs to
    reputation: U32
    quarantined_until: U64  # no slot in rounds before this one
    idle_rounds: U32


@dataclass(frozen=True, slots=True)
class Members:
    """The members of one round, sorted by id, and the banned keys."""

    members: Annotated[tuple[Member, ...], Many(MEMBERS_MAX)]
    banned: Annotated[tuple[PeerId, ...], Many(MEMBERS_MAX)]

    @property
    def hash(self) -> bytes:
        """The hash that headers carry."""
        return hash_of("members", encode(self))

    @property
    def voters(self) -> tuple[bytes, ...]:
        """The ids of the voters, sorted."""
        return tuple(member.peer for member in self.members if member.role == VOTER)

    @property
    def contributors(self) -> tuple[bytes, ...]:
        """The ids of those that may contribute, sorted: with or without a vote."""
        return tuple(member.peer for member in self.members)

    def get(self, peer: bytes) -> Member | None:
        """Return the member with this id, if it is one."""
        return next((member for member in self.members if member.peer == peer), None)


def tolerated_faults(voters: int) -> int:
    """Return f, the Byzantine voters that n voters withstand."""
    return (voters - 1) // 3


def quorum(voters: int) -> int:
    """Return the votes that decide: strictly more than two thirds, in integers."""
    return 2 * voters // 3 + 1


def founders(genesis: Genesis) -> Members:
    """Return the members of round 1."""
    return Members(
        tuple(
            Member(founder.peer, VOTER, founder.chain_anchor, 1, REPUTATION_START, 0, 0)
            for founder in genesis.founders
        ),
        (),
    )


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


def operation_fault(
    operation: Operation, members: Members, genesis: Genesis, chain_id: bytes, round_number: int
) -> str | None:
    """Return why an operation may not stand in the header of this round, or None if it may."""
    match operation:
        case Eviction(evidence):
            culprit = culprit_of(evidence, chain_id)
            return None if culprit and members.get(culprit) else "evidence convicts no member"
        case Departure(leave):
            member = members.get(leave.sender)
            if not is_genuine(leave, chain_id) or not isinstance(leave.statement, Leave):
                return "not a genuine leave"
            if member is None or not member.joined <= leave.statement.round <= round_number:
                return "leave of nobody, or of another membership"
            return None
        case Admission(join, vouchers):
            return _admission_fault(join, vouchers, members, genesis, chain_id, round_number)


def _admission_fault(
    join: Envelope,
    vouchers: tuple[Envelope, ...],
    members: Members,
    genesis: Genesis,
    chain_id: bytes,
    round_number: int,
) -> str | None:
    if genesis.limits.admission != ADMISSION_OPEN:
        return "admission is closed"
    if not is_genuine(join, chain_id) or not isinstance(join.statement, Join):
        return "not a genuine request to join"
    if not join.statement.round <= round_number < join.statement.round + EPOCH_ROUNDS:
        return "request to join is too old"
    if join.statement.role not in (VOTER, GUEST):
        return "a role that nobody joins in"
    present = members.get(join.sender)
    if join.sender in members.banned or (present and not _promotes(join.statement, present)):
        return "already a member, or banned"
    if present is None and len(members.members) + len(members.banned) >= MEMBERS_MAX // 2:
        return "the swarm is full"
    voters, vouching = set(members.voters), set()
    for voucher in vouchers:
        fits = voucher.sender in voters and is_genuine(voucher, chain_id)
        if not fits or voucher.statement != Voucher(join_hash(join)):
            return "a voucher that is not one"
        vouching.add(voucher.sender)
    enough = len(vouching) >= genesis.limits.vouchers and len(vouching) == len(vouchers)
    return None if enough else "too few vouchers"


def _promotes(join: Join, present: Member) -> bool:
    """Tell whether a guest asks for the vote; a request from before it was a guest is void."""
    return present.role == GUEST and join.role == VOTER and join.round >= present.joined


def join_hash(join: Envelope) -> bytes:
    """Return what a voucher names."""
    return hash_of("join", encode(join))


def subject_of(operation: Operation) -> bytes:
    """Return the peer that an operation is about."""
    match operation:
        case Eviction(evidence):
            return evidence.first.sender
        case Departure(leave):
            return leave.sender
        case Admission(join, _):
            return join.sender


def next_members(members: Members, header: Header) -> Members:
    """Return the members of the round after `header`, whose operations are valid and distinct."""
    accepted = {entry.peer for entry in header.contributions}
    refused = {entry.peer: entry.reason for entry in header.refused}
    attesters = set(peers_of(members.voters, header.attesters) or ())
    standing = [
        _next_member(member, header, accepted, refused, attesters) for member in members.members
    ]
    by_peer = {member.peer: member for member in standing}
    banned = set(members.banned)
    for operation in header.operations:
        match operation:
            case Eviction(evidence):
                by_peer.pop(evidence.first.sender, None)
                banned.add(evidence.first.sender)
            case Departure(leave):
                by_peer.pop(leave.sender, None)
            case Admission(join, _):
                by_peer[join.sender] = _admitted(join, by_peer.get(join.sender), header.round + 1)
    return Members(tuple(by_peer[peer] for peer in sorted(by_peer)), tuple(sorted(banned)))


def _admitted(join: Envelope, before: Member | None, number: int) -> Member:
    """Return the member that a join makes from a round on; a guest keeps its standing."""
    statement = join.statement
    assert isinstance(statement, Join)
    fresh = Member(
        join.sender, statement.role, statement.chain_anchor, number, REPUTATION_START, 0, 0
    )
    if before is None:
        return fresh
    return replace(fresh, reputation=before.reputation, quarantined_until=before.quarantined_until)


def _next_member(
    member: Member,
    header: Header,
    accepted: set[bytes],
    refused: dict[bytes, int],
    attesters: set[bytes],
) -> Member:
    reason = refused.get(member.peer)
    change = -SILENCE_LOSS
    if reason in (BAD, HARMFUL, EQUIVOCATED):
        change = -HARM_LOSS
    elif member.peer in accepted and reason != NORM:
        change = ACCEPTED_GAIN
    elif reason == QUARANTINED or not header.contributions:
        change = 0  # it could not earn anything: it is quarantined, or the round was a null one
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
