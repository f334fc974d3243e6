"""Who repeats whose training, and what follows when most of those who did could not.

After a round the beacon picks some of its accepted contributions, and for each of them f + 1 voters
to repeat the training behind it. A contribution commits to the record of what its training departed
from, so the author cannot choose one afterwards. Two rounds later the auditors' attestations carry
what they found; if most of those drawn for a peer say that its training cannot be repeated, it
loses reputation and its place in that round. An audit is an opinion, as a score is: it costs no
vote, and it is no evidence. Pure functions of headers and attestations; nothing here trains.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated

from peerformer.protocol.attestations import CONTRIBUTIONS_MAX, Attestation
from peerformer.protocol.codec import U64, Many, PeerId
from peerformer.protocol.committee import drawn
from peerformer.protocol.identity import hash_of
from peerformer.protocol.messages import (
    VOTERS_MAX,
    Accepted,
    Envelope,
)

AUDIT_ROUNDS = 2  # so many rounds after a contribution its auditors say what they found
AUDITS_MAX = AUDIT_ROUNDS * CONTRIBUTIONS_MAX


@dataclass(frozen=True, slots=True)
class Audit:
    """A contribution that was picked, and the voters that were drawn to repeat its training."""

    round: U64
    peer: PeerId
    auditors: Annotated[tuple[PeerId, ...], Many(VOTERS_MAX)]


def is_picked(beacon: bytes, peer: bytes, permille: int) -> bool:
    """Tell whether the beacon of a round picks a peer's contribution to it."""
    draw = int.from_bytes(hash_of("audit", beacon, peer)[:8], "little")
    return draw * 1_000 < permille << 64


def draw_audits(
    accepted: Iterable[Accepted],
    voters: Sequence[bytes],
    beacon: bytes,
    round_number: int,
    permille: int,
) -> tuple[Audit, ...]:
    """Return the audits of a decided round, sorted by peer: each by f + 1 others of these voters.

    Nobody audits itself, so a lone voter is never audited.
    """
    number = (len(voters) - 1) // 3 + 1
    picked = []
    for entry in accepted:
        if is_picked(beacon, entry.peer, permille):
            others = (voter for voter in voters if voter != entry.peer)
            auditors = drawn(others, beacon, f"auditors of {entry.peer.hex()}", number)
            if auditors:
                picked.append(Audit(round_number, entry.peer, auditors))
    return tuple(picked)


def failed_audits(
    attestations: Iterable[Envelope], audits: Iterable[Audit], round_number: int
) -> frozenset[bytes]:
    """Return the peers whose audit most of its auditors call failed in a round's attestations.

    An auditor that says nothing counts as one that found nothing wrong.
    """
    due = {audit.peer: audit for audit in audits if audit.round + AUDIT_ROUNDS == round_number}
    failures: Counter[bytes] = Counter()
    for envelope in attestations if due else ():
        statement = envelope.statement
        assert isinstance(statement, Attestation)
        for finding in statement.findings:
            audit = due.get(finding.peer)
            if audit is not None and not finding.passed and envelope.sender in audit.auditors:
                failures[finding.peer] += 1
    return frozenset(
        peer for peer, count in failures.items() if 2 * count > len(due[peer].auditors)
    )
