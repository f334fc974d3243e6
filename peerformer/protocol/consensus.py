"""One voter's part in deciding one round: rules R1 to R9 of the round protocol.

Two voting phases with a quorum of more than two thirds, and a view change that carries the highest
lock (Tendermint's phases; Jolteon's view change, Gelashvili et al., arXiv 2106.10362). The object
holds no key, clock or network: methods take verified votes and return `Action`s, which the machine
signs, persists and sends, in that order. It never asks what a digest stands for; whether a header
is valid is told to it.

    R1 prepare      R2 lock and commit    R3 decide        R4 time out     R5 join a timeout
    R6 next view    R7 re-propose (machine)                R8 adopt certificates in any message
    R9 help (machine)
"""

from dataclasses import dataclass, field

from peerformer.protocol.certificates import Voters, assemble_timeouts, certify
from peerformer.protocol.membership import quorum, tolerated_faults
from peerformer.protocol.messages import (
    Commit,
    Prepare,
    QuorumCertificate,
    Timeout,
    TimeoutCertificate,
)

VIEWS_KEPT = 2  # votes are buffered for so many views around the current one


@dataclass(frozen=True, slots=True)
class SignPrepare:
    """Persist, then broadcast PREPARE(view, digest)."""

    view: int
    digest: bytes


@dataclass(frozen=True, slots=True)
class SignCommit:
    """Persist the vote with the lock `high`, then broadcast COMMIT."""

    view: int
    digest: bytes
    high: QuorumCertificate


@dataclass(frozen=True, slots=True)
class SignTimeout:
    """Persist, then broadcast TIMEOUT(view, high)."""

    view: int
    high: QuorumCertificate | None


@dataclass(frozen=True, slots=True)
class Forward:
    """Broadcast a certificate that others may lack."""

    certificate: QuorumCertificate | TimeoutCertificate


@dataclass(frozen=True, slots=True)
class EnterView:
    """A new view began: restart the timer; its leader may propose."""

    view: int


@dataclass(frozen=True, slots=True)
class Decide:
    """The round is decided."""

    certificate: QuorumCertificate


Action = SignPrepare | SignCommit | SignTimeout | Forward | EnterView | Decide
TimeoutSeen = tuple[Timeout, bytes, QuorumCertificate | None]


