"""Why a peer is no longer trusted: evidence that convicts by itself, for anybody who can verify.

Evidence is two statements under one key that no honest peer signs both; or one attestation that
says OK for a contribution that does not decode, together with its bytes. Whoever holds the genesis
can check it; no vote, opinion or reputation enters. An honest peer is never convicted: it persists
each slot's statement before sending it, its signer refuses another one for that slot, and it
attests only what it has decoded.
"""

from dataclasses import dataclass
from typing import Any, cast

from peerformer.protocol.attestations import Attestation
from peerformer.protocol.codec import MalformedError
from peerformer.protocol.identity import blob_hash, name_of
from peerformer.protocol.messages import (
    Commit,
    Contradiction,
    Contribution,
    Envelope,
    Evidence,
    FalseHolding,
    Prepare,
    Proposal,
    Statement,
    Timeout,
    is_genuine,
)

ROUNDS_SERVED = 8  # W_serve: contributions are held, and served as evidence, for so many rounds
SLOTTED: dict[type, str] = {
    kind: kind.__name__.lower()
    for kind in (Contribution, Attestation, Proposal, Prepare, Commit, Timeout)
}
OPPOSITES = {"commit": "timeout", "timeout": "commit"}  # a timeout may deny a commit
SLOTS_PER_PEER_MAX = 256  # four rounds of a dozen views; more views than that are no accident


def slot_of(statement: Statement) -> tuple[str, int, int] | None:
    """Return the slot in which a peer signs at most one statement, or None for kinds without."""
    kind, signed = SLOTTED.get(type(statement)), cast(Any, statement)
    return None if kind is None else (kind, signed.round, getattr(signed, "view", 0))


def contradiction(first: Statement, second: Statement) -> str | None:
    """Return in words why no honest peer signs both statements, or None if one might."""
    if isinstance(first, Timeout):
        first, second = second, first
    if isinstance(first, Commit) and isinstance(second, Timeout):
        forgot = second.round == first.round and second.view >= first.view > second.high_view
        return f"denied its commit of round {first.round}, view {first.view}" if forgot else None
    slot = slot_of(first)
    if slot is None or slot != slot_of(second) or first == second or isinstance(first, Timeout):
        return None
    kind, number, view = slot
    place = (
        f"round {number}"
        if kind in ("contribution", "attestation")
        else f"round {number}, view {view}"
    )
    return f"signed two {kind}s for {place}"


@dataclass(frozen=True, slots=True)
class Exhibit:
    """The contribution that an attestation is about: what must not decode for it to be false."""

    round: int
    author: bytes
    blob_hash: bytes
    size: int


def exhibit_of(evidence: FalseHolding) -> Exhibit:
    """Return the contribution that the evidence is about; its attestation must decode."""
    statement = evidence.attestation.statement
    assert isinstance(statement, Attestation)
    return Exhibit(statement.round, evidence.author, evidence.blob_hash, evidence.size)


def is_exhibit(blob: bytes, exhibit: Exhibit, chain_id: bytes) -> bool:
    """Tell whether these are the very bytes that were attested."""
    if len(blob) != exhibit.size:
        return False
    return blob_hash(chain_id, exhibit.round, exhibit.author, [blob]) == exhibit.blob_hash


def accused_of(evidence: Evidence) -> bytes:
    """Return the peer that the evidence is about, whether or not it convicts."""
    match evidence:
        case Contradiction(first):
            return first.sender
        case FalseHolding(attestation):
            return attestation.sender


def culprit_of(evidence: Evidence, chain_id: bytes) -> bytes | None:
    """Return the peer that the signatures convict, or None if they convict nobody; never raises.

    For a false holding that is half of the proof: the contribution must not decode, see `Trials`.
    """
    if isinstance(evidence, FalseHolding):
        return _holder_of(evidence, chain_id)
    first, second = evidence.first, evidence.second
    if first.sender != second.sender:
        return None
    try:
        if contradiction(first.statement, second.statement) is None:
            return None
    except MalformedError:
        return None
    if not is_genuine(first, chain_id) or not is_genuine(second, chain_id):
        return None
    return first.sender


def _holder_of(evidence: FalseHolding, chain_id: bytes) -> bytes | None:
    try:
        statement = evidence.attestation.statement
    except MalformedError:
        return None
    if not isinstance(statement, Attestation):
        return None
    attested = (evidence.author, evidence.blob_hash, evidence.size)
    says_so = any(
        judgement.holds and (judgement.peer, judgement.blob_hash, judgement.size) == attested
        for judgement in statement.judgements
    )
    genuine = says_so and is_genuine(evidence.attestation, chain_id)
    return evidence.attestation.sender if genuine else None


def describe(evidence: Evidence) -> str:
    """Return the evidence in words; it must be one that convicts."""
    if isinstance(evidence, FalseHolding):
        author, number = name_of(evidence.author), exhibit_of(evidence).round
        claim = f"attested that it can decode the contribution of {author} for round {number}"
        return f"{claim}, blob {evidence.blob_hash.hex()[:16]}, which does not decode"
    words = contradiction(evidence.first.statement, evidence.second.statement)
    assert words is not None
    return words


class Ledger:
    """The statements seen in recent slots, so that a second one in a slot becomes evidence.

    Bounded: at most SLOTS_PER_PEER_MAX statements of one peer, of the rounds last seen.
    """

    _seen: dict[bytes, dict[tuple[str, int, int], Envelope]]  # by sender and slot

    def __init__(self) -> None:
        """Start empty."""
        self._seen = {}

    def record(self, envelope: Envelope) -> Evidence | None:
        """Remember a genuine statement; return evidence if it contradicts one seen before."""
        statement = envelope.statement
        slot = slot_of(statement)
        if slot is None:
            return None
        seen = self._seen.setdefault(envelope.sender, {})
        before = seen.get(slot)
        if before is None:
            seen[slot] = envelope
            if len(seen) > SLOTS_PER_PEER_MAX:
                del seen[max(seen, key=lambda key: key[2])]  # far views are a liar's padding
        elif before.body == envelope.body:
            return None  # said again: what contradicts it was found when it came, or comes
        elif contradiction(before.statement, statement):
            return Contradiction(before, envelope)
        opposite_kind = OPPOSITES.get(slot[0])
        if opposite_kind is None:
            return None
        opposites = (other for key, other in seen.items() if key[:2] == (opposite_kind, slot[1]))
        for opposite in opposites:
            if contradiction(opposite.statement, statement):
                return Contradiction(opposite, envelope)
        return None

    def find(self, peer: bytes, kind: str, number: int, view: int) -> Envelope | None:
        """Return the statement seen in a slot."""
        return self._seen.get(peer, {}).get((kind, number, view))

    def forget_before(self, round_number: int) -> None:
        """Drop what peers said of rounds before this one."""
        for peer, seen in list(self._seen.items()):
            kept = {slot: said for slot, said in seen.items() if slot[1] >= round_number}
            if kept:
                self._seen[peer] = kept
            else:
                del self._seen[peer]
