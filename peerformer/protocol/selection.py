"""G(attestations): which contributions a round accepts. A pure function, so no leader decides it.

A contribution is in if at least f + 1 of the included attestations hold it (one of them is honest)
and not more than half of those that scored it saw harm. Since a quorum of attestations holds at
least f + 1 honest ones, and honest ones are more than half of any quorum, no leader can drop what
all honest voters held, and f lying scorers alone neither save nor eject anybody.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from peerformer.protocol.attestations import Attestation, Judgement
from peerformer.protocol.audits import failed_audits
from peerformer.protocol.codec import MalformedError
from peerformer.protocol.genesis import Limits
from peerformer.protocol.membership import SUSPENDED, VOTER, Member, Members, tolerated_faults
from peerformer.protocol.messages import (
    Accepted,
    Envelope,
    Refused,
)
from peerformer.protocol.refusals import (
    AUDIT,
    BAD,
    EQUIVOCATED,
    HARMFUL,
    NO_SLOT,
    QUARANTINED,
    UNSUPPORTED,
)


@dataclass(frozen=True, slots=True)
class Selection:
    """What goes into a header: contributions sorted by peer, refusals with their reasons."""

    accepted: tuple[Accepted, ...]
    refused: tuple[Refused, ...]


def attestation_fault(envelope: Envelope, round_number: int) -> str | None:
    """Return why a genuine envelope is no attestation for this round, or None if it is one."""
    try:
        statement = envelope.statement
    except MalformedError as error:
        return str(error)
    if not isinstance(statement, Attestation) or statement.round != round_number:
        return "not an attestation of this round"
    for listed in (statement.judgements, statement.findings):
        peers = [entry.peer for entry in listed]
        if peers != sorted(set(peers)):
            return "judgements or findings repeated or unsorted"
    return None


def select(
    attestations: Sequence[Envelope],
    members: Members,
    limits: Limits,
    round_number: int,
    evicted: Iterable[bytes] = (),
) -> Selection:
    """Return the accepted set and the refusals that these attestations imply."""
    by_peer: dict[bytes, list[Judgement]] = defaultdict(list)
    for envelope in attestations:
        statement = envelope.statement
        assert isinstance(statement, Attestation)
        for judgement in statement.judgements:
            by_peer[judgement.peer].append(judgement)
    gone, enough = set(evicted), tolerated_faults(len(members.voters)) + 1
    failed = failed_audits(attestations, members.audits, round_number)
    candidates: list[tuple[Member, Accepted]] = []
    refused: list[Refused] = []
    for member in members.members:
        judgements = by_peer.get(member.peer)
        if member.peer in gone or member.role == SUSPENDED:
            continue
        if member.peer in failed:
            refused.append(Refused(member.peer, AUDIT))
            continue
        if not judgements:
            continue
        verdict = _judge(judgements, enough, limits.harm_micronats)
        if isinstance(verdict, Accepted) and member.quarantined_until > round_number:
            verdict = QUARANTINED
        if isinstance(verdict, Accepted):
            candidates.append((member, verdict))
        else:
            refused.append(Refused(member.peer, verdict))
    accepted, crowded = _fill(candidates, limits)
    refused += crowded
    return Selection(accepted, tuple(sorted(refused, key=lambda entry: entry.peer)))


def _judge(judgements: list[Judgement], enough: int, harm_micronats: int) -> Accepted | int:
    held = Counter((one.blob_hash, one.size) for one in judgements if one.holds)
    supported = [entry for entry, count in held.items() if count >= enough]
    if len(supported) > 1:
        return EQUIVOCATED
    if not supported:
        bad = sum(not judgement.holds for judgement in judgements)
        return BAD if bad >= enough else UNSUPPORTED
    blob_hash, size = supported[0]
    chosen = Accepted(judgements[0].peer, blob_hash, size)
    scores = [
        judgement.score
        for judgement in judgements
        if judgement.score is not None and judgement.holds and judgement.blob_hash == blob_hash
    ]
    harmful = sum(score < -harm_micronats for score in scores)
    return HARMFUL if 2 * harmful > len(scores) else chosen


def _fill(
    candidates: list[tuple[Member, Accepted]], limits: Limits
) -> tuple[tuple[Accepted, ...], list[Refused]]:
    guests_max = limits.contributions_max // 4
    ranked = sorted(candidates, key=lambda c: (c[0].role, -c[0].reputation, c[0].peer))
    accepted: list[Accepted] = []
    crowded: list[Refused] = []
    guests = 0
    for member, entry in ranked:
        is_guest = member.role != VOTER
        if len(accepted) >= limits.contributions_max or (is_guest and guests >= guests_max):
            crowded.append(Refused(member.peer, NO_SLOT))
            continue
        guests += is_guest
        accepted.append(entry)
    return tuple(sorted(accepted, key=lambda entry: entry.peer)), crowded


def contributions_needed(voters: int, limits: Limits) -> int:
    """Return K_min for this many voters: a swarm of one or two must be able to learn."""
    return min(limits.contributions_min, voters)
