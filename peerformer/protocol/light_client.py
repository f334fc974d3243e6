"""Following a swarm from its genesis alone: headers in order, one certificate, or evidence.

Whoever holds the genesis can check what a peer stored, or a file that somebody handed on, and
needs to believe nobody. The rules are those by which peers decide (`chain`, `certificates`,
`conduct`); here they only give a fault with its round instead of a vote.

A certificate alone names its own voters, so by itself it proves only that some keys signed. What
ties it to the genesis is the skipping rule of Braithwaite et al. (A Tendermint Light Client, arXiv
2010.07031): among its signers are more founders than may lie. One of these is honest, and an honest
peer commits only to what a quorum of its chain's voters has checked. Where too few founders are
left among the signers, only the headers in order prove anything.

It knows nothing of files and databases.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated, Any

from peerformer.protocol.certificates import decided_fault
from peerformer.protocol.chain import Base, Chain, is_far_enough, lone_header_fault
from peerformer.protocol.checkpoint import header_key
from peerformer.protocol.codec import U64, Hash, MalformedError, Many, OneOf, decode
from peerformer.protocol.conduct import accused_of, culprit_of, describe, exhibit_of, is_exhibit
from peerformer.protocol.genesis import Genesis
from peerformer.protocol.json_form import from_json, to_json
from peerformer.protocol.membership import Members, peers_of, tolerated_faults
from peerformer.protocol.messages import (
    OPERATIONS_MAX,
    Certified,
    Eviction,
    Evidence,
    FalseHolding,
    Header,
    QuorumCertificate,
)
from peerformer.protocol.operations import exhibit_fault


@dataclass(frozen=True, slots=True)
class RoundCertificate:
    """A decided round with what verifies it alone: chain, voters, header, their signatures."""

    chain_id: Hash
    members: Members  # of this round: the header carries their hash
    header: Header
    certificate: QuorumCertificate


@dataclass(frozen=True, slots=True)
class RoundEvidence:
    """The evidence on which one round evicted peers."""

    chain_id: Hash
    round: U64
    evidence: Annotated[tuple[Evidence, ...], Many(OPERATIONS_MAX)]


Document = RoundCertificate | RoundEvidence
_DOCUMENT = Annotated[Document, OneOf((RoundCertificate, RoundEvidence))]


@dataclass(frozen=True, slots=True)
class Fault:
    """The first thing that does not hold; `round` is None where it concerns no round."""

    round: int | None
    what: str


@dataclass(frozen=True, slots=True)
class Conviction:
    """Whom evidence convicts, and of what, in words."""

    peer: bytes
    what: str


def show_document(document: Document) -> dict[str, Any]:
    """Return the JSON form of a file to hand on, tagged with its kind."""
    shown: dict[str, Any] = to_json(document, _DOCUMENT)
    return shown


def read_document(data: object) -> Document:
    """Read what `show_document` wrote; raises MalformedError."""
    kind: Any = _DOCUMENT
    document: Document = from_json(kind, data)
    return document


# --- headers in order ----------------------------------------------------------------------------


class LightClient:
    """The chain as far as it holds, and the members of the rounds that were asked for."""

    def __init__(
        self, genesis: Genesis, keep: frozenset[int] = frozenset(), base: Base | None = None
    ) -> None:
        """Start at the genesis, or at a base, which proves nothing without a checkpoint.

        `keep` names rounds whose members are needed later.
        """
        self.chain = Chain(genesis, base=base if base and base.round else None)
        self.keep = keep
        self.members: dict[int, Members] = {}

    def follow(self, records: Iterable[tuple[str, bytes]]) -> Fault | None:
        """Take in stored headers as long as they hold; returns what is wrong with the first."""
        chain = self.chain
        for key, data in records:
            number = chain.tip + 1
            if key != header_key(number):
                return Fault(number, f"its header is missing; {key!r:.40} stands in its place")
            try:
                item = decode(Certified, data)
                if number in self.keep:
                    self.members[number] = chain.members
                fault = chain.append(item)
            except MalformedError as error:
                return Fault(number, f"its record is malformed: {error}")
            if fault:
                return Fault(number, fault)
        return None

    def checkpoint_fault(self, checkpoint: tuple[int, bytes] | None) -> Fault | None:
        """Return why what was followed is not what a checkpoint (round, digest) vouches for."""
        base = self.chain.base
        if checkpoint is None:
            what = f"the headers begin at round {base.round + 1}, and the genesis alone does not "
            what += "vouch for that; --checkpoint ROUND:DIGEST, from somebody you trust, may"
            return Fault(None, what) if base.round else None
        number, digest = checkpoint
        item = self.chain.item(number)
        if item is None:
            return Fault(number, "the checkpoint's round is not among the headers")
        if item.header.digest != digest:
            return Fault(number, "another header than the checkpoint's")
        if not is_far_enough(base.round, number):
            return Fault(
                number, f"the checkpoint is too near to round {base.round} to vouch for it"
            )
        return None

    def state_fault(self, number: int, root: bytes, size_bytes: int) -> Fault | None:
        """Return why a state is not the one that the chain agreed on in a round, or None."""
        chain = self.chain
        if number > chain.tip:
            return Fault(number, f"a state of a round after the last decided one, {chain.tip}")
        if size_bytes != chain.genesis.state_size:
            return Fault(
                number, f"the state has {size_bytes} bytes, not {chain.genesis.state_size}"
            )
        item = chain.item(number)
        if item is None and number:
            return Fault(number, f"a state of a round before the headers, {chain.base.round + 1}")
        agreed = item.header.state_root if item else chain.genesis.state_root
        return (
            None if root == agreed else Fault(number, "the state has another root than agreed on")
        )

    def copy_fault(self, number: int, copy: Certified | None) -> Fault | None:
        """Return why another copy of a round's certified header does not hold, or None."""
        mine = self.chain.item(number)
        if mine is None or copy is None:
            same = mine is None and copy is None and number == 0
            return None if same else Fault(number, "a certified header that this chain lacks")
        if copy.header.digest != mine.header.digest:
            return Fault(number, "a copy of its header differs from the chain's")
        fault = decided_fault(copy, self.members[number].voters, self.chain.chain_id)
        return Fault(number, f"the certificate of a copy: {fault}") if fault else None

    def convictions(self) -> tuple[Conviction, ...]:
        """Return those whom the chain evicted, in order."""
        return tuple(
            Conviction(accused_of(operation.evidence), describe(operation.evidence))
            for item in self.chain.items
            for operation in item.header.operations
            if isinstance(operation, Eviction)
        )

    def certificate_of(self, number: int) -> RoundCertificate:
        """Return a round that was kept as a file to hand on."""
        item = self.chain.item(number)
        assert item is not None and number in self.members
        return RoundCertificate(
            self.chain.chain_id, self.members[number], item.header, item.certificate
        )

    def evidence_of(self, number: int) -> RoundEvidence:
        """Return the evidence on which a held round evicted peers; it may be none."""
        item = self.chain.item(number)
        assert item is not None
        found = (op.evidence for op in item.header.operations if isinstance(op, Eviction))
        return RoundEvidence(self.chain.chain_id, number, tuple(found))