@dataclass(slots=True)
class Consensus:
    """The voting state of one voter in one round.

    `prepared`, `committed` and `timed_out` are the highest views of its own votes, -1 for none;
    `high` is its lock. These four survive a restart; `view` resumes at the highest of them.
    """

    round: int
    voters: Voters
    prepared: int = -1
    committed: int = -1
    timed_out: int = -1
    high: QuorumCertificate | None = None
    view: int = 0
    entry: TimeoutCertificate | None = None  # what ended the view before this one
    decided: QuorumCertificate | None = None
    _votes: dict[tuple[bool, int, bytes], dict[bytes, bytes]] = field(default_factory=dict)
    _timeouts: dict[bytes, TimeoutSeen] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Resume at the highest view of the votes cast before a restart."""
        entered = self.entry.view + 1 if self.entry else 0
        self.view = max(self.prepared, self.committed, self.timed_out, self.view, entered)

    # R1 ----------------------------------------------------------------------------------------

    def may_prepare(self, view: int, digest: bytes, justify: TimeoutCertificate | None) -> bool:
        """Tell whether a proposal may be voted for once its header proves valid."""
        if self.decided or view != self.view or self.prepared >= view or self.timed_out >= view:
            return False
        return justification_fault(view, digest, justify) is None

    def prepare(self, view: int, digest: bytes) -> list[Action]:
        """Vote for a header that is valid and may be prepared now."""
        assert view == self.view and self.prepared < view and self.timed_out < view
        self.prepared = view
        return [SignPrepare(view, digest)]

    # R2, R3 ------------------------------------------------------------------------------------

    def on_vote(self, sender: bytes, vote: Prepare | Commit, signature: bytes) -> list[Action]:
        """Count a verified vote; the first of a sender for a view and phase stands."""
        if self.decided or vote.round != self.round or sender not in self.voters:
            return []
        if not self.view - VIEWS_KEPT <= vote.view <= self.view + VIEWS_KEPT:
            return []
        commits = isinstance(vote, Commit)
        place = (commits, vote.view, vote.digest)
        for other, counted in self._votes.items():
            if sender in counted and other[:2] == place[:2] and other != place:
                return []  # two votes for one slot: evidence elsewhere, nothing here
        votes = self._votes.setdefault(place, {})
        votes[sender] = signature
        if len(votes) < quorum(len(self.voters)):
            return []
        certificate = certify(vote, votes, self.voters)
        return self.on_decision(certificate) if commits else self.on_prepared(certificate)

    def on_prepared(self, certificate: QuorumCertificate) -> list[Action]:
        """R2 (and R8): adopt a verified quorum of prepares, and its view if I am behind."""
        assert not certificate.commits and certificate.round == self.round
        if self.decided:
            return []
        if self.high is None or self.high.view < certificate.view:
            self.high = certificate
        view, actions = certificate.view, list[Action]()
        if view > self.view:  # q voters are there; giving up an earlier view would help nobody
            self.view = view
            actions.append(EnterView(view))
        if view != self.view or self.committed >= view or self.timed_out >= view:
            return actions
        self.committed = view
        assert self.high is not None and self.high.view >= view
        return [*actions, SignCommit(view, certificate.digest, self.high), Forward(certificate)]

    def on_decision(self, certificate: QuorumCertificate) -> list[Action]:
        """R3 (and R8): adopt a verified quorum of commits."""
        assert certificate.commits and certificate.round == self.round
        if self.decided:
            assert self.decided.digest == certificate.digest, "fork: two decisions for one round"
            return []
        self.decided = certificate
        return [Decide(certificate)]

    # R4, R5, R6 --------------------------------------------------------------------------------

    def on_timer(self) -> list[Action]:
        """R4: give up the current view; again and again until it ends."""
        if self.decided:
            return []
        self.timed_out = max(self.timed_out, self.view)
        return [SignTimeout(self.view, self.high)]

    def on_timeout(
        self, sender: bytes, timeout: Timeout, signature: bytes, high: QuorumCertificate | None
    ) -> list[Action]:
        """Count a verified timeout whose claim holds; the highest view of a sender stands."""
        if self.decided or timeout.round != self.round or sender not in self.voters:
            return []
        actions = self.on_prepared(high) if high is not None else []
        before = self._timeouts.get(sender)
        if before is not None and before[0].view >= timeout.view:
            return actions
        self._timeouts[sender] = (timeout, signature, high)
        actions += self._join()
        same = {s: seen for s, seen in self._timeouts.items() if seen[0].view == timeout.view}
        if timeout.view >= self.view and len(same) >= quorum(len(self.voters)):
            ended = assemble_timeouts(self.round, timeout.view, same, self.voters)
            actions += self.on_view_ended(ended)
        return actions

    def timeouts_seen(self) -> dict[bytes, TimeoutSeen]:
        """Return the timeout of the highest view that each voter was heard to send."""
        return dict(self._timeouts)

    def _join(self) -> list[Action]:
        """R5: when f + 1 others gave up a later view, one of them is honest: give it up too."""
        views = sorted((seen[0].view for seen in self._timeouts.values()), reverse=True)
        enough = tolerated_faults(len(self.voters)) + 1
        if len(views) < enough:
            return []
        view = views[enough - 1]
        if view <= self.timed_out or view < self.view:
            return []
        self.view = self.timed_out = view
        return [SignTimeout(view, self.high)]

    def on_view_ended(self, certificate: TimeoutCertificate) -> list[Action]:
        """R6 (and R8): adopt a verified quorum of timeouts and enter the view after it."""
        assert certificate.round == self.round
        if self.decided:
            return []
        actions = self.on_prepared(certificate.high) if certificate.high is not None else []
        if certificate.view < self.view:
            return actions
        self.view = certificate.view + 1
        self.entry = certificate
        self._votes = {k: v for k, v in self._votes.items() if k[1] >= self.view - VIEWS_KEPT}
        return [*actions, Forward(certificate), EnterView(self.view)]


def justification_fault(view: int, digest: bytes, justify: TimeoutCertificate | None) -> str | None:
    """Return why a verified certificate does not justify proposing `digest` in `view`, or None."""
    if view == 0:
        return None if justify is None else "view 0 needs no justification"
    if justify is None or justify.view != view - 1:
        return "the view before it was not given up"
    if justify.high is not None and justify.high.digest != digest:
        return "another header is locked"
    return None
