"""Building a round's header and proving one valid: the same arithmetic on both sides.

A header follows from attestations: G gives the accepted set, APPLY the state root. A voter never
believes a header: it checks the attestations, repeats G, holds every accepted contribution and
computes the state root itself. What takes time is ordered as work, and asked for again when it is
done.
"""

from dataclasses import dataclass, field, replace

from peerformer.protocol.attestations import Attestation
from peerformer.protocol.chain import Chain
from peerformer.protocol.collection import Collection, attestations_hash
from peerformer.protocol.conduct import exhibit_of
from peerformer.protocol.effects import Applied, Apply
from peerformer.protocol.identity import HashChain, hash_of
from peerformer.protocol.membership import bits_of, peers_of, quorum, subject_of
from peerformer.protocol.messages import (
    NO_HASH,
    OPERATIONS_MAX,
    PROTOCOL_VERSION,
    Accepted,
    Contradiction,
    Envelope,
    Eviction,
    Header,
    HeaderBody,
    Operation,
    Refused,
    is_genuine,
)
from peerformer.protocol.outbox import Outbox
from peerformer.protocol.refusals import NORM
from peerformer.protocol.selection import (
    Selection,
    attestation_fault,
    contributions_needed,
    select,
)
from peerformer.protocol.trials import Trials

Attestations = tuple[Envelope, ...]
BODIES_KEPT_MAX = 16  # each leader of a view can make one
APPLIES_KEPT_MAX = 16


