"""One production voter as a function: its state and what it hears give what may become of it.

`hear(voter, news)` builds a `Consensus` of the given state, calls it and carries out what it asks
as `Ballot` does: sign a slot once, count one's own vote, propose on entering a view that one leads.
It checks the promises that a voter keeps by itself. Nothing here knows the other voters: whether
news can be true is the caller's business. Signatures are names, since the consensus takes verified
votes; certificates are built by the production functions.

A `Voter` has no buffers of votes and timeouts that make no quorum yet; `explore` says why it may.
So a piece of news is all that makes a difference at once, delivered in every way there is: as one
certificate, and vote by vote.
"""

from collections.abc import Callable
from traceback import extract_tb
from typing import NamedTuple

from peerformer.protocol.certificates import assemble_timeouts, certify
from peerformer.protocol.consensus import (
    Action,
    Consensus,
    EnterView,
    SignCommit,
    SignPrepare,
    SignTimeout,
    TimeoutSeen,
)
from peerformer.protocol.membership import quorum
from peerformer.protocol.messages import (
    NO_HASH,
    Commit,
    Prepare,
    QuorumCertificate,
    Timeout,
    TimeoutCertificate,
)
from peerformer.simulate.news import (
    NO_LOCK,
    Ended,
    GaveUp,
    Lock,
    Locked,
    News,
    Proposed,
    Restarted,
    TimerFired,
)

ROUND = 1
VOTERS = tuple(bytes((i,)) * 32 for i in range(1, 5))
ME, OTHERS = VOTERS[0], VOTERS[1:]  # as each sees itself: who the others are plays no part
QUORUM = quorum(len(VOTERS))
DIGESTS = (b"\x0a" * 32, b"\x0b" * 32)


class Said(NamedTuple):
    """What a voter signed in one view: digests, and the lock that its timeout claims."""

    prepare: int | None = None
    commit: int | None = None
    timeout: Lock | None = None
    proposal: tuple[int, Lock] | None = None  # and the lock in the certificate that justifies it


class Voter(NamedTuple):
    """An honest voter: its `Consensus` without buffers, and all that it ever signed, by view."""

    leads: int  # the view after the first that is its own to propose in, or -1
    said: tuple[Said, ...]
    view: int = 0
    prepared: int = -1
    committed: int = -1
    timed_out: int = -1
    high: Lock = NO_LOCK
    stored: Lock = NO_LOCK  # the lock on disk, written with the last commit


class Heard(NamedTuple):
    """What may become of a voter; `fault` says which promise the production code broke."""

    voter: Voter
    fault: str | None = None


def certificate_of(lock: Lock, *, commits: bool = False) -> QuorumCertificate:
    """Return the quorum certificate of a lock, or of a decision."""
    kind = Commit if commits else Prepare
    signatures = {voter: b"signed by " + voter for voter in VOTERS[:QUORUM]}
    return certify(kind(ROUND, lock[0], DIGESTS[lock[1]]), signatures, VOTERS)


def timeout_of(view: int, claim: Lock) -> TimeoutSeen:
    """Return a timeout as the consensus takes it: with the proof of its claim."""
    if claim == NO_LOCK:
        return Timeout(ROUND, view, -1, NO_HASH), b"signed", None
    return Timeout(ROUND, view, claim[0], DIGESTS[claim[1]]), b"signed", certificate_of(claim)


def end_of(view: int, lock: Lock) -> TimeoutCertificate:
    """Return the certificate of a view's end in which one voter claims the lock."""
    votes = {voter: timeout_of(view, NO_LOCK) for voter in VOTERS[:QUORUM]}
    votes[VOTERS[QUORUM - 1]] = timeout_of(view, lock)
    return assemble_timeouts(ROUND, view, votes, VOTERS)


def lock_of(certificate: QuorumCertificate | None) -> Lock:
    """Return what a quorum of prepares locks."""
    if certificate is None:
        return NO_LOCK
    return certificate.view, DIGESTS.index(certificate.digest)


