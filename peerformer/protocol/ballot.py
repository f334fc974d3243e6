"""One round's vote: propose, judge, sign, count, decide.

`Consensus` says what to sign (rules R1 to R9); this object carries it out: sign once, persist,
send, count one's own vote. It adds what the rules leave to the machine: whose turn a view is, when
to propose, how long to wait, and what a restart takes up again.
"""

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field

from peerformer import events
from peerformer.protocol.certificates import claim_fault, timeout_fault
from peerformer.protocol.chain import leader_of
from peerformer.protocol.codec import decode, encode
from peerformer.protocol.consensus import (
    Action,
    Consensus,
    Decide,
    EnterView,
    Forward,
    SignCommit,
    SignPrepare,
    SignTimeout,
    justification_fault,
)
from peerformer.protocol.headers import Headers
from peerformer.protocol.identity import name_of
from peerformer.protocol.membership import peers_of, quorum
from peerformer.protocol.messages import (
    NO_HASH,
    AskProposed,
    Commit,
    Envelope,
    GaveUp,
    HeaderBody,
    Prepare,
    Prepared,
    Proposal,
    Proposed,
    QuorumCertificate,
    Said,
    TimedOut,
    Timeout,
    TimeoutCertificate,
)
from peerformer.protocol.outbox import Outbox
from peerformer.protocol.timing import DELTA_SECONDS, Timing


def lock_key(number: int) -> str:
    """Return the record key of a round's lock."""
    return f"round/{number:012d}/lock"


def body_key(number: int, digest: bytes) -> str:
    """Return the record key of a header voted for, with its attestations."""
    return f"round/{number:012d}/body/{digest.hex()}"


def entry_key(number: int) -> str:
    """Return the record key of what entitles me to propose above view 0."""
    return f"round/{number:012d}/entry"


def timeout_key(number: int, view: int) -> str:
    """Return the record key of a timeout with the proof of its lock."""
    return f"round/{number:012d}/timeout/{view}"


