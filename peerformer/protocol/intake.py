"""What peers send, judged before it counts: refused, buffered, made evidence, or passed on.

Anything a peer sends is data. Malformed bytes, wrong signatures and claims that do not hold are
counted against the connection they came on; they never raise. A statement counts only if its sender
signed it for this chain and belongs to this round. A packet of the next round waits until this one
is decided, one of an older round is answered with what was decided since (R9).
"""

from typing import TYPE_CHECKING

from peerformer import events
from peerformer.protocol.attestations import Attestation
from peerformer.protocol.certificates import certificate_fault, timeout_fault, votes_in
from peerformer.protocol.codec import MalformedError, encode
from peerformer.protocol.identity import name_of
from peerformer.protocol.membership import peers_of
from peerformer.protocol.messages import (
    NO_HASH,
    PROTOCOL_VERSION,
    STATEMENTS,
    AskHeaders,
    AskPeers,
    AskProposed,
    AskSaid,
    Certified,
    Commit,
    Contribution,
    Envelope,
    GaveUp,
    HeaderBody,
    Headers,
    Hello,
    Packet,
    Peers,
    Prepare,
    Prepared,
    Proposal,
    Proposed,
    QuorumCertificate,
    Requested,
    Said,
    Statement,
    TimedOut,
    Timeout,
    TimeoutCertificate,
    greeting_version,
    is_genuine,
)
from peerformer.protocol.newcomer_packets import (
    About,
    AskAbout,
    AskBase,
    AskGenesis,
    BaseOf,
    Farewell,
    GenesisBytes,
    Present,
    Presented,
    ReachedBack,
    Sample,
    Sampled,
)
from peerformer.protocol.rates import RATES
from peerformer.protocol.selection import attestation_fault

if TYPE_CHECKING:
    from peerformer.protocol.machine import Machine

LATER_KEPT_MAX = 16  # packets of the next round kept per connection
LATER_GOSSIP_MAX = 512  # where one connection carries what many say
RELAYED_MAX = 32  # statements of one sender passed on in a round: a dozen views and double votes
LATE_SECONDS = 1.0  # a straggler's vote just after the decision needs no answer
FAULTS_MAX = 64  # a connection that sent so much false input is closed


def receive(machine: "Machine", peer: bytes, frame: bytes) -> bool:
    """Take one frame in; False if it was only another copy of what I passed on before."""
    try:
        packet = machine.unpack(frame)
    except MalformedError as error:
        version = greeting_version(frame)
        if version is not None and version != PROTOCOL_VERSION:
            take(machine, peer, Hello(version, NO_HASH, 0, None))
        else:
            blame(machine, peer, f"malformed: {error}")
        return True
    if machine.outbox.gossips and isinstance(packet, Said | Proposed | TimedOut):
        envelope = packet.envelope
        if envelope.signature in machine.relayed.get(envelope.sender, ()):
            return False
    take(machine, peer, packet)
    return True


def take(machine: "Machine", peer: bytes, packet: Packet) -> None:
    """Take one packet in, now or when its round has come."""
    try:
        _take(machine, peer, packet)
    except MalformedError as error:
        blame(machine, peer, f"malformed: {error}")


def _take(machine: "Machine", peer: bytes, packet: Packet) -> None:
    """Raises MalformedError if a statement in the packet does not decode."""
    neighbourhood = machine.neighbourhood
    if not _in_time(machine, peer, packet):
        return
    if isinstance(packet, Hello):
        if neighbourhood.on_hello(peer, packet, machine.now):
            machine.sync.on_claim(peer, packet.tip, machine.now)
            machine.ballot.repeat_to(peer)
        return
    if isinstance(packet, AskGenesis):
        machine.outbox.send(peer, GenesisBytes(machine.genesis.to_bytes()))
        return
    if peer not in neighbourhood.greeted and machine.chain.members.get(peer) is None:
        blame(machine, peer, "spoke before greeting")
        return
    number = _round_of(packet)
    of_round = _of_round(machine, peer, packet, number) if number else None
    fault = of_round if number else _aside(machine, peer, packet)
    if fault:
        blame(machine, peer, fault)


