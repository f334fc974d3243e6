"""Joins, leaves and evidence on their way into a header."""

from peerformer import events
from peerformer.protocol.chain import Chain
from peerformer.protocol.conduct import culprit_of, describe
from peerformer.protocol.genesis import ADMISSION_OPEN
from peerformer.protocol.identity import name_of
from peerformer.protocol.membership import join_hash, operation_fault, subject_of
from peerformer.protocol.messages import (
    OPERATIONS_MAX,
    Admission,
    Departure,
    Envelope,
    Eviction,
    Evidence,
    Join,
    Leave,
    Operation,
    Requested,
    Voucher,
    sign,
)
from peerformer.protocol.outbox import Outbox

VOUCHERS_MAX = 8  # as many as an admission can carry
JOIN_RENEWED_ROUNDS = 50  # a request this old is signed anew


class Requests:
    """Operations that wait for a header, by the peer they are about."""

    chain: Chain
    outbox: Outbox
    chain_anchor: bytes
    operations: dict[bytes, Operation]
    wants_membership: bool
    _join: Envelope | None

    def __init__(self, chain: Chain, outbox: Outbox, chain_anchor: bytes) -> None:
        """Start with none."""
        self.chain, self.outbox, self.chain_anchor = chain, outbox, chain_anchor
        self.operations = {}
        self.wants_membership = True
        self._join = None

    def fault(self, operation: Operation) -> str | None:
        """Return why an operation cannot stand in the next header, or None."""
        number = self.chain.tip + 1
        members, genesis = self.chain.members, self.chain.genesis
        return operation_fault(operation, members, genesis, self.chain.chain_id, number)

    def convict(self, evidence: Evidence) -> None:
        """Turn two statements that convict a member into a request to evict it."""
        culprit = culprit_of(evidence, self.chain.chain_id)
        if culprit is None or self.chain.members.get(culprit) is None:
            return
        if isinstance(self.operations.get(culprit), Eviction):
            return
        self.outbox.report(
            events.Misbehaved(peer=culprit.hex(), name=name_of(culprit), reason=describe(evidence)),
            evidence,
        )
        self._hold(Eviction(evidence))

    def _hold(self, operation: Operation) -> None:
        """Keep a valid operation for a header, and let the others know."""
        subject = subject_of(operation)
        if len(self.operations) < OPERATIONS_MAX or isinstance(operation, Eviction):
            self.operations[subject] = operation
            self.outbox.broadcast(self.chain.members.voters, Requested(operation))

    def on_requested(self, operation: Operation) -> str | None:
        """Take in what a peer asks for; returns why not, or None."""
        subject = subject_of(operation)
        held = self.operations.get(subject)
        if isinstance(operation, Eviction):
            if self.fault(operation) is None:
                self.convict(operation.evidence)
                return None
            return None if subject in self.chain.members.banned else "evidence convicts no member"
        if isinstance(operation, Admission):
            operation = self._vouched(operation, held)
        if held is not None and (operation == held or not isinstance(operation, Admission)):
            return None
        fault = self.fault(operation)
        if fault is None:
            self._hold(operation)
        return None  # an old or early request is no fault: rounds move on

    def _vouched(self, operation: Admission, held: Operation | None) -> Admission:
        """Join the vouchers that are known for one request, mine among them."""
        if isinstance(held, Admission) and held.join != operation.join:
            return held
        vouchers = {voucher.sender: voucher for voucher in operation.vouchers}
        if isinstance(held, Admission):
            vouchers |= {voucher.sender: voucher for voucher in held.vouchers}
        me, needed = self.outbox.keys.peer_id, self.chain.genesis.limits.vouchers
        if me in self.chain.members.voters and len(vouchers) < needed and me not in vouchers:
            voucher = Voucher(join_hash(operation.join))
            vouchers[me] = sign(self.outbox.keys, self.chain.chain_id, voucher)
        chosen = tuple(vouchers[sender] for sender in sorted(vouchers))[:VOUCHERS_MAX]
        return Admission(operation.join, chosen)

    def leave(self, number: int) -> None:
        """Ask to be let go; the last voter just goes."""
        self.wants_membership = False
        me = self.outbox.keys.peer_id
        member = self.chain.members.get(me)
        if member is None or self.chain.members.voters == (me,):
            self.outbox.report(events.PeerLeft(round=number - 1, peer=me.hex(), name=name_of(me)))
            return
        self._hold(Departure(sign(self.outbox.keys, self.chain.chain_id, Leave(number))))

    def tick(self, *, ready: bool) -> None:
        """Ask for admission while I am no member and hold the agreed state; repeat a leave."""
        me, members = self.outbox.keys.peer_id, self.chain.members
        if members.get(me) is not None or me in members.banned:
            mine = self.operations.get(me)
            if isinstance(mine, Departure):
                self.outbox.broadcast(members.voters, Requested(mine))
            return
        wanted = self.wants_membership and ready
        if not wanted or self.chain.genesis.limits.admission != ADMISSION_OPEN:
            return
        number = self.chain.tip + 1
        statement = self._join.statement if self._join else None
        if not isinstance(statement, Join) or statement.round < number - JOIN_RENEWED_ROUNDS:
            join = Join(number, self.chain_anchor)
            self._join = sign(self.outbox.keys, self.chain.chain_id, join)
        assert self._join is not None
        self.outbox.broadcast(members.voters, Requested(Admission(self._join, ())))

    def drop_settled(self) -> None:
        """Forget what a header carried, or what can no longer stand in one."""
        for subject, operation in list(self.operations.items()):
            if self.chain.operations_fault((operation,)) is not None:
                del self.operations[subject]
