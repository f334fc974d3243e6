"""What may stand in a header beside contributions: joins, leaves, returns, evictions.

Each is a request that its subject, or the liar itself, has signed, and each is checked by everybody
against the members of the round at hand; `membership` says what it does. What earlier rounds have
against it, quotas say, is the chain's to know.
"""

from peerformer.protocol.conduct import ROUNDS_SERVED, culprit_of, exhibit_of
from peerformer.protocol.genesis import ADMISSION_CLOSED, Genesis
from peerformer.protocol.identity import hash_of
from peerformer.protocol.membership import (
    EPOCH_ROUNDS,
    GUEST,
    SUSPENDED,
    VOTER,
    Member,
    Members,
    subject_of,
)
from peerformer.protocol.messages import (
    MEMBERS_MAX,
    Admission,
    Departure,
    Envelope,
    Eviction,
    FalseHolding,
    Join,
    Leave,
    Operation,
    Rejoin,
    Return,
    Voucher,
    is_genuine,
)


def operations_fault(
    operations: tuple[Operation, ...],
    members: Members,
    genesis: Genesis,
    chain_id: bytes,
    round_number: int,
) -> str | None:
    """Return why these operations may not stand together in the header of this round, or None."""
    subjects = [subject_of(operation) for operation in operations]
    if subjects != sorted(set(subjects)):
        return "operations repeated or unsorted"
    for operation in operations:
        fault = operation_fault(operation, members, genesis, chain_id, round_number)
        if fault:
            return fault
    leaving = sum(isinstance(operation, Departure) for operation in operations)
    if len(members.departed) + leaving > MEMBERS_MAX:
        return "more departures than can be remembered"
    banning = sum(
        members.get(subject_of(op)) is None for op in operations if isinstance(op, Eviction)
    )
    if len(members.members) + len(members.banned) + banning > MEMBERS_MAX:
        return "more of the banned than can be remembered"
    return None if _leaves_a_voter(operations, members) else "nobody would be left to vote"


def _leaves_a_voter(operations: tuple[Operation, ...], members: Members) -> bool:
    voters = set(members.voters)
    for operation in operations:
        match operation:
            case Eviction() | Departure():
                voters.discard(subject_of(operation))
            case Return():
                voters.add(subject_of(operation))
            case Admission(join):
                if isinstance(join.statement, Join) and join.statement.role == VOTER:
                    voters.add(join.sender)
    return bool(voters)


def operation_fault(
    operation: Operation, members: Members, genesis: Genesis, chain_id: bytes, round_number: int
) -> str | None:
    """Return why an operation may not stand in the header of this round, or None if it may."""
    match operation:
        case Eviction(evidence):
            culprit = culprit_of(evidence, chain_id)
            if culprit is None or not members.is_accountable(culprit):
                return "evidence convicts no member"
            if isinstance(evidence, FalseHolding):
                return exhibit_fault(evidence, genesis, round_number)
            return None
        case Departure(leave):
            return _departure_fault(leave, members, chain_id, round_number)
        case Return(rejoin):
            return _return_fault(rejoin, members, chain_id, round_number)
        case Admission(join, vouchers):
            return join_fault(join, members, genesis, chain_id, round_number) or _vouchers_fault(
                join, vouchers, members, genesis, chain_id, round_number
            )


def exhibit_fault(evidence: FalseHolding, genesis: Genesis, round_number: int) -> str | None:
    """Return why a contribution is none to convict on in this round, or None.

    Whether it decodes is not asked here: a voter looks at it before it votes.
    """
    exhibit = exhibit_of(evidence)
    if not round_number - ROUNDS_SERVED < exhibit.round <= round_number:
        return "evidence about a contribution that nobody need hold any more"
    if not 0 < exhibit.size <= genesis.blob_size_max:
        return "evidence about a contribution of a forbidden size"
    return None


def _departure_fault(
    leave: Envelope, members: Members, chain_id: bytes, round_number: int
) -> str | None:
    member = members.get(leave.sender)
    if not is_genuine(leave, chain_id) or not isinstance(leave.statement, Leave):
        return "not a genuine leave"
    if member is None or not member.joined <= leave.statement.round <= round_number:
        return "leave of nobody, or of another membership"
    return None


def _return_fault(
    rejoin: Envelope, members: Members, chain_id: bytes, round_number: int
) -> str | None:
    member = members.get(rejoin.sender)
    if not is_genuine(rejoin, chain_id) or not isinstance(rejoin.statement, Rejoin):
        return "not a genuine rejoin"
    if member is None or member.role != SUSPENDED:
        return "return of nobody who is suspended"
    if not member.suspended_from <= rejoin.statement.round <= round_number:
        return "return from another suspension"
    return None


def join_fault(
    join: Envelope, members: Members, genesis: Genesis, chain_id: bytes, round_number: int
) -> str | None:
    """Return why nobody may vouch for a request to join in this round, or None."""
    if genesis.limits.admission == ADMISSION_CLOSED:
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
    departed = members.departure_of(join.sender)
    if departed is not None and join.statement.round <= departed.left:
        return "a request to join from before its sender left"
    return None


def _promotes(join: Join, present: Member) -> bool:
    """Tell whether a guest asks for the vote; a request from before it was a guest is void."""
    return present.role == GUEST and join.role == VOTER and join.round >= present.joined


def _vouchers_fault(
    join: Envelope,
    vouchers: tuple[Envelope, ...],
    members: Members,
    genesis: Genesis,
    chain_id: bytes,
    round_number: int,
) -> str | None:
    senders = [voucher.sender for voucher in vouchers]
    if senders != sorted(set(senders)) or len(senders) != genesis.limits.vouchers:
        return "not the number of vouchers that it takes"
    for voucher in vouchers:
        member = members.get(voucher.sender)
        if member is None or member.role != VOTER or not is_genuine(voucher, chain_id):
            return "a voucher that is not one"
        if voucher.statement != Voucher(join_hash(join)):
            return "a voucher that is not one"
        if member.barred_until > round_number:
            return "a voucher of somebody who vouched for an evicted peer lately"
    return None


def join_hash(join: Envelope) -> bytes:
    """Return what a voucher names."""
    return hash_of("join", join.canonical)
