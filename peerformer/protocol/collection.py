"""One round up to the attestations: train, commit, reveal, fetch, check, attest.

A peer commits to the keyed hash of its contribution before anybody may see it, reveals once those
that it holds alive have committed too, and attests what it fetched, decoded and scored. A
commitment that comes after the reveal is too late: its author could have seen the others. What the
round makes of the attestations is not decided here.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from peerformer import events
from peerformer.protocol.effects import Check, Checked, FetchBlob, Reveal, Trained
from peerformer.protocol.identity import hash_of, name_of
from peerformer.protocol.membership import Members
from peerformer.protocol.messages import (
    Attestation,
    Contribution,
    Envelope,
    Judgement,
    Said,
)
from peerformer.protocol.outbox import Outbox
from peerformer.protocol.timing import Timing


@dataclass(slots=True)
class Collection:
    """What one peer knows of a round's contributions and attestations."""

    number: int
    members: Members
    beacon: bytes
    outbox: Outbox
    timing: Timing
    blob_size_max: int
    scores_all: bool
    alive: Callable[[], set[bytes]]  # connected members that contributed lately, me included
    began: float
    contributions: dict[bytes, Contribution] = field(default_factory=dict)
    attestations: dict[bytes, Envelope] = field(default_factory=dict)
    judgements: dict[bytes, Judgement] = field(default_factory=dict)
    held: dict[bytes, bytes] = field(default_factory=dict)  # author -> hash that I hold, checked
    unreadable: dict[bytes, str] = field(default_factory=dict)  # author -> fault of its blob
    waiting_for: set[bytes] = field(default_factory=set)  # authors being fetched or checked
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

    def on_trained(self, result: Trained | None, began: float, ended: float, now: float) -> None:
        """Commit to the contribution: persist, then send. No result means nothing to send."""
        self.trained, self.trained_at = True, ended
        self.training_seconds = ended - began
        self.timing.trains.append(ended - began)
        if result is not None:
            if result.seconds is not None:
                self.training_seconds = result.seconds
            statement = Contribution(
                self.number, result.blob_hash, result.size, result.optimizer_root, result.tokens
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
        self.outbox.broadcast(self.members.voters, Said(envelope))
        self.contributions[self.me] = statement
        self.first_commitment = self.first_commitment or now
        self.held[self.me] = statement.blob_hash
        self.judgements[self.me] = Judgement(
            self.me, statement.blob_hash, statement.size, holds=True, score=None
        )

    def on_contribution(self, sender: bytes, statement: Contribution, now: float) -> str | None:
        """Take a genuine commitment in; returns why it was not, or None."""
        if self.members.get(sender) is None:
            return "contribution of a stranger"
        if sender in self.contributions:
            return None
        if self.revealed:
            return None  # too late to count, and no fault: links are slow
        if not 0 < statement.size <= self.blob_size_max:
            return "contribution of a forbidden size"
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
                self.fetch(author, statement.blob_hash, statement.size, (author,))
        self._attest_when_all_judged(now)

    def fetch(self, author: bytes, blob_hash: bytes, size: int, sources: tuple[bytes, ...]) -> None:
        """Fetch a contribution unless that is under way."""
        if author not in self.waiting_for:
            self.waiting_for.add(author)
            others = tuple(source for source in sources if source != self.me)
            self.outbox.work(FetchBlob(self.number, author, blob_hash, size, others))

    def on_fetched(self, work: FetchBlob, *, succeeded: bool, now: float) -> None:
        """Check and score what was fetched."""
        if not succeeded:
            self.waiting_for.discard(work.author)
            self._attest_when_all_judged(now)
            return
        scored = self.scores_all and not self.attested
        seed = hash_of("score", self.beacon, self.me) if scored else None
        self.outbox.work(Check(self.number, work.author, work.blob_hash, work.size, seed))

    def on_checked(self, work: Check, result: Checked, now: float) -> None:
        """Judge a contribution."""
        author = work.author
        self.waiting_for.discard(author)
        if result.fault is None:
            self.held[author] = work.blob_hash
        else:
            self.unreadable[author] = result.fault
            name = name_of(author)
            self.outbox.report(
                events.Misbehaved(peer=author.hex(), name=name, reason=f"blob: {result.fault}")
            )
        if not self.attested:
            holds, score = result.fault is None, result.score
            self.judgements[author] = Judgement(author, work.blob_hash, work.size, holds, score)
        self._attest_when_all_judged(now)

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
        envelope = self.outbox.sign_once(Attestation(self.number, judgements))
        self.attestations[self.me] = envelope
        self.outbox.broadcast(self.members.voters, Said(envelope))

    def repeat(self) -> None:
        """Send again what I said in this round: messages may have been lost."""
        for kind in ("contribution", "attestation"):
            envelope = self.outbox.has_signed(kind, self.number)
            if envelope is not None:
                self.outbox.broadcast(self.members.voters, Said(envelope))

    def missing(self, wanted: dict[bytes, tuple[bytes, int]]) -> set[bytes]:
        """Return the authors whose wanted contribution I do not hold yet."""
        return {author for author, (blob, _) in wanted.items() if self.held.get(author) != blob}


def attestations_hash(attestations: tuple[Envelope, ...]) -> bytes:
    """Return what a header binds of the attestations it rests on."""
    return hash_of("attestations", *(envelope.canonical for envelope in attestations))