def _in_time(machine: "Machine", peer: bytes, packet: Packet) -> bool:
    """Whether to attend to a packet: not if its kind came too often on this connection."""
    if peer not in machine.outbox.connected:
        return type(packet) not in RATES  # it is gone: whatever it wanted cannot be answered
    if type(packet) not in RATES:
        return True
    if isinstance(packet, AskHeaders) and machine.sync.goes_on(peer, packet.first_round):
        return True
    attended, flood = machine.rates.may_answer(peer, packet, machine.now)
    if flood:
        blame(machine, peer, flood)
    return attended


def blame(machine: "Machine", peer: bytes, reason: str) -> None:
    """Count false input against a connection; too much of it closes the connection."""
    count = machine.faults[peer] = machine.faults.get(peer, 0) + 1
    if count & (count - 1) == 0:  # told at 1, 2, 4, 8 …: a flood must not fill the journal
        machine.outbox.report(
            events.Misbehaved(peer=peer.hex(), name=name_of(peer), reason=reason, count=count)
        )
    if count % FAULTS_MAX == 0:
        machine.outbox.disconnect(peer, "it sent too much that is false")


def _round_of(packet: Packet) -> int:
    """Return the round a packet is about, or 0."""
    match packet:
        case Said(envelope) | Proposed(envelope) | TimedOut(envelope):
            return int(getattr(envelope.statement, "round", 0))
        case Prepared(certificate) | GaveUp(certificate):
            return certificate.round
        case Certified(header):
            return header.round
        case HeaderBody(header):
            return header.round
    return 0


def _aside(machine: "Machine", peer: bytes, packet: Packet) -> str | None:
    """Take in a packet that is about no single round; returns its fault."""
    match packet:
        case Headers(items, tip):
            return _on_headers(machine, peer, items, tip)
        case AskHeaders(first_round):
            machine.sync.answer(peer, first_round)
        case AskProposed(_, digest):
            body = machine.ballot.headers.bodies.get(digest)
            if body is not None:
                machine.outbox.send(peer, body)
        case AskSaid(subject, kind, number, view):
            if kind >= len(STATEMENTS):
                return "asked for an unknown statement"
            word = STATEMENTS[kind].__name__.lower()
            said = machine.ledger.find(subject, word, number, view)
            if said is not None:
                machine.outbox.send(peer, Said(said))
        case AskPeers():
            machine.neighbourhood.answer(peer, machine.now)
        case Peers(records):
            faults = [machine.neighbourhood.learn(r, peer, machine.now) for r in records]
            forged = [fault for fault in faults if fault in ("a forged record", "not a record")]
            return forged[0] if forged else None
        case Requested(operation):
            return machine.requests.on_requested(peer, operation)
        case AskBase(number):
            machine.sync.answer_base(peer, number)
        case Present():
            machine.requests.invitations.show(peer, packet, machine.now)
        case GenesisBytes() | BaseOf() | Presented() | Farewell():
            return None  # an answer that came late
        case AskAbout() | About() | ReachedBack() | Sample() | Sampled():
            return None  # between the two nodes, which take them before any machine does
        case _:
            return "a statement that no round takes"
    return None


def _on_headers(
    machine: "Machine", peer: bytes, items: tuple[Certified, ...], tip: int
) -> str | None:
    for item in items:
        if item.header.round == machine.chain.tip + 1:
            fault = machine.extend(item, more_to_come=item is not items[-1])
        else:
            fault = _compare(machine, item)
        if machine.forked:
            return None
        if fault:
            machine.sync.look_back(peer, machine.now)
            return f"header: {fault}"
    if not items and tip > machine.chain.tip:
        machine.sync.on_nothing(peer)
    if items:
        machine.sync.asked.pop(peer, None)  # it answers: ask for what comes after at once
    machine.sync.on_claim(peer, tip, machine.now)
    return None


def _of_round(machine: "Machine", peer: bytes, packet: Packet, number: int) -> str | None:
    """Take in a packet about one round; returns its fault."""
    current = machine.chain.tip + 1
    if number < current:
        return _of_the_past(machine, peer, packet, number)
    if number > current:
        if number == current + 1:
            _keep(machine, peer, packet)
        machine.sync.claims[peer] = max(number - 1, machine.sync.claims.get(peer, 0))
        return None
    if machine.outbox.gossips and isinstance(packet, Said | Proposed | TimedOut):
        return _pass_on(machine, peer, packet)
    return _of_this_round(machine, peer, packet)


