"""One round up to the attestations: train, commit, reveal, fetch, check, attest.

A peer commits to the keyed hash of its contribution before anybody may see it, reveals once those
that it holds alive have committed too, and attests what it fetched, decoded and scored. A
commitment that comes after the reveal is too late: its author could have seen the others. What the
round makes of the attestations is not decided here.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from peerformer import events
from peerformer.protocol.attestations import Attestation, Finding, Judgement
from peerformer.protocol.chain import Chain
from peerformer.protocol.committee import is_assigned, shard_of
from peerformer.protocol.effects import Check, Checked, FetchBlob, Reveal, Trained
from peerformer.protocol.identity import hash_of, name_of
from peerformer.protocol.membership import Members
from peerformer.protocol.messages import (
    Contribution,
    Envelope,
    Said,
)
from peerformer.protocol.outbox import Outbox
from peerformer.protocol.timing import Timing


@dataclass(slots=True)
class Company:
    """The others of a swarm, and when each of them was last heard of."""

    chain: Chain
    outbox: Outbox
    last_contributed: dict[bytes, int] = field(default_factory=dict)  # peer -> round

    def alive(self) -> set[bytes]:
        """Return the contributors that I hold alive: connected, and heard of lately.

        Where messages go around a circle, most of them are not connected: all count as alive.
        """
        members, me = self.chain.members, self.outbox.keys.peer_id
        if members.committee:
            return set(members.contributors)
        return {peer for peer in members.contributors if peer == me or self._was_heard(peer)}

    def _was_heard(self, peer: bytes) -> bool:
        member, lately = self.chain.members.get(peer), self.chain.tip - 1
        if member is None or peer not in self.outbox.connected:
            return False
        return member.joined >= lately or self.last_contributed.get(peer, 0) >= lately

    def awaited(self) -> set[bytes]:
        """Return whose attestations are worth waiting for."""
        members = self.chain.members
        return (
            set(self.chain.leaders()) if members.committee else self.alive() & set(members.voters)
        )


@dataclass(slots=True)
class Collection:
    """What one peer knows of a round's contributions and attestations."""

    number: int
    members: Members
    beacon: bytes
    outbox: Outbox
    timing: Timing
    blob_size_max: int
    record_size_max: int  # 0: nobody keeps records
    scored_by: int  # so many voters score each contribution
    alive: Callable[[], set[bytes]]  # connected members that contributed lately, me included
    findings: Callable[[int, float], tuple[Finding, ...]]  # of my audits that are due
    on_gain: Callable[[bytes, int], None]
    began: float
    contributions: dict[bytes, Contribution] = field(default_factory=dict)
    attestations: dict[bytes, Envelope] = field(default_factory=dict)
    judgements: dict[bytes, Judgement] = field(default_factory=dict)
    held: dict[bytes, bytes] = field(default_factory=dict)  # author -> hash that I hold, checked
    unreadable: dict[bytes, str] = field(default_factory=dict)  # author -> fault of its blob
    # Authors of what is being fetched or checked -> hashes and sources asked.
    waiting_for: dict[bytes, set[tuple[bytes, bytes]]] = field(default_factory=dict)
    trained: bool = False
    revealed: bool = False
    attested: bool = False
    grace_set: bool = False  # the wait for others' attestations is being timed
    first_commitment: float | None = None
    training_seconds: float = 0.0
    trained_at: float = 0.0  # with staleness 1 perhaps before the round began
    revealed_at: float = 0.0
    attested_at: float = 0.0

    @property
    def me(self) -> bytes:
        """My own id."""
        return self.outbox.keys.peer_id

    # --- train and commit --------------------------------------------------------------------

    @property
    def only_judges(self) -> bool:
        """Whether I vote on what others make, and make nothing myself."""
        return self.me in self.members.voters and self.me not in self.members.contributors

    def judge(self, now: float) -> None:
        """Go on without a contribution of mine, and wait for those of others."""
        self.trained, self.trained_at = True, now
        self.outbox.timer("commit", self.timing.commit_wait())
        self._reveal_when_all_committed(now)

    def on_trained(self, result: Trained | None, began: float, ended: float, now: float) -> None:
        """Commit to the contribution: persist, then send. No result means nothing to send."""
        self.trained, self.trained_at = True, ended
        self.training_seconds = ended - began
        self.timing.trains.append(ended - began)
        if result is not None:
            if result.seconds is not None:
                self.training_seconds = result.seconds
            statement = Contribution(
                self.number,
                result.blob_hash,
                result.size,
                result.record_hash,
                result.tokens,
                result.record_size,
            )
            self._commit(self.outbox.sign_once(statement), now)
        self.outbox.timer("commit", self.timing.commit_wait())
        self._reveal_when_all_committed(now)

    def sit_out(self, now: float) -> None:
        """Go on without a contribution of mine: it would come too late."""
        self.trained = True
        self._reveal_when_all_committed(now)

    def resume(self, envelope: Envelope, now: float) -> None:
        """Go on after a restart with the contribution signed before it."""
        self.trained = True
        self._commit(envelope, now)
        self.outbox.timer("commit", self.timing.commit_wait())

    def resume_attested(self, envelope: Envelope) -> None:
        """Go on after a restart with the attestation signed before it."""
        self.trained = self.revealed = self.attested = True
        self.attestations[self.me] = envelope
        if self.me in self.contributions:
            self.outbox.work(Reveal(self.number, self.contributions[self.me].blob_hash))

    def _commit(self, envelope: Envelope, now: float) -> None:
        statement = envelope.statement
        assert isinstance(statement, Contribution)
        self.outbox.broadcast(self.members.contributors, Said(envelope))
        self.contributions[self.me] = statement
        self.first_commitment = self.first_commitment or now
        self.held[self.me] = statement.blob_hash
        self.judgements[self.me] = Judgement(
            self.me, statement.blob_hash, statement.size, holds=True, score=None
        )

    def on_contribution(self, sender: bytes, statement: Contribution, now: float) -> str | None:
        """Take a genuine commitment in; returns why it was not, or None."""
        if sender not in self.members.contributors:
            return "contribution of a stranger, or of a suspended member"
        if sender in self.contributions:
            return None
        if self.revealed:
            return None  # too late to count, and no fault: links are slow
        if not 0 < statement.size <= self.blob_size_max:
            return "contribution of a forbidden size"
        least = 1 if self.record_size_max else 0
        if not least <= statement.record_size <= self.record_size_max:
            return "contribution with a record of a forbidden size"
        self.contributions[sender] = statement
        self.first_commitment = self.first_commitment or now
        self.timing.spreads.append(now - self.first_commitment)
        self._reveal_when_all_committed(now)
        return None

    def _reveal_when_all_committed(self, now: float) -> None:
        others = self.alive() - {self.me}
        if self.trained and not self.revealed and others <= self.contributions.keys():
            self.reveal(now)

    def look_again(self, now: float) -> None:
        """Go on if those that are still connected have all committed."""
        self._reveal_when_all_committed(now)

    # --- reveal, fetch, check ----------------------------------------------------------------

    def reveal(self, now: float) -> None:
        """Let others fetch my contribution, and fetch theirs."""
        if self.revealed or not self.trained:
            return
        self.revealed, self.revealed_at = True, now
        if self.me in self.contributions:
            self.outbox.work(Reveal(self.number, self.contributions[self.me].blob_hash))
        self.outbox.timer("attest", self.timing.attest_wait())
        for author, statement in sorted(self.contributions.items()):
            if author != self.me:
                nearby = sorted(self.outbox.connected) if self.outbox.gossips else ()
                self.fetch(author, statement.blob_hash, statement.size, (author, *nearby))
        self._attest_when_all_judged(now)

    def fetch(self, author: bytes, blob_hash: bytes, size: int, sources: tuple[bytes, ...]) -> None:
        """Fetch a contribution, unless all these sources are being asked for it already.

        An author that serves some only must not keep the rest waiting for it alone.
        """
        others = tuple(source for source in sources if source != self.me)
        wanted = {(blob_hash, source) for source in others}
        asked = self.waiting_for.get(author)
        if asked is None or not wanted <= asked:
            self.waiting_for[author] = wanted | (asked or set())
            self.outbox.work(FetchBlob(self.number, author, blob_hash, size, others))

    def asks_others(self, author: bytes) -> bool:
        """Whether anybody but the author is being asked for its contribution."""
        return len(self.waiting_for.get(author, ())) > 1

    def on_fetched(self, work: FetchBlob, *, succeeded: bool, now: float) -> None:
        """Check and score what was fetched."""
        if not succeeded:
            self.waiting_for.pop(work.author, None)
            self._attest_when_all_judged(now)
            return
        scored = not self.attested and self._is_mine_to_score(work.author)
        seed = hash_of("score", self.beacon, self.me) if scored else None
        tested = shard_of(self.beacon, work.author) if self._is_mine_to_test(work.author) else None
        place = (self.number, work.author, work.blob_hash, work.size)
        self.outbox.work(Check(*place, seed, tested if scored else None))

    def _is_mine_to_test(self, author: bytes) -> bool:
        """Where all hold the same text, each voter tests one contribution a round, about."""
        draw = hash_of("tested", self.beacon)
        many = len(self.members.contributors)
        return self.record_size_max > 0 and is_assigned(draw, self.me, author, 1, many)

    def _is_mine_to_score(self, author: bytes) -> bool:
        """Few voters score everything; of many, those that the beacon assigns."""
        voters = self.members.voters
        return self.me in voters and is_assigned(
            self.beacon, self.me, author, self.scored_by, len(voters)
        )

    def on_checked(self, work: Check, result: Checked, now: float) -> None:
        """Judge a contribution."""
        author = work.author
        self.waiting_for.pop(author, None)
        if result.fault is None:
            self.held[author] = work.blob_hash
        else:
            self.unreadable[author] = result.fault
        if result.malformed:
            name = name_of(author)
            self.outbox.report(
                events.Misbehaved(peer=author.hex(), name=name, reason=f"blob: {result.fault}")
            )
        if result.gain is not None:
            self.on_gain(author, result.gain)
        if result.alike is not None:
            self._report_alike(author, result.alike)
        if not self.attested and (result.fault is None or result.malformed):
            holds, score = result.fault is None, result.score
            self.judgements[author] = Judgement(author, work.blob_hash, work.size, holds, score)
        self._attest_when_all_judged(now)

    def _report_alike(self, author: bytes, key: bytes) -> None:
        hashes = {said.blob_hash: peer for peer, said in self.contributions.items()}
        other = hashes.get(key, self.me)
        self.outbox.report(
            events.ContributionsAlike(
                round=self.number,
                peer=author.hex(),
                name=name_of(author),
                other=other.hex(),
                other_name=name_of(other),
            )
        )

    def _attest_when_all_judged(self, now: float) -> None:
        if self.revealed and not self.attested and not self.waiting_for:
            self.attest(now)

    # --- attest ------------------------------------------------------------------------------

    def attest(self, now: float) -> None:
        """Sign what I hold and think, and send it; only voters attest."""
        if self.attested or not self.revealed:
            return
        self.attested, self.attested_at = True, now
        self.timing.checks.append(now - self.revealed_at)
        if self.me not in self.members.voters:
            return
        judgements = tuple(self.judgements[author] for author in sorted(self.judgements))
        statement = Attestation(self.number, judgements, self.findings(self.number, now))
        envelope = self.outbox.sign_once(statement)
        self.attestations[self.me] = envelope
        self.outbox.broadcast(self.members.voters, Said(envelope))

    def repeat(self) -> None:
        """Send again what I said in this round: messages may have been lost."""
        contribution = self.outbox.has_signed("contribution", self.number)
        if contribution is not None:  # guests fetch it too
            self.outbox.broadcast(self.members.contributors, Said(contribution))
        attestation = self.outbox.has_signed("attestation", self.number)
        if attestation is not None:
            self.outbox.broadcast(self.members.voters, Said(attestation))

    def missing(self, wanted: dict[bytes, tuple[bytes, int]]) -> set[bytes]:
        """Return the authors whose wanted contribution I do not hold yet."""
        return {author for author, (blob, _) in wanted.items() if self.held.get(author) != blob}


def attestations_hash(attestations: tuple[Envelope, ...]) -> bytes:
    """Return what a header binds of the attestations it rests on."""
    return hash_of("attestations", *(envelope.canonical for envelope in attestations))