# --- one file alone ------------------------------------------------------------------------------


def foreign_fault(chain_id: bytes, genesis: Genesis) -> str | None:
    """Return that something belongs to another chain than the genesis', or None."""
    if chain_id == genesis.chain_id:
        return None
    theirs, ours = chain_id.hex()[:16], genesis.chain_id.hex()[:16]
    return f"it belongs to chain {theirs}…, the genesis to {ours}…"


def certificate_file_fault(document: RoundCertificate, genesis: Genesis) -> Fault | None:
    """Return why a certificate that stands alone does not hold, or None.

    Without the rounds before it, the parent, the beacon and the state root rest on the signatures.
    """
    header, members, chain_id = document.header, document.members, document.chain_id
    ids = [member.peer for member in members.members]
    fault = foreign_fault(chain_id, genesis)
    if fault is None and ids != sorted(set(ids)):
        fault = "members repeated or unsorted"
    try:
        fault = fault or lone_header_fault(header, members, genesis, chain_id)
    except (MalformedError, OverflowError) as error:  # a statement, a number that none would reach
        fault = f"malformed: {error}"
    decided = Certified(header, document.certificate)
    fault = (
        fault
        or decided_fault(decided, members.voters, chain_id)
        or _founders_fault(document, genesis)
    )
    return Fault(header.round, fault) if fault else None


def _founders_fault(document: RoundCertificate, genesis: Genesis) -> str | None:
    founding = {founder.peer for founder in genesis.founders}
    signers = peers_of(document.members.voters, document.certificate.signers) or ()
    signed, needed = len(founding.intersection(signers)), tolerated_faults(len(founding)) + 1
    if signed >= needed:
        return None
    return (
        f"{signed} of {len(founding)} founders are among its signers, {needed} are needed:"
        " only the headers in order tie it to the genesis"
    )


def evidence_file_fault(
    document: RoundEvidence,
    genesis: Genesis,
    blobs: tuple[bytes, ...],
    format_fault: Callable[[bytes], str | None],
) -> Fault | None:
    """Return why a file of evidence convicts nobody, or None.

    Args:
        document: the evidence.
        genesis: the only thing that is believed.
        blobs: contributions, in any order; a false holding convicts only with the one it is about.
        format_fault: why a contribution does not decode by the genesis' recipe, or None.
    """
    fault = foreign_fault(document.chain_id, genesis)
    if fault is None and not document.evidence:
        fault = "there is no evidence in it"
    for index, evidence in enumerate(document.evidence):
        if fault is None and culprit_of(evidence, document.chain_id) is None:
            fault = f"evidence[{index}] convicts nobody"
        elif fault is None and isinstance(evidence, FalseHolding):
            why = exhibit_fault(evidence, genesis, document.round)
            why = why or _holding_fault(evidence, document.chain_id, blobs, format_fault)
            fault = f"evidence[{index}] {why}" if why else None
    return Fault(document.round, fault) if fault else None


def _holding_fault(
    evidence: FalseHolding,
    chain_id: bytes,
    blobs: tuple[bytes, ...],
    format_fault: Callable[[bytes], str | None],
) -> str | None:
    exhibit = exhibit_of(evidence)
    blob = next((blob for blob in blobs if is_exhibit(blob, exhibit, chain_id)), None)
    if blob is None:
        lacking = "none of the given blobs is it" if blobs else "add it with --blob FILE"
        key = exhibit.blob_hash.hex()
        return f"rests on the {exhibit.size} bytes with keyed hash {key}: {lacking}"
    return None if format_fault(blob) else "convicts nobody: the contribution decodes"


def convicted_by(document: RoundEvidence) -> tuple[Conviction, ...]:
    """Return whom evidence without a fault convicts, and of what."""
    return tuple(Conviction(accused_of(e), describe(e)) for e in document.evidence)
