"""A decided round in words: what the operator and the journal are told."""

from peerformer import events
from peerformer.protocol.attestations import Attestation
from peerformer.protocol.audits import AUDIT_ROUNDS
from peerformer.protocol.collection import Collection
from peerformer.protocol.conduct import describe
from peerformer.protocol.identity import name_of
from peerformer.protocol.membership import ROLE_WORDS, SUSPENDED, Members, subject_of
from peerformer.protocol.messages import (
    Admission,
    Certified,
    Departure,
    Eviction,
    Return,
)
from peerformer.protocol.outbox import Outbox
from peerformer.protocol.refusals import AUDIT, HARMFUL, REFUSAL_WORDS


def report_decided(
    outbox: Outbox,
    item: Certified,
    before: Members,
    after: Members,
    collection: Collection,
    now: float,
) -> None:
    """Report a decided round, its refusals, and who came, went or fell from grace."""
    header = item.header
    refused = {entry.peer for entry in header.refused}
    training, waiting, checking, voting = _durations(collection, now)
    outbox.report(
        events.RoundCommitted(
            round=header.round,
            view=item.certificate.view,
            digest=header.digest.hex(),
            state_root=header.state_root.hex(),
            contributions=len({entry.peer for entry in header.contributions} | refused),
            accepted=sum(entry.peer not in refused for entry in header.contributions),
            seconds=now - collection.began,
            utilisation=_utilisation(training, now - collection.began),
            training_seconds=training,
            waiting_seconds=waiting,
            checking_seconds=checking,
            voting_seconds=voting,
        )
    )
    for entry in header.refused:
        evidence = ""
        if entry.reason == HARMFUL:
            evidence = _scores(collection, entry.peer)
        elif entry.reason == AUDIT:
            evidence = _audits(before, entry.peer, header.round)
        outbox.report(
            events.ContributionRefused(
                round=header.round,
                peer=entry.peer.hex(),
                name=name_of(entry.peer),
                reason=REFUSAL_WORDS[entry.reason] if entry.reason < len(REFUSAL_WORDS) else "?",
                evidence=evidence,
            )
        )
    _report_members(outbox, item, before, after)


def _durations(collection: Collection, now: float) -> tuple[float, float, float, float]:
    training, trained = collection.training_seconds, collection.trained_at
    revealed, attested = collection.revealed_at, collection.attested_at
    if not (trained and revealed and attested):
        return training, 0.0, 0.0, 0.0  # decided before it had seen everything
    waiting = revealed - max(trained, collection.began)
    return training, waiting, attested - revealed, now - attested


def _utilisation(training: float, seconds: float) -> float:
    """Return the share of a round's time that its training took; a part may lie before it."""
    return min(1.0, training / seconds) if seconds > 0 else 0.0


def _scores(collection: Collection, peer: bytes) -> str:
    scores = [
        judgement.score
        for envelope in collection.attestations.values()
        if isinstance(envelope.statement, Attestation)
        for judgement in envelope.statement.judgements
        if judgement.peer == peer and judgement.score is not None
    ]
    if not scores:
        return ""
    harmed = sum(score < 0 for score in scores)
    worst = -sorted(scores)[len(scores) // 2] / 1_000
    return f"{harmed} of {len(scores)}, median {worst:+.1f} milli-nats"


def _audits(members: Members, peer: bytes, number: int) -> str:
    due = (a for a in members.audits if a.peer == peer and a.round + AUDIT_ROUNDS == number)
    return "; ".join(
        f"of its contribution to round {audit.round}, repeated by "
        + ", ".join(name_of(auditor) for auditor in audit.auditors)
        for audit in due
    )


def _report_members(outbox: Outbox, item: Certified, before: Members, after: Members) -> None:
    number = item.header.round
    for member in after.members:
        earlier = before.get(member.peer)
        if member.role == SUSPENDED and earlier is not None and earlier.role != SUSPENDED:
            outbox.report(
                events.PeerSuspended(
                    round=number,
                    peer=member.peer.hex(),
                    name=name_of(member.peer),
                    idle_rounds=member.idle_rounds,
                )
            )
        if member.quarantined_until and (earlier is None or not earlier.quarantined_until):
            outbox.report(
                events.PeerQuarantined(
                    round=number,
                    peer=member.peer.hex(),
                    name=name_of(member.peer),
                    until_round=member.quarantined_until,
                )
            )
    for operation in item.header.operations:
        match operation:
            case Eviction(evidence):
                peer = subject_of(operation)
                outbox.report(
                    events.PeerEvicted(
                        round=number,
                        peer=peer.hex(),
                        name=name_of(peer),
                        evidence=describe(evidence),
                    ),
                    evidence,
                )
                _report_strikes(outbox, number, peer, before, after)
            case Admission(join):
                peer = join.sender
                newcomer = after.get(peer)
                role = ROLE_WORDS[newcomer.role] if newcomer else ""
                outbox.report(
                    events.PeerJoined(round=number, peer=peer.hex(), name=name_of(peer), role=role)
                )
            case Return(rejoin):
                peer = rejoin.sender
                outbox.report(
                    events.PeerReturned(round=number, peer=peer.hex(), name=name_of(peer))
                )
            case Departure(leave):
                peer = leave.sender
                outbox.report(events.PeerLeft(round=number, peer=peer.hex(), name=name_of(peer)))


def _report_strikes(
    outbox: Outbox, number: int, evicted: bytes, before: Members, after: Members
) -> None:
    for peer in before.vouchers_of(evicted):
        if after.get(peer) is not None:
            outbox.report(
                events.PeerStruck(
                    round=number,
                    peer=peer.hex(),
                    name=name_of(peer),
                    reason=f"it vouched for {name_of(evicted)}, which was evicted",
                )
            )


def report_fork(outbox: Outbox, mine: Certified, other: Certified) -> None:
    """Report two valid certificates for one round."""
    ours, theirs = mine.header.digest.hex(), other.header.digest.hex()
    outbox.report(
        events.ForkSeen(round=mine.header.round, digests=(ours, theirs)),
    )