class HonestVoter:
    """A production `Consensus` at work, and what `Ballot` does for it."""

    def __init__(self, voter: Voter, fresh: int = 0, me: bytes = ME) -> None:
        """Take up a state; `fresh` is the digest to propose when no lock says which."""
        self.me = me
        high = None if voter.high == NO_LOCK else certificate_of(voter.high)
        votes = voter.prepared, voter.committed, voter.timed_out
        self.consensus = Consensus(ROUND, VOTERS, *votes, high, voter.view)
        self.fresh = fresh
        self.leads = voter.leads
        self.said = list(voter.said)
        self.stored = voter.stored
        self.fault: str | None = None

    def state(self) -> Voter:
        """Return the state, without buffers and without a decision."""
        it = self.consensus
        votes = it.view, it.prepared, it.committed, it.timed_out
        return Voter(self.leads, tuple(self.said), *votes, lock_of(it.high), self.stored)

    def fire_timer(self) -> None:
        """R4."""
        self.carry_out(self.consensus.on_timer())

    def restart(self) -> None:
        """Lose all that was not stored, as `Ballot.restore` finds it."""
        prepared, committed, timed_out = (self._last_signed(slot) for slot in range(3))
        claims = (said.timeout for said in self.said if said.timeout is not None)
        lock = max(self.stored, *claims, NO_LOCK)
        high = None if lock == NO_LOCK else certificate_of(lock)
        self.consensus = Consensus(ROUND, VOTERS, prepared, committed, timed_out, high)

    def _last_signed(self, slot: int) -> int:
        signed = (view for view, said in enumerate(self.said) if said[slot] is not None)
        return max(signed, default=-1)

    def take_proposal(self, view: int, digest: bytes, justify: TimeoutCertificate | None) -> None:
        """R1."""
        if self.consensus.may_prepare(view, digest, justify):
            self.carry_out(self.consensus.prepare(view, digest))

    def take_timeout(self, sender: bytes, timeout: TimeoutSeen) -> None:
        """R5, R6."""
        self.carry_out(self.consensus.on_timeout(sender, *timeout))

    def carry_out(self, actions: list[Action]) -> None:
        """Sign, and count the own vote, in the order of `Ballot.carry_out`."""
        pending = list(actions)
        while pending:
            match pending.pop(0):
                case SignPrepare(view, digest):
                    pending += self._vote(Prepare(ROUND, view, digest))
                case SignCommit(view, digest, high):
                    self.stored = lock_of(high)
                    pending += self._vote(Commit(ROUND, view, digest))
                case SignTimeout(view, high):
                    if self.said[view].timeout is None:
                        self.said[view] = self.said[view]._replace(timeout=lock_of(high))
                    pending += self.count_own_timeout(view)
                case EnterView(view) if view == self.leads:
                    self._propose(view)

    def _propose(self, view: int) -> None:
        """R7: exactly the header of the highest lock, else one of its own."""
        entry = self.consensus.entry
        if entry is None or entry.view != view - 1:
            return  # led here by a lock: nothing justifies a proposal
        lock = lock_of(entry.high)
        provable = lock[0] < view  # else its own timeout claimed what no other accepts
        if provable and self.said[view].proposal is None:
            chosen = self.fresh if lock == NO_LOCK else lock[1]
            self.said[view] = self.said[view]._replace(proposal=(chosen, lock))

    def _vote(self, vote: Prepare | Commit) -> list[Action]:
        view, digest, said = vote.view, DIGESTS.index(vote.digest), self.said[vote.view]
        if isinstance(vote, Commit):
            kind, before, self.said[view] = "commit", said.commit, said._replace(commit=digest)
        else:
            kind, before, self.said[view] = "prepare", said.prepare, said._replace(prepare=digest)
        if before is not None and before != digest:
            self.fault = f"it signs a second {kind} in view {view}"
        if (given_up := self._last_signed(Said._fields.index("timeout"))) >= view:
            self.fault = f"it signs a {kind} in view {view}, having given up view {given_up}"
        return self.consensus.on_vote(self.me, vote, b"signed")

    def count_own_timeout(self, view: int) -> list[Action]:
        """Count the own timeout, whose claim nobody needs to check."""
        claim = self.said[view].timeout
        assert claim is not None
        return self.consensus.on_timeout(self.me, *timeout_of(view, claim))


def hear(voter: Voter, news: News) -> tuple[Heard, ...]:
    """Return all that may become of a voter that hears the news."""
    ways: list[Callable[[HonestVoter], None]]
    match news:
        case TimerFired():
            ways = [HonestVoter.fire_timer]
        case Restarted():
            ways = [HonestVoter.restart]
        case Proposed(view, digest, justify):
            proof = None if justify is None else end_of(view - 1, justify)
            ways = [lambda it: it.take_proposal(view, DIGESTS[digest], proof)]
        case Locked(lock):
            certificate = certificate_of(lock)
            ways = [
                lambda it: it.carry_out(it.consensus.on_prepared(certificate)),
                lambda it: count_votes(it, Prepare(ROUND, lock[0], DIGESTS[lock[1]])),
            ]
        case GaveUp(view, claims):
            ways = [lambda it: _count_timeouts(it, view, claims)]
            if len(claims) == 1 and claims[0][0] <= voter.high[0]:
                ways.append(lambda it: _count_timeouts_late(it, view))
        case Ended(view, lock):
            end = end_of(view, lock)
            ways = [lambda it: it.carry_out(it.consensus.on_view_ended(end))]
    fresh = range(len(DIGESTS)) if voter.leads >= 0 else (0,)
    return tuple(dict.fromkeys(_try(voter, way, news, f) for way in ways for f in fresh))


def _try(voter: Voter, way: Callable[[HonestVoter], None], news: News, fresh: int) -> Heard:
    it = HonestVoter(voter, fresh)
    try:
        way(it)
    except AssertionError as failure:
        return Heard(voter, f"its assertion fails: {extract_tb(failure.__traceback__)[-1].line}")
    after = it.state()
    return Heard(after, it.fault or _fall(voter, after, restarted=isinstance(news, Restarted)))


def _fall(before: Voter, after: Voter, *, restarted: bool) -> str | None:
    """Return what fell that must only rise."""
    if not restarted and after.high[0] < before.high[0]:
        return "its lock falls"
    kept = ("prepared", "committed", "timed_out", *(() if restarted else ("view",)))
    fallen = [name for name in kept if getattr(after, name) < getattr(before, name)]
    return f"its `{fallen[0]}` falls" if fallen else None


def count_votes(it: HonestVoter, vote: Prepare | Commit) -> None:
    """Let a quorum of votes arrive one by one; whose they are makes no difference."""
    for arrived, sender in enumerate(OTHERS[:QUORUM], 1):
        actions = it.consensus.on_vote(sender, vote, b"signed")
        if actions and arrived < QUORUM:
            it.fault = f"it acts on {arrived} votes"
        it.carry_out(actions)


def _count_timeouts(it: HonestVoter, view: int, claims: tuple[Lock, ...]) -> None:
    if it.said[view].timeout is not None:
        it.carry_out(it.count_own_timeout(view))
    for sender, claim in zip(OTHERS, (*claims, NO_LOCK), strict=False):
        it.take_timeout(sender, timeout_of(view, claim))


def _count_timeouts_late(it: HonestVoter, view: int) -> None:
    """Two timeouts, of which the first came in an earlier view, where its lock was adopted."""
    for sender in OTHERS[:2]:
        it.take_timeout(sender, timeout_of(view, NO_LOCK))