@dataclass(slots=True)
class Ballot:
    """One voter's part in the vote on one round."""

    headers: Headers
    consensus: Consensus
    outbox: Outbox
    timing: Timing
    leaders: tuple[bytes, ...]
    votes: bool  # I am a voter of this round
    proposals: dict[int, tuple[bytes, TimeoutCertificate | None]] = field(default_factory=dict)
    timeouts: dict[int, TimedOut] = field(default_factory=dict)  # mine, by view
    grace_over: bool = False  # waited long enough for the attestations of all that live
    hurried: bool = False
    asked: set[int] = field(default_factory=set)  # views in which I asked for a locked header
    oddities: set[tuple[bytes, int, int]] = field(default_factory=set)  # strange votes shown
    _pending: list[Action] = field(default_factory=list)
    _running: bool = False

    @property
    def number(self) -> int:
        """The round."""
        return self.consensus.round

    @property
    def me(self) -> bytes:
        """My own id."""
        return self.outbox.keys.peer_id

    def leader(self, view: int) -> bytes:
        """Return who leads a view."""
        return leader_of(self.leaders, self.number, view)

    # --- proposing -----------------------------------------------------------------------------

    def on_attestations(self, attested: Set[bytes], awaited: Callable[[], set[bytes]]) -> None:
        """Go on with what more attestations allow: hurry the leader, aggregate, propose."""
        if not self.votes or self.consensus.decided:
            return
        if len(attested) < quorum(len(self.consensus.voters)):
            return
        if not (self.grace_over or self.consensus.view > 0 or awaited() <= attested):
            return
        if self.consensus.view == 0 and not self.hurried:
            self.hurried = True
            self.hurry()
        self.build()

    def hurry(self) -> None:
        """All is attested: from now on the leader has T_base, or less if it is gone."""
        leader = self.leader(self.consensus.view)
        here = leader == self.me or leader in self.outbox.connected
        self.outbox.timer("view", self.timing.base() if here else DELTA_SECONDS)

    def on_disconnected(self, peer: bytes) -> None:
        """Give a leader that is gone less time."""
        if self.hurried and peer == self.leader(self.consensus.view):
            self.outbox.timer("view", DELTA_SECONDS)

    def build(self) -> None:
        """Propose if it is my turn; compute ahead what the first leader will propose."""
        view = self.consensus.view
        leads = self.leader(view) == self.me
        idle = view in self.proposals or self.consensus.timed_out >= view or not self.votes
        if idle or self.consensus.decided or not (leads or view == 0):
            return
        entry = self.consensus.entry
        if view > 0 and (entry is None or entry.view != view - 1):
            return  # restarted in this view: what would justify a proposal is gone
        if entry is not None and entry.high is not None:
            locked = self.headers.bodies.get(entry.high.digest)  # R7: exactly this one
            if leads and locked is not None:
                self._propose(view, locked)
            elif leads and view not in self.asked:
                self.asked.add(view)
                self.ask_body(entry.high)
            return
        attested = self.headers.collection.attestations
        if len(attested) < quorum(len(self.consensus.voters)):
            return
        before = self.outbox.has_signed("proposal", self.number, view) if leads else None
        if before is None and view == 0 and not self.hurried:
            return  # attestations of some that live are still on their way
        body = self._proposed_before(before) if before else self.headers.draft(leads=leads)
        if body is not None and leads:
            self._propose(view, body)

    def _proposed_before(self, envelope: Envelope) -> HeaderBody | None:
        statement = envelope.statement
        assert isinstance(statement, Proposal)
        return self.headers.bodies.get(statement.digest)

    def _propose(self, view: int, body: HeaderBody) -> None:
        digest = body.header.digest
        record = (body_key(self.number, digest), encode(body))
        envelope = self.outbox.sign_once(Proposal(self.number, view, digest), (record,))
        packet = Proposed(envelope, body.header, body.attestations, self.consensus.entry)
        if packet.envelope.statement != Proposal(self.number, view, digest):
            return  # another header was proposed before a restart, and it is gone: stay silent
        self.outbox.broadcast(self.consensus.voters, packet)
        fault = self.on_proposed(packet)
        assert fault is None, fault

    def on_body(self, body: HeaderBody) -> str | None:
        """Take a header in that a quorum certified and I lack; returns its fault, or None."""
        entry = self.consensus.entry
        certified = (self.consensus.decided, self.consensus.high, entry.high if entry else None)
        digest = body.header.digest
        if all(certificate is None or certificate.digest != digest for certificate in certified):
            return None  # nobody needs it: unasked headers must not fill the room of others
        fault = self.headers.add(body)
        self.build()
        self.advance()
        return fault

    def ask_body(self, certificate: QuorumCertificate) -> None:
        """Ask whoever signed for a header that I lack."""
        signers = peers_of(self.consensus.voters, certificate.signers) or ()
        self.outbox.broadcast(signers, AskProposed(self.number, certificate.digest))

    # --- judging -------------------------------------------------------------------------------

    def on_proposed(self, packet: Proposed) -> str | None:
        """Take a genuine proposal in; returns why it is none, or None."""
        statement = packet.envelope.statement
        assert isinstance(statement, Proposal)
        if packet.envelope.sender != self.leader(statement.view):
            return "proposal out of turn"
        if packet.header.digest != statement.digest:
            return "proposal of another header"
        fault = justification_fault(statement.view, statement.digest, packet.justify)
        fresh = packet.justify is None or packet.justify.high is None
        first = self.proposals.get(statement.view)
        if fault is None and first is not None and first[0] != statement.digest:
            return None  # its second one for this view: evidence elsewhere, nothing here
        if fault is None and fresh and packet.header.builder != packet.envelope.sender:
            fault = "a new header built by somebody else"
        fault = fault or self.headers.add(HeaderBody(packet.header, packet.attestations))
        if fault is None:
            self.proposals.setdefault(statement.view, (statement.digest, packet.justify))
            self.advance()
        return fault

    def advance(self) -> None:
        """Vote for the current view's proposal if it has proved valid."""
        view = self.consensus.view
        if not self.votes or self.consensus.decided or view not in self.proposals:
            return
        digest, justify = self.proposals[view]
        if self.consensus.may_prepare(view, digest, justify) and self.headers.is_valid(digest):
            self.carry_out(self.consensus.prepare(view, digest))

    # --- votes and certificates ----------------------------------------------------------------

    def on_vote(self, envelope: Envelope) -> None:
        """Count a genuine PREPARE or COMMIT."""
        vote = envelope.statement
        assert isinstance(vote, Prepare | Commit)
        self.carry_out(self.consensus.on_vote(envelope.sender, vote, envelope.signature))

    def on_timed_out(self, packet: TimedOut, *, mine: bool = False) -> str | None:
        """Count a genuine TIMEOUT if its claim holds; returns why it does not, or None."""
        timeout = packet.envelope.statement
        assert isinstance(timeout, Timeout)
        voters, chain_id = self.consensus.voters, self.outbox.chain_id
        fault = None if mine else claim_fault(timeout, packet.high, voters, chain_id)
        if fault is None:
            sender, signature = packet.envelope.sender, packet.envelope.signature
            self.carry_out(self.consensus.on_timeout(sender, timeout, signature, packet.high))
        return fault

    def on_prepared(self, certificate: QuorumCertificate) -> None:
        """Adopt a verified quorum of prepares."""
        self.carry_out(self.consensus.on_prepared(certificate))

    def on_view_ended(self, certificate: TimeoutCertificate) -> str | None:
        """Adopt a quorum of timeouts; returns why it proves nothing, or None."""
        if self.consensus.decided or certificate.view < self.consensus.view:
            return None
        fault = timeout_fault(certificate, self.consensus.voters, self.outbox.chain_id)
        if fault is None:
            self.carry_out(self.consensus.on_view_ended(certificate))
        return fault

    def on_timer(self) -> None:
        """R4."""
        if self.votes:
            self.carry_out(self.consensus.on_timer())

    # --- carrying out --------------------------------------------------------------------------

    def carry_out(self, actions: list[Action]) -> None:
        """Do what the consensus asks, in order; what follows from my own votes comes after."""
        self._pending += actions
        if self._running:
            return
        self._running = True
        while self._pending:
            self._do(self._pending.pop(0))
        self._running = False

    def _do(self, action: Action) -> None:
        match action:
            case SignPrepare(view, digest):
                body = self.headers.bodies[digest]
                self._vote(
                    Prepare(self.number, view, digest),
                    (body_key(self.number, digest), encode(body)),
                )
            case SignCommit(view, digest, high):
                self._vote(Commit(self.number, view, digest), (lock_key(self.number), encode(high)))
            case SignTimeout(view, high):
                self._time_out(view, high)
            case Forward(certificate):
                forwarded = isinstance(certificate, QuorumCertificate)
                packet = Prepared(certificate) if forwarded else GaveUp(certificate)  # type: ignore[arg-type]
                self.outbox.broadcast(self.consensus.voters, packet)
            case EnterView(view):
                self._enter(view)
            case Decide():
                pass  # the machine looks at `consensus.decided` after every event

    def _vote(self, vote: Prepare | Commit, record: tuple[str, bytes]) -> None:
        if not self.votes:
            return
        envelope = self.outbox.sign_once(vote, (record,))
        if envelope.statement != vote:
            return  # the slot was used before a restart, for something else
        self.outbox.broadcast(self.consensus.voters, Said(envelope))
        self._pending += self.consensus.on_vote(self.me, vote, envelope.signature)

    def _time_out(self, view: int, high: QuorumCertificate | None) -> None:
        if not self.votes:
            return
        self.outbox.timer("view", self.timing.view(view))
        if view not in self.timeouts:
            claim = (high.view, high.digest) if high else (-1, NO_HASH)
            timeout = Timeout(self.number, view, *claim)
            proof = (timeout_key(self.number, view), encode(high) if high else b"")
            self.timeouts[view] = TimedOut(self.outbox.sign_once(timeout, (proof,)), high)
        packet = self.timeouts[view]
        self.headers.collection.repeat()
        self.outbox.broadcast(self.consensus.voters, packet)
        self.on_timed_out(packet, mine=True)

    def _enter(self, view: int) -> None:
        self.outbox.timer("view", self.timing.view(view))
        entry = self.consensus.entry
        if entry is not None and entry.view == view - 1:  # who is behind may need it from me
            self.outbox.persist(((entry_key(self.number), encode(entry)),))
        gone = self.leader(view - 1)
        self.outbox.report(
            events.ViewChanged(
                round=self.number, view=view, leader=name_of(gone), reason="no decision in time"
            )
        )
        self.build()
        self.advance()

    def records_made(self) -> tuple[str, ...]:
        """Return the keys of what this round persisted beside its statements."""
        bodies = (body_key(self.number, digest) for digest in self.headers.bodies)
        timeouts = (timeout_key(self.number, view) for view in self.timeouts)
        return (lock_key(self.number), entry_key(self.number), *bodies, *timeouts)

    # --- sending again, restarting ---------------------------------------------------------------

    def repeat_to(self, peer: bytes) -> None:
        """Send a peer that has just connected what I said in this round."""
        view = self.consensus.view
        for kind in ("contribution", "attestation", "prepare", "commit"):
            slot_view = view if kind in ("prepare", "commit") else 0
            envelope = self.outbox.has_signed(kind, self.number, slot_view)
            if envelope is not None:
                self.outbox.send(peer, Said(envelope))
        entry = self.consensus.entry
        if entry is not None and entry.view == view - 1:
            self.outbox.send(peer, GaveUp(entry))
        proposal = self.outbox.has_signed("proposal", self.number, view)
        body = self._proposed_before(proposal) if proposal else None
        if proposal and body:
            if view == 0 or entry is not None:
                self.outbox.send(peer, Proposed(proposal, body.header, body.attestations, entry))
        if view in self.timeouts:
            self.outbox.send(peer, self.timeouts[view])
        if self.consensus.high is not None:
            self.outbox.send(peer, Prepared(self.consensus.high))

    def restore(self, records: Mapping[str, bytes]) -> None:
        """Take up the votes cast before a restart; raises MalformedError."""
        outbox, number = self.outbox, self.number
        lock = records.get(lock_key(number))
        self.consensus.high = decode(QuorumCertificate, lock) if lock else None
        self.consensus.prepared = max(outbox.signed_views("prepare", number), default=-1)
        self.consensus.committed = max(outbox.signed_views("commit", number), default=-1)
        self.consensus.timed_out = max(outbox.signed_views("timeout", number), default=-1)
        entry = records.get(entry_key(number))
        self.consensus.entry = decode(TimeoutCertificate, entry) if entry else None
        self.consensus.__post_init__()
        for view in outbox.signed_views("timeout", number):
            proof = records.get(timeout_key(number, view))
            envelope = outbox.has_signed("timeout", number, view)
            if envelope is not None:
                high = decode(QuorumCertificate, proof) if proof else None
                self.timeouts[view] = TimedOut(envelope, high)
                if high and (not self.consensus.high or self.consensus.high.view < high.view):
                    self.consensus.high = high
        self._restore_bodies(records)
        self._count_own_votes()

    def _count_own_votes(self) -> None:
        view = self.consensus.view
        for kind in ("prepare", "commit"):
            envelope = self.outbox.has_signed(kind, self.number, view)
            if envelope is not None:
                self.on_vote(envelope)
        if view in self.timeouts:
            self.on_timed_out(self.timeouts[view], mine=True)

    def _restore_bodies(self, records: Mapping[str, bytes]) -> None:
        prefix = f"round/{self.number:012d}/body/"
        for key, data in records.items():
            if key.startswith(prefix):
                body = decode(HeaderBody, data)
                self.headers.voted.add(body.header.digest)
                self.headers.add(body)