@dataclass(slots=True)
class Headers:
    """The headers of one round: mine, others', and which of them I proved valid."""

    chain: Chain
    collection: Collection
    outbox: Outbox
    hash_chain: HashChain
    operations: dict[bytes, Operation]  # pending, by subject
    trials: Trials
    state_ready: bool = False  # the agreed state of the round before is installed
    bodies: dict[bytes, HeaderBody] = field(default_factory=dict)  # these passed the cheap checks
    valid: set[bytes] = field(default_factory=set)
    voted: set[bytes] = field(default_factory=set)  # voted for before a restart
    applied: dict[Apply, Applied | None] = field(default_factory=dict)  # None: under way
    # The last of each, and what they were made of.
    _selected: tuple[Attestations, tuple[Operation, ...], Selection] | None = None
    _hashed: tuple[Attestations, bytes] | None = None
    _admitted: tuple[list[Operation], tuple[Operation, ...]] | None = None

    @property
    def number(self) -> int:
        """The round."""
        return self.collection.number

    # --- building ------------------------------------------------------------------------------

    def draft(self, *, leads: bool) -> HeaderBody | None:
        """Return the header that follows from all attestations held, once it is computed.

        Whoever does not lead computes the state root all the same: the leader's header will most
        likely rest on the same attestations.
        """
        held = self.collection.attestations
        attestations = tuple(envelope for _, envelope in sorted(held.items()))
        operations = self._admissible_operations()
        selection = self._select(attestations, operations)
        apply = self.apply_of(selection.accepted, self._hash(attestations))
        outcome = self.outcome(apply, attestations)
        if not leads or outcome is None:
            return None
        chain, me = self.chain, self.chain.members.get(self.outbox.keys.peer_id)
        reveal = self.hash_chain.next_after(me.chain_anchor) if me else None
        if me is None or reveal is None:
            return None
        header = Header(
            version=PROTOCOL_VERSION,
            round=self.number,
            parent=chain.head,
            members_hash=chain.members.hash,
            next_members_hash=NO_HASH,
            parameters_hash=chain.genesis.parameters_hash,
            builder=me.peer,
            attesters=bits_of(chain.members.voters, {e.sender for e in attestations}),
            attestations_hash=self._hash(attestations),
            contributions=selection.accepted,
            refused=_with_norms(selection.refused, outcome.out_of_norm),
            operations=operations,
            reveal=reveal,
            beacon=chain.next_beacon(reveal),
            state_root=outcome.state_root,
        )
        header = replace(
            header,
            next_members_hash=chain.succeed(chain.members, header, chain.genesis.limits).hash,
        )
        body = HeaderBody(header, attestations)
        assert self.add(body) is None, "my own header does not pass"
        self.valid.add(header.digest)
        return body

    def _hash(self, attestations: Attestations) -> bytes:
        if self._hashed is None or self._hashed[0] != attestations:
            self._hashed = (attestations, attestations_hash(attestations))
        return self._hashed[1]

    def _admissible_operations(self) -> tuple[Operation, ...]:
        pending = list(self.operations.values())
        if self._admitted is not None and self._admitted[0] == pending:
            return self._admitted[1]
        chosen: tuple[Operation, ...] = ()
        for subject in sorted(self.operations):
            if len(chosen) == OPERATIONS_MAX:
                break
            more = (*chosen, self.operations[subject])
            if self.chain.operations_fault(more) is None:
                chosen = more
        self._admitted = (pending, chosen)
        return chosen

    def _select(self, attestations: Attestations, operations: tuple[Operation, ...]) -> Selection:
        if self._selected is not None and self._selected[:2] == (attestations, operations):
            return self._selected[2]
        evicted = [subject_of(op) for op in operations if isinstance(op, Eviction)]
        limits = self.chain.genesis.limits
        selection = select(attestations, self.chain.members, limits, self.number, evicted)
        needed = contributions_needed(len(self.chain.members.voters), limits)
        if len(selection.accepted) < needed:
            selection = Selection((), selection.refused)
        self._selected = (attestations, operations, selection)
        return selection

    # --- computing what follows ----------------------------------------------------------------

    def apply_of(self, accepted: tuple[Accepted, ...], attested: bytes) -> Apply | None:
        """Return the aggregation that an accepted set means, or None for a null round."""
        seed = hash_of("sketch", self.chain.head, attested)
        return Apply(self.number, accepted, seed) if accepted else None

    def outcome(self, apply: Apply | None, attestations: Attestations) -> Applied | None:
        """Return the outcome of an aggregation, or None after ordering what it still needs."""
        if apply is None:
            return Applied(self.chain.state_root, ())
        if apply in self.applied:
            return self.applied[apply]
        if not self.state_ready or not self._holds_all(apply, attestations):
            return None
        while len(self.applied) >= APPLIES_KEPT_MAX:  # the oldest is needed least
            del self.applied[next(iter(self.applied))]
        self.applied[apply] = None
        self.outbox.work(apply)
        return None

    def on_failed(self, apply: Apply) -> None:
        """Forget an aggregation whose contributions were gone: they are fetched again."""
        self.applied.pop(apply, None)
        for entry in apply.contributions:
            if self.collection.held.get(entry.peer) == entry.blob_hash:
                del self.collection.held[entry.peer]

    def _holds_all(self, apply: Apply, attestations: Attestations) -> bool:
        wanted = {entry.peer: (entry.blob_hash, entry.size) for entry in apply.contributions}
        missing = self.collection.missing(wanted)
        for author in sorted(missing - self.collection.unreadable.keys()):
            blob, size = wanted[author]
            holders = [
                envelope.sender
                for envelope in attestations
                if isinstance(envelope.statement, Attestation)
                and any(j.holds and j.blob_hash == blob for j in envelope.statement.judgements)
            ]
            self.collection.fetch(author, blob, size, (*holders, author))
        return not missing

    # --- judging -------------------------------------------------------------------------------

    def add(self, body: HeaderBody) -> str | None:
        """Take a header with its attestations in; returns why it cannot be valid, or None."""
        digest = body.header.digest
        if digest in self.bodies:
            return None
        fault = self.chain.header_fault(body.header) or self._attestations_fault(body)
        if fault is None:
            self.bodies[digest] = body
            self._make_room(digest)
        return fault

    def _make_room(self, newest: bytes) -> None:
        """Let the oldest header go, but none that I voted for: it may be locked, and asked for."""
        needed = self.valid | self.voted | {newest}
        spare = [digest for digest in self.bodies if digest not in needed]
        for digest in spare[: max(0, len(self.bodies) - BODIES_KEPT_MAX)]:
            del self.bodies[digest]

    def _attestations_fault(self, body: HeaderBody) -> str | None:
        header, attestations = body.header, body.attestations
        voters = self.chain.members.voters
        senders = [envelope.sender for envelope in attestations]
        if senders != sorted(set(senders)) or len(senders) < quorum(len(voters)):
            return "attestations repeated, unsorted or too few"
        if header.attesters != bits_of(voters, set(senders)) or not set(senders) <= set(voters):
            return "attesters do not match"
        if header.attestations_hash != self._hash(attestations):
            return "other attestations than the header's"
        for envelope in attestations:
            if self.collection.attestations.get(envelope.sender) == envelope:
                continue  # checked when it came
            if not is_genuine(envelope, self.chain.chain_id):
                return "a forged attestation"
            fault = attestation_fault(envelope, self.number)
            if fault:
                return fault
        selection = self._select(attestations, header.operations)
        norms = tuple(entry.peer for entry in header.refused if entry.reason == NORM)
        if header.contributions != selection.accepted:
            return "accepted set is not what the attestations imply"
        if header.refused != _with_norms(selection.refused, norms):
            return "refusals are not what the attestations imply"
        return None

    def is_valid(self, digest: bytes) -> bool:
        """Tell whether I proved a header valid, ordering what the proof still needs."""
        body = self.bodies.get(digest)
        if digest in self.valid or body is None:
            return digest in self.valid
        header = body.header
        apply = self.apply_of(header.contributions, header.attestations_hash)
        outcome = self.outcome(apply, body.attestations)
        if not self._convictions_hold(header) or outcome is None:
            return False
        norms = {entry.peer for entry in header.refused if entry.reason == NORM}
        if outcome.state_root == header.state_root and norms == set(outcome.out_of_norm):
            self.valid.add(digest)
        return digest in self.valid

    def _convictions_hold(self, header: Header) -> bool:
        """Tell whether I found false each attestation that it convicts, ordering a look if need be.

        Whoever built it has looked, and so has everybody who voted for it.
        """
        hold = True
        for operation in header.operations:
            if not isinstance(operation, Eviction) or isinstance(operation.evidence, Contradiction):
                continue
            exhibit = exhibit_of(operation.evidence)
            decodes = self.trials.verdicts.get(exhibit)
            hold = hold and decodes is False
            if decodes is None:
                attesters = peers_of(self.chain.members.voters, header.attesters) or ()
                self.trials.inspect(exhibit, (header.builder, *attesters, exhibit.author))
        return hold


def _with_norms(refused: tuple[Refused, ...], peers: tuple[bytes, ...]) -> tuple[Refused, ...]:
    norms = tuple(Refused(peer, NORM) for peer in peers)
    return tuple(sorted((*refused, *norms), key=lambda entry: entry.peer))