def _pass_on(machine: "Machine", peer: bytes, packet: Said | Proposed | TimedOut) -> str | None:
    """Take in what goes around the circle, once, and pass it on if it is in order."""
    passed = machine.relayed.setdefault(packet.envelope.sender, set())
    signature = packet.envelope.signature
    if signature in passed or packet.envelope.sender == machine.me:
        return None
    fault = _of_this_round(machine, peer, packet)
    if fault is None and len(passed) < RELAYED_MAX:
        passed.add(signature)
        for neighbour in machine.outbox.neighbours:
            if neighbour not in (peer, packet.envelope.sender):
                machine.outbox.send(neighbour, packet)
    return fault


def _of_this_round(machine: "Machine", peer: bytes, packet: Packet) -> str | None:
    match packet:
        case Said(envelope):
            return _on_said(machine, peer, envelope)
        case Proposed():
            return _on_proposed(machine, packet)
        case TimedOut(envelope):
            return _admit(machine, envelope, (Timeout,)) or machine.ballot.on_timed_out(packet)
        case Prepared(certificate):
            return _on_prepared(machine, certificate)
        case GaveUp(certificate):
            return _on_gave_up(machine, certificate)
        case Certified():
            return machine.extend(packet)
        case HeaderBody():
            return machine.ballot.on_body(packet)
    return None


def _keep(machine: "Machine", peer: bytes, packet: Packet) -> None:
    """Keep a packet of the next round: a few small ones, and of members one proposal."""
    kept = machine.later.get(peer, [])
    member = machine.chain.members.get(peer) is not None
    if isinstance(packet, Proposed):
        fits = member and not any(isinstance(other, Proposed) for other in kept)
    else:  # whoever is admitted by the round at hand is a stranger still
        fits = (
            isinstance(packet, Said) or member and isinstance(packet, TimedOut | Prepared | GaveUp)
        )
    if fits and len(kept) < (LATER_GOSSIP_MAX if machine.outbox.gossips else LATER_KEPT_MAX):
        machine.later[peer] = [*kept, packet]


def _of_the_past(machine: "Machine", peer: bytes, packet: Packet, number: int) -> str | None:
    if isinstance(packet, Certified):
        return _compare(machine, packet)
    fresh = number == machine.chain.tip and machine.now - machine.decided_at < LATE_SECONDS
    if isinstance(packet, TimedOut) or not fresh:
        machine.sync.help(peer, number, machine.now)
    if number == machine.chain.tip and isinstance(packet, Said):
        return _record_late(machine, packet.envelope)
    return None


def _compare(machine: "Machine", item: Certified) -> str | None:
    """Hold a certified header against the one decided for its round; returns its fault."""
    mine = machine.chain.item(item.header.round)
    if mine is None or mine.header.digest == item.header.digest:
        return None
    if not machine.chain.contradicts(item):
        return "another than was decided, certified by no quorum that I know"
    machine.on_fork(mine, item)
    return None


def _record_late(machine: "Machine", envelope: Envelope) -> str | None:
    """A statement of the round just decided may still complete evidence."""
    if machine.chain.members.get(envelope.sender) and is_genuine(envelope, machine.chain.chain_id):
        _note(machine, envelope)
    return None


def _note(machine: "Machine", envelope: Envelope) -> None:
    evidence = machine.ledger.record(envelope)
    if evidence is not None:
        machine.requests.convict(evidence)
    for found in machine.trials.against(envelope):
        machine.requests.convict(found)


def _admit(
    machine: "Machine", envelope: Envelope, kinds: tuple[type[Statement], ...]
) -> str | None:
    """Return why a statement does not count, or None; what counts is remembered as said."""
    if not isinstance(envelope.statement, kinds):
        return "another statement than the packet's"
    if machine.chain.members.get(envelope.sender) is None:
        return "a statement of no member"
    if not is_genuine(envelope, machine.chain.chain_id):
        return "a wrong signature"
    _note(machine, envelope)
    return None


def _on_said(machine: "Machine", peer: bytes, envelope: Envelope) -> str | None:
    kinds = (Contribution, Attestation, Prepare, Commit, Proposal)
    fault = _admit(machine, envelope, kinds)
    if fault:
        return fault
    statement, sender = envelope.statement, envelope.sender
    match statement:
        case Contribution():
            return machine.collection.on_contribution(sender, statement, machine.now)
        case Attestation():
            return _on_attestation(machine, peer, envelope, statement)
        case Prepare() | Commit():
            machine.ballot.on_vote(envelope)
            _show_oddity(machine, envelope)
    return None


