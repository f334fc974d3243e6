"""Peers that break the protocol with valid keys: every protocol attack, as a wrapper.

The liar runs the production machine and twists what it sends, drops it, or adds to it; colluders
share a `Plot`, which signs for all of them and knows which headers each has seen. `ATTACKS` names
the lies; one liar may tell several at once. Nothing here forges a signature of an honest peer:
that is what the forged certificates try, and everybody must refuse them.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from random import Random

from peerformer.false_base import FalseBases
from peerformer.peer import Peer
from peerformer.protocol.attestations import Attestation
from peerformer.protocol.certificates import assemble_timeouts
from peerformer.protocol.codec import MalformedError
from peerformer.protocol.collection import attestations_hash
from peerformer.protocol.effects import (
    Audited,
    Check,
    Checked,
    Effect,
    Event,
    Received,
    Repeat,
    Send,
    TimerFired,
    Work,
    WorkFinished,
)
from peerformer.protocol.identity import KeyPair, hash_of
from peerformer.protocol.membership import bits_of, next_members, quorum
from peerformer.protocol.messages import (
    NO_HASH,
    Certified,
    Commit,
    Contradiction,
    Contribution,
    Envelope,
    Eviction,
    GaveUp,
    HeaderBody,
    Headers,
    Packet,
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
    sign,
)
from peerformer.protocol.newcomer_packets import BaseOf
from peerformer.protocol.selection import contributions_needed, select

ATTACKS = {
    "equivocate": "prepares two headers in one view",
    "equivocate-commit": "commits two headers in one view",
    "equivocate-attest": "attests different things to different peers",
    "equivocate-contribution": "commits to two contributions",
    "split": "as leader, proposes two valid headers to two halves",
    "double-vote": "prepares and commits every header that anybody proposes",
    "amnesia": "denies its locks when it gives a view up",
    "hidden-lock": "shows its votes and locks to one victim a round",
    "subset": "says everything to a random part of the peers",
    "silent": "trains and attests, but never votes or proposes",
    "wrong-root": "as leader, proposes a state root that does not follow",
    "wrong-members": "as leader, proposes members for the next round that do not follow",
    "no-reproposal": "as leader, proposes anew although a header is locked",
    "forge": "forges certificates, with strangers, repeats and invented signatures",
    "far-timeouts": "gives up views that are far away",
    "late-reveal": "commits to its contribution after the others have revealed theirs",
    "withhold-blob": "never serves what it committed to",
    "withhold-record": "never hands out what its trainings departed from",
    "half-serve": "serves what it committed to to some only",
    "bad-state": "serves a false state to whoever catches up",
    "false-base": "sends newcomers a chain that only the liar signed, or a base with a false word",
    "lying-scorer": "says that its friends' contributions do good, and all others harm",
    "false-finding": "says that its friends' trainings can be repeated, and no others",
    "false-ok": "attests that contributions decode which do not",
    "false-evidence": "accuses others with statements they never signed",
    "desert": "gives up a view of a round once, and says nothing more in that round",
    "stale": "repeats old messages of anybody",
}
OLD_FRAMES_KEPT = 64
LATE_SECONDS = 4.0
FAR_VIEW = 1 << 31
PRAISE_MICRONATS = 1_000_000


@dataclass(slots=True)
class Plot:
    """What colluders share: their keys, and the headers that were proposed."""

    chain_id: bytes
    keys: dict[bytes, KeyPair]
    friends: set[bytes] = field(default_factory=set)  # whom they help, with its key or without
    proposed: dict[tuple[int, int], list[bytes]] = field(default_factory=dict)
    victims: frozenset[bytes] | None = None  # who hears the other story; None: a half, in turn
    acts: int = 0

    def note(self, envelope: Envelope) -> bool:
        """Note a proposal; tells whether its header is new."""
        statement = envelope.statement
        if not isinstance(statement, Proposal):
            return False
        digests = self.proposed.setdefault((statement.round, statement.view), [])
        if statement.digest in digests:
            return False
        digests.append(statement.digest)
        return True


class Byzantine:
    """A peer that lies in the named ways; the same interface as `Peer`."""

    def __init__(
        self, peer: Peer, attacks: tuple[str, ...], random: Random, plot: Plot, from_round: int = 0
    ) -> None:
        """Lie from a round on; before it the peer is honest."""
        unknown = set(attacks) - ATTACKS.keys()
        assert not unknown, unknown
        self.peer, self.attacks, self.random, self.plot = peer, attacks, random, plot
        self.machine, self.bench, self.blobs = peer.machine, peer.bench, peer.blobs
        self.from_round = from_round
        self.later: list[tuple[float, Send]] = []
        self.old: list[Packet] = []
        self.others: dict[bytes, HeaderBody | None] = {}  # digest -> the second header
        self.voted: set[tuple[int, int, bytes]] = set()
        self.gave_up = False  # a view of this round, before the event at hand
        self.false_bases = FalseBases(random)

    @property
    def lies(self) -> bool:
        """Whether the time to lie has come."""
        return self.machine.collection.number >= self.from_round

    def perform(self, work: Work, should_stop: Callable[[], bool] = lambda: False) -> WorkFinished:
        """Work honestly; a false holder says the best of what does not decode, and so on."""
        finished = self.peer.perform(work, should_stop)
        result = finished.result
        if "false-finding" in self.attacks and self.lies and isinstance(work, Repeat):
            self.plot.acts += 1
            return replace(finished, result=Audited(work.author in self.plot.friends, "so I say"))
        if "false-ok" not in self.attacks or not self.lies or not isinstance(result, Checked):
            return finished
        if not result.malformed:
            return finished
        self.plot.acts += 1
        scored = isinstance(work, Check) and work.score_seed is not None
        return replace(finished, result=Checked(None, PRAISE_MICRONATS if scored else None))

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Advance honestly, then twist what is sent."""
        self.gave_up = bool(self.machine.ballot.timeouts)
        effects = self.peer.handle(event, now)
        if not self.lies:
            return effects
        told: list[Effect] = []
        for effect in effects:
            told += self._twist(effect, now) if isinstance(effect, Send) else [effect]
        return told + self._add(event, now)

    def serves(self, peer: bytes, key: bytes) -> bool:
        """Whether this peer may fetch something of mine."""
        if not self.lies:
            return True
        withheld = "withhold-record" if key in self.peer.records else "withhold-blob"
        unlucky = "half-serve" in self.attacks and self._unlucky(peer)
        return withheld not in self.attacks and not unlucky

    def state_to_serve(self, state: bytes) -> bytes:
        """Return the state that is served to whoever catches up."""
        return state[::-1] if self.lies and "bad-state" in self.attacks else state

    def _unlucky(self, peer: bytes) -> bool:
        """Whether a peer is on the bad side, another half each round unless it is settled."""
        if self.plot.victims is not None:
            return peer in self.plot.victims
        round_bytes = self.machine.collection.number.to_bytes(8, "little")
        return hash_of("half", round_bytes, peer)[0] < 128

    def _sign(self, statement: Statement, keys: KeyPair | None = None) -> Envelope:
        self.plot.acts += 1
        return sign(keys or self.machine.keys, self.plot.chain_id, statement)

    # --- twisting what the machine sends -------------------------------------------------------

    def _twist(self, effect: Send, now: float) -> list[Effect]:
        packet = effect.packet
        envelope = getattr(packet, "envelope", None)
        mine = envelope is not None and envelope.sender == self.machine.me
        if "hidden-lock" in self.attacks and self._hides(effect, mine=mine):
            return []
        silent = "silent" in self.attacks and _votes(packet)
        if silent or ("desert" in self.attacks and self._deserts(packet)):
            self.plot.acts += 1
            return []
        if "false-base" in self.attacks and isinstance(packet, BaseOf | Headers):
            self.plot.acts += 1
            told = self.false_bases.told(self.machine, effect.peer, packet)
            return [replace(effect, packet=told)]
        if not mine:
            return [effect]
        assert envelope is not None
        if isinstance(packet, Proposed):
            self.plot.note(envelope)
        if "subset" in self.attacks and self.random.random() < 0.5:
            self.plot.acts += 1
            return []
        statement = envelope.statement
        if "double-vote" in self.attacks and isinstance(statement, Prepare | Commit):
            return []  # it is told apart from the others, to each voter in its own order
        if "late-reveal" in self.attacks and isinstance(statement, Contribution):
            self.later.append((now + LATE_SECONDS, effect))
            return []
        twisted = self._other_packet(packet, statement, effect.peer)
        return [replace(effect, packet=twisted or packet)]

    def _deserts(self, packet: Packet) -> bool:
        return self.gave_up and (isinstance(packet, TimedOut | GaveUp) or _votes(packet))

    def _hides(self, effect: Send, *, mine: bool) -> bool:
        packet = effect.packet
        votes = isinstance(packet, Prepared) or (
            mine
            and isinstance(packet, Said)
            and isinstance(packet.envelope.statement, Prepare | Commit)
        )
        voters = self.machine.chain.members.voters
        number = self.machine.collection.number
        victim = voters[hash_of("victim", number.to_bytes(8, "little"))[0] % len(voters)]
        return votes and effect.peer != victim

    def _other_packet(self, packet: Packet, statement: Statement, peer: bytes) -> Packet | None:
        """Return the lie told to this peer instead, or None for the truth."""
        unlucky, attacks = self._unlucky(peer), self.attacks
        match statement:
            case Prepare() if "equivocate" in attacks and unlucky:
                return Said(self._sign(replace(statement, digest=_other(statement.digest))))
            case Commit() if "equivocate-commit" in attacks and unlucky:
                return Said(self._sign(replace(statement, digest=_other(statement.digest))))
            case Contribution() if "equivocate-contribution" in attacks and unlucky:
                return Said(self._sign(replace(statement, blob_hash=_other(statement.blob_hash))))
            case Attestation() if "equivocate-attest" in attacks and unlucky:
                return Said(self._sign(replace(statement, judgements=statement.judgements[:-1])))
            case Attestation() if "lying-scorer" in attacks:
                return Said(self._sign(self._slandered(statement)))
            case Timeout() if "amnesia" in attacks:
                forgot = replace(statement, high_view=-1, high_digest=NO_HASH)
                return TimedOut(self._sign(forgot), None)
            case Proposal() if isinstance(packet, Proposed):
                return self._other_proposal(packet, statement, unlucky=unlucky)
        return None

    def _slandered(self, statement: Attestation) -> Attestation:
        me = self.machine.me
        judgements = tuple(
            j
            if j.peer == me
            else replace(j, score=1_000_000 if j.peer in self.plot.friends else -1_000_000)
            for j in statement.judgements
        )
        return replace(statement, judgements=judgements)

    def _other_proposal(
        self, packet: Proposed, statement: Proposal, *, unlucky: bool
    ) -> Proposed | None:
        body = HeaderBody(packet.header, packet.attestations)
        if "wrong-root" in self.attacks:
            header = replace(packet.header, state_root=_other(packet.header.state_root))
            return self._propose(statement, HeaderBody(header, packet.attestations), packet.justify)
        if "wrong-members" in self.attacks:
            header = replace(packet.header, next_members_hash=_other(packet.header.parent))
            return self._propose(statement, HeaderBody(header, packet.attestations), packet.justify)
        if "no-reproposal" in self.attacks and packet.justify is not None:
            other = self._second(body)
            return self._propose(statement, other, self._blinded(packet.justify)) if other else None
        if "split" in self.attacks and unlucky and statement.view == 0:
            other = self._second(body)
            return self._propose(statement, other, packet.justify) if other else None
        return None

    def _propose(
        self, statement: Proposal, body: HeaderBody, justify: TimeoutCertificate | None
    ) -> Proposed:
        envelope = self._sign(replace(statement, digest=body.header.digest))
        self.plot.note(envelope)
        return Proposed(envelope, body.header, body.attestations, justify)

    def _blinded(self, justify: TimeoutCertificate) -> TimeoutCertificate:
        """Return a certificate without the lock, if enough voters can be shown without one."""
        consensus = self.machine.ballot.consensus
        number, view = justify.round, justify.view
        blind = {
            sender: seen
            for sender, seen in consensus.timeouts_seen().items()
            if seen[0].view == view and seen[2] is None
        }
        for peer, keys in self.plot.keys.items():
            if peer in consensus.voters:
                timeout = Timeout(number, view, -1, NO_HASH)
                blind[peer] = (timeout, self._sign(timeout, keys).signature, None)
        if len(blind) < quorum(len(consensus.voters)):
            return justify
        return assemble_timeouts(number, view, blind, consensus.voters)

    def _second(self, body: HeaderBody) -> HeaderBody | None:
        """Return another valid header for the round, of other attestations."""
        digest = body.header.digest
        if digest not in self.others:
            self.others[digest] = self._made_anew(body)
        return self.others[digest]

    def _made_anew(self, body: HeaderBody) -> HeaderBody | None:
        chain, number = self.machine.chain, self.machine.collection.number
        voters = chain.members.voters
        attestations = self._other_attestations(body.attestations, len(voters))
        if attestations is None:
            return None
        limits = chain.genesis.limits
        selection = select(attestations, chain.members, limits, number)
        accepted = selection.accepted
        if len(accepted) < contributions_needed(len(voters), limits):
            return None
        attested = attestations_hash(attestations)
        blobs = [(entry.peer, self.blobs.get(entry.blob_hash)) for entry in accepted]
        held = [(peer, blob) for peer, blob in blobs if blob is not None]
        seed = hash_of("sketch", chain.head, attested)
        outcome = self.bench.apply(number, held, seed) if len(held) == len(blobs) else None
        if outcome is None:
            return None
        header = replace(
            body.header,
            builder=self.machine.me,
            attesters=bits_of(voters, {envelope.sender for envelope in attestations}),
            attestations_hash=attested,
            contributions=accepted,
            refused=selection.refused,
            operations=(),
            state_root=outcome.state_root,
        )
        me = chain.members.get(self.machine.me)
        reveal = self.machine.hash_chain.next_after(me.chain_anchor) if me else None
        if reveal is None:
            return None
        header = replace(header, reveal=reveal, beacon=chain.next_beacon(reveal))
        header = replace(header, next_members_hash=next_members(chain.members, header, limits).hash)
        return HeaderBody(header, attestations)

    def _other_attestations(
        self, attestations: tuple[Envelope, ...], voters: int
    ) -> tuple[Envelope, ...] | None:
        if len(attestations) > quorum(voters):
            left_out = self.random.randrange(len(attestations))
            return attestations[:left_out] + attestations[left_out + 1 :]
        for index, envelope in enumerate(attestations):
            keys, statement = self.plot.keys.get(envelope.sender), envelope.statement
            if keys is not None and isinstance(statement, Attestation) and statement.judgements:
                other = replace(statement, judgements=statement.judgements[:-1])
                signed = self._sign(other, keys)
                return (*attestations[:index], signed, *attestations[index + 1 :])
        return None

    # --- adding to what the machine sends ------------------------------------------------------

    def _add(self, event: Event, now: float) -> list[Effect]:
        sends: list[Effect] = [send for due, send in self.later if due <= now]
        self.later = [(due, send) for due, send in self.later if due > now]
        if isinstance(event, Received):
            self._on_packet(event)
        if "double-vote" in self.attacks:
            sends += self._vote_for_all()
        if isinstance(event, TimerFired) and event.name == "tick":
            for attack, move in _MOVES.items():
                if attack in self.attacks and self.random.random() < 0.3:
                    self.plot.acts += 1
                    sends += self._broadcast(move(self))
        return sends

    def _on_packet(self, event: Received) -> None:
        try:
            packet = self.machine.unpack(event.frame)
        except MalformedError:
            return
        if len(self.old) < OLD_FRAMES_KEPT or self.random.random() < 0.1:
            self.old = [*self.old[-OLD_FRAMES_KEPT:], packet]
        if isinstance(packet, Proposed) and self.plot.note(packet.envelope):
            self.plot.acts += 1

    def _vote_for_all(self) -> list[Effect]:
        """Vote for every header that the plot knows of, before each voter for its own."""
        consensus = self.machine.ballot.consensus
        place = consensus.round, consensus.view
        digests = self.plot.proposed.get(place, [])
        if all((*place, digest) in self.voted for digest in digests):
            return []
        self.voted |= {(*place, digest) for digest in digests}
        votes = [
            [Said(self._sign(kind(*place, digest))) for kind in (Prepare, Commit)]
            for digest in digests
        ]
        sends: list[Effect] = []
        for voter in consensus.voters:
            mine = votes[-1] if self._unlucky(voter) else votes[0]
            sends += [Send(voter, vote) for vote in mine if voter != self.machine.me]
        return sends

    def _broadcast(self, packet: Packet | None) -> list[Effect]:
        if packet is None:
            return []
        connected = sorted(self.machine.outbox.connected)
        return [Send(peer, packet) for peer in connected]

    def forged(self) -> Packet:
        """Return a certificate that proves nothing, one of many kinds."""
        machine = self.machine
        voters, number = machine.chain.members.voters, machine.collection.number
        view, digest = machine.ballot.consensus.view, hash_of("forged", bytes([number % 256]))
        enough = quorum(len(voters))
        everyone = bits_of(voters, set(voters[:enough]))
        kind = self.random.randrange(6)
        mine = self._sign(Commit(number, view, digest)).signature
        if kind == 0:  # one signature, repeated
            commits = self.random.random() < 0.5
            once = (Commit if commits else Prepare)(number, view, digest)
            repeated = (self._sign(once).signature,) * enough
            certificate = QuorumCertificate(commits, number, view, digest, everyone, repeated)
            return Prepared(certificate)
        if kind == 1:  # invented signatures
            invented = tuple(hash_of("no", bytes([i])) * 2 for i in range(enough))
            return Prepared(QuorumCertificate(False, number, view, digest, everyone, invented))
        bodies = list(machine.ballot.headers.bodies.values())
        if kind == 2 and bodies:  # a valid header, decided by nobody but the liar
            body = self._second(bodies[0]) or bodies[0]
            few = bits_of(voters, {machine.me})
            commit = Commit(number, view, body.header.digest)
            only = (self._sign(commit).signature,)
            return Certified(
                body.header, QuorumCertificate(True, number, view, commit.digest, few, only)
            )
        if kind == 5 and machine.chain.items:  # a decided header again, as the next one
            header = replace(
                machine.chain.items[-1].header, round=number, parent=machine.chain.head
            )
            few = bits_of(voters, {machine.me})
            proof = QuorumCertificate(True, number, view, header.digest, few, (mine,))
            return Certified(header, proof)
        if kind == 3:  # a timeout whose lock is invented
            high = QuorumCertificate(False, number, view, digest, everyone, (mine,) * enough)
            return TimedOut(self._sign(Timeout(number, view, view, digest)), high)
        alone = self._sign(Prepare(number, view, digest)).signature
        few = bits_of(voters, {machine.me})
        return Prepared(QuorumCertificate(False, number, view, digest, few, (alone,)))

    def slander(self) -> Packet | None:
        """Return evidence against an honest peer, one half of it forged."""
        machine = self.machine
        for voter in machine.chain.members.voters:
            vote = machine.ledger.find(voter, "attestation", machine.collection.number, 0)
            if voter not in self.plot.friends and vote is not None:
                statement = Attestation(machine.collection.number, ())
                forged = replace(self._sign(statement), sender=voter)
                return Requested(Eviction(Contradiction(vote, forged)))
        return None

    def far_timeout(self) -> Packet:
        """Return a timeout of a view that is far away."""
        far = Timeout(self.machine.collection.number, FAR_VIEW, -1, NO_HASH)
        return TimedOut(self._sign(far), None)

    def repeated(self) -> Packet | None:
        """Return something that somebody said some time ago."""
        return self.random.choice(self.old) if self.old else None


_MOVES: dict[str, Callable[[Byzantine], Packet | None]] = {
    "forge": Byzantine.forged,
    "false-evidence": Byzantine.slander,
    "far-timeouts": Byzantine.far_timeout,
    "stale": Byzantine.repeated,
}


def _votes(packet: Packet) -> bool:
    """Whether a packet shows a vote, or a certificate that one's own vote may be in."""
    if isinstance(packet, Said):
        return isinstance(packet.envelope.statement, Prepare | Commit)
    return isinstance(packet, Proposed | Prepared | Certified | Headers)


def _other(digest: bytes) -> bytes:
    return hash_of("another header", digest)
