"""Joins, leaves and evidence on their way into a header."""

from peerformer import events
from peerformer.protocol.chain import Chain
from peerformer.protocol.conduct import accused_of, culprit_of, describe, exhibit_of
from peerformer.protocol.genesis import ADMISSION_CLOSED
from peerformer.protocol.identity import name_of
from peerformer.protocol.invitations import Invitations
from peerformer.protocol.membership import GUEST, SUSPENDED, VOTER, subject_of
from peerformer.protocol.messages import (
    OPERATIONS_MAX,
    Admission,
    Contradiction,
    Departure,
    Envelope,
    Eviction,
    Evidence,
    Join,
    Leave,
    Operation,
    Rejoin,
    Requested,
    Return,
    sign,
)
from peerformer.protocol.operations import operation_fault
from peerformer.protocol.outbox import Outbox
from peerformer.protocol.trials import Trials
from peerformer.protocol.vouching import Vouching

JOIN_RENEWED_ROUNDS = 50  # a request this old is signed anew


class Requests:
    """Operations that wait for a header, by the peer they are about."""

    chain: Chain
    outbox: Outbox
    chain_anchor: bytes
    role: int
    operations: dict[bytes, Operation]
    invitations: Invitations
    vouching: Vouching
    trials: Trials
    wants_membership: bool
    _join: Envelope | None
    _rejoin: Envelope | None

    def __init__(self, chain: Chain, outbox: Outbox, chain_anchor: bytes, role: int) -> None:
        """Start with none; `role` is the one that I want."""
        self.chain, self.outbox = chain, outbox
        self.chain_anchor, self.role = chain_anchor, role
        self.operations = {}
        self.invitations = Invitations(chain, outbox)
        self.vouching = Vouching(chain, outbox, self.invitations)
        self.trials = Trials(outbox)
        self.wants_membership = True
        self._join = self._rejoin = None

    def fault(self, operation: Operation) -> str | None:
        """Return why an operation cannot stand in the next header, or None."""
        number = self.chain.tip + 1
        members, genesis = self.chain.members, self.chain.genesis
        return operation_fault(operation, members, genesis, self.chain.chain_id, number)

    def convict(self, evidence: Evidence) -> None:
        """Turn evidence that I have checked, all of it, into a request to evict."""
        culprit = culprit_of(evidence, self.chain.chain_id)
        if culprit is None or not self.chain.members.is_accountable(culprit):
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

    def on_requested(self, peer: bytes, operation: Operation) -> str | None:
        """Take in what a peer asks for; returns why not, or None."""
        subject = subject_of(operation)
        held = self.operations.get(subject)
        if isinstance(operation, Eviction):
            return self._on_evidence(peer, operation)
        if held is not None and self.chain.operations_fault((held,)) is None:
            return None
        if isinstance(operation, Admission):
            self._gather(operation)
        elif self.chain.operations_fault((operation,)) is None:
            self._hold(operation)
        return None  # an old or early request is no fault: rounds move on

    def _on_evidence(self, peer: bytes, operation: Eviction) -> str | None:
        """Check evidence that a peer tells me of; its fault if it convicts nobody."""
        evidence, chain = operation.evidence, self.chain
        if not chain.members.is_accountable(accused_of(evidence)):
            return None  # it is banned, gone or not here yet: no fault of who tells me
        if culprit_of(evidence, chain.chain_id) is None:
            return "evidence convicts no member"
        if self.fault(operation) is not None:
            return None  # it comes late
        if isinstance(evidence, Contradiction):
            self.convict(evidence)
            return None
        decodes = self.trials.verdicts.get(exhibit_of(evidence))
        if decodes is None:
            self.trials.accuse(evidence, peer)
        elif not decodes:
            self.convict(evidence)
        return "evidence convicts nobody: the contribution decodes" if decodes else None

    def _gather(self, offered: Admission) -> None:
        """Hold a request to join once it has the vouchers it takes; until then pass on the news."""
        gathered = self.vouching.add(offered)
        if gathered is None:
            return
        admission, is_news = gathered
        if self.chain.operations_fault((admission,)) is None:
            self._hold(admission)
        elif is_news:
            self.outbox.broadcast(self.chain.members.voters, Requested(admission))

    def leave(self) -> None:
        """Ask to be let go; the last voter just goes."""
        self.wants_membership = False
        me, tip = self.outbox.keys.peer_id, self.chain.tip
        if self.chain.members.get(me) is None or self.chain.members.voters == (me,):
            self.outbox.report(events.PeerLeft(round=tip, peer=me.hex(), name=name_of(me)))
            return
        self._hold(Departure(sign(self.outbox.keys, self.chain.chain_id, Leave(tip + 1))))

    def tick(self, *, ready: bool) -> None:
        """Ask for what I lack while I hold the agreed state: membership, or the vote of a guest."""
        me, members = self.outbox.keys.peer_id, self.chain.members
        member, mine = members.get(me), self.operations.get(me)
        if isinstance(mine, Departure):
            self.outbox.broadcast(members.voters, Requested(mine))
        elif member is not None and not self.wants_membership:
            self.leave()  # the others left first: nobody would remain, or my request was lost
        elif self.wants_membership and ready and me not in members.banned:
            if member is None or (member.role, self.role) == (GUEST, VOTER):
                self._ask_to_join(member.joined if member else 0)
            elif member.role == SUSPENDED:
                self._ask_to_return(member.suspended_from)

    def _ask_to_join(self, since: int) -> None:
        """Ask for admission, with a request no older than my present membership."""
        if self.chain.genesis.limits.admission == ADMISSION_CLOSED:
            return
        number = self.chain.tip + 1
        statement = self._join.statement if self._join else None
        oldest = max(since, number - JOIN_RENEWED_ROUNDS)
        if not isinstance(statement, Join) or statement.round < oldest:
            join = Join(number, self.chain_anchor, self.role)
            self._join = sign(self.outbox.keys, self.chain.chain_id, join)
        assert self._join is not None
        self.outbox.broadcast(self.chain.members.voters, Requested(Admission(self._join, ())))

    def _ask_to_return(self, since: int) -> None:
        """Say that I am back, once for each suspension."""
        statement = self._rejoin.statement if self._rejoin else None
        if not isinstance(statement, Rejoin) or statement.round < since:
            rejoin = Rejoin(self.chain.tip + 1)
            self._rejoin = sign(self.outbox.keys, self.chain.chain_id, rejoin)
        assert self._rejoin is not None
        self.outbox.broadcast(self.chain.members.voters, Requested(Return(self._rejoin)))

    def drop_settled(self, now: float) -> None:
        """Forget what a header carried, or what can no longer stand in one, and old tickets."""
        self.invitations.forget(now)
        self.vouching.drop_settled()
        for subject, operation in list(self.operations.items()):
            if self.chain.operations_fault((operation,)) is not None:
                del self.operations[subject]