def _show_oddity(machine: "Machine", envelope: Envelope) -> None:
    """Show everybody a vote for another header than the one proposed to me.

    Either its sender or the leader signed two statements for one slot; somebody holds the other.
    """
    vote = envelope.statement
    assert isinstance(vote, Prepare | Commit)
    proposed = machine.ballot.proposals.get(vote.view)
    key = (envelope.sender, envelope.kind, vote.view)
    if proposed is None or proposed[0] == vote.digest or key in machine.ballot.oddities:
        return
    machine.ballot.oddities.add(key)
    machine.outbox.broadcast(machine.chain.members.voters, Said(envelope))
    mine = machine.ledger.find(machine.ballot.leader(vote.view), "proposal", vote.round, vote.view)
    if mine is not None:
        machine.outbox.broadcast(machine.chain.members.voters, Said(mine))


def _on_attestation(
    machine: "Machine", peer: bytes, envelope: Envelope, statement: Attestation
) -> str | None:
    fault = attestation_fault(envelope, machine.collection.number)
    if fault or envelope.sender not in machine.chain.members.voters:
        return fault or "attestation of no voter"
    machine.collection.attestations.setdefault(envelope.sender, envelope)
    for judgement in statement.judgements:
        known = machine.collection.contributions.get(judgement.peer)
        if known is not None and known.blob_hash != judgement.blob_hash:
            kind = STATEMENTS.index(Contribution)
            machine.outbox.send(peer, AskSaid(judgement.peer, kind, statement.round, 0))
    machine.on_attestations()
    return None


def _on_proposed(machine: "Machine", packet: Proposed) -> str | None:
    fault = _admit(machine, packet.envelope, (Proposal,))
    if fault:
        return fault
    ballot, justify = machine.ballot, packet.justify
    if justify is not None and justify != ballot.consensus.entry:
        if justify.round != ballot.number:
            return "justified by another round"
        fault = timeout_fault(justify, ballot.consensus.voters, machine.chain.chain_id)
        if fault:
            return f"justification: {fault}"
        ballot.on_view_ended(justify)
    for envelope in packet.attestations:
        known = machine.collection.attestations.get(envelope.sender)
        member = machine.chain.members.get(envelope.sender)
        if member and known != envelope and is_genuine(envelope, machine.chain.chain_id):
            _note(machine, envelope)
    fault = ballot.on_proposed(packet)
    view = packet.envelope.statement.view  # type: ignore[union-attr]
    for voter in ballot.consensus.voters:
        for kind in ("prepare", "commit"):
            vote = machine.ledger.find(voter, kind, ballot.number, view)
            if vote is not None:
                _show_oddity(machine, vote)
    return fault


def _on_prepared(machine: "Machine", certificate: QuorumCertificate) -> str | None:
    voters, ledger = machine.ballot.consensus.voters, machine.ledger
    signers = peers_of(voters, certificate.signers) or ()
    body = encode(Prepare(certificate.round, certificate.view, certificate.digest))
    said = [ledger.find(s, "prepare", certificate.round, certificate.view) for s in signers]
    known = all(envelope is not None and envelope.body == body for envelope in said)
    if certificate.commits:
        return "commits where prepares belong"
    if known and certificate.view <= machine.ballot.consensus.committed:
        return None  # counted already, vote by vote
    fault = certificate_fault(certificate, voters, machine.chain.chain_id)
    if fault:
        return fault
    for envelope in votes_in(certificate, voters):
        _note(machine, envelope)
    machine.ballot.on_prepared(certificate)
    return None


def _on_gave_up(machine: "Machine", certificate: TimeoutCertificate) -> str | None:
    consensus = machine.ballot.consensus
    if consensus.decided or certificate.view < consensus.view:
        return None  # and unverified: it must not be remembered as said
    fault = machine.ballot.on_view_ended(certificate)
    if fault:
        return fault
    kind = STATEMENTS.index(Timeout)
    for vote in certificate.votes:
        timeout = Timeout(certificate.round, certificate.view, vote.high_view, vote.high_digest)
        _note(machine, Envelope(vote.sender, kind, encode(timeout), vote.signature))
    return None
