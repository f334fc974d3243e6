"""What may be heard when three honest voters said this and a liar may have said anything.

What the honest said is a tally: one integer in which each statement has a field that counts who
made it, so that tallies of voters add up. The liar is in every quorum that is one voter short; it
claims any lock that can be proven. It cannot sign for others, so votes that nobody cast never make
a certificate.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import combinations

from peerformer.simulate.lone_voter import DIGESTS, QUORUM, VOTERS, Voter
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

HONEST = len(VOTERS) - 1
LIAR = HONEST  # it comes after the honest voters 0 to 2
COUNT_BITS = 2  # a statement is made by three voters at most

Statement = tuple[str, int, int, Lock | None]  # kind, view, digest, lock
PREPARE, COMMIT, TIMEOUT, PROPOSAL = "prepare", "commit", "timeout", "proposal"


@dataclass(frozen=True, slots=True)
class Configuration:
    """A world to explore: who leads each view, and whether honest processes may restart."""

    leaders: tuple[int, ...]  # honest leaders of later views are 0, 1, ... in this order
    restarts: bool = False
    forks_only: bool = False  # go on when a voter breaks a promise that it keeps by itself


def statements(voter: Voter) -> Iterator[Statement]:
    """Yield what a voter said that others accept."""
    for view, said in enumerate(voter.said):
        if said.prepare is not None:
            yield PREPARE, view, said.prepare, None
        if said.commit is not None:
            yield COMMIT, view, said.commit, None
        if said.timeout is not None and said.timeout[0] <= view:  # `claim_fault` refuses others
            yield TIMEOUT, view, -1, said.timeout
        if said.proposal is not None:
            yield PROPOSAL, view, *said.proposal


def highest_locks(
    claims: list[Lock], view: int, locks: Iterable[Lock], *, refused: Iterable[Lock] = ()
) -> set[Lock]:
    """Return the highest lock of every certificate of a view's end that can be assembled.

    `claims` are those of the honest, `locks` what the liar can prove, `refused` the claim of a
    voter that counts its own timeout though others would not.
    """
    lies = [NO_LOCK, *(lock for lock in locks if lock[0] <= view)]
    honest = [*claims, *refused]
    quorums = [*combinations(honest, QUORUM)]
    quorums += [(*few, lie) for few in combinations(honest, QUORUM - 1) for lie in lies]
    found: set[Lock] = set()
    for quorum in quorums:
        highest = max(quorum)[0]
        of_highest = {lock for lock in quorum if lock[0] == highest}
        found |= of_highest if len(of_highest) == 1 else set()  # else `timeout_fault` refuses it
    return found


class Hearsay:
    """All statements of a world, numbered, and what they let a voter hear."""

    def __init__(self, configuration: Configuration) -> None:
        """Know no statement yet."""
        self.configuration = configuration
        self.news: list[News] = []
        self._news_numbers: dict[News, int] = {}
        self._statements: dict[Statement, int] = {}
        self._masks = dict.fromkeys((PREPARE, COMMIT, TIMEOUT, PROPOSAL), 0)
        self._public: dict[int, tuple[int, ...]] = {}
        self._from_others: dict[int, tuple[int, ...]] = {}
        self._decisions: dict[int, tuple[Lock, ...]] = {}

    def tally(self, voter: Voter) -> int:
        """Return all that a voter said as a number; those of several voters add up."""
        total = 0
        for statement in statements(voter):
            number = self._statements.setdefault(statement, len(self._statements))
            self._masks[statement[0]] |= (1 << COUNT_BITS) - 1 << COUNT_BITS * number
            total += 1 << COUNT_BITS * number
        return total

    def heard_by(self, voter: Voter, own: int, total: int) -> tuple[int, ...]:
        """Return the numbers of all news that a voter may hear, given its tally and the sum."""
        public, others = total & ~self._masks[COMMIT], total - own & self._masks[TIMEOUT]
        if public not in self._public:
            self._public[public] = self._numbered(self._heard_by_all(self._counts(public)))
        if others not in self._from_others:
            news = self._heard_from_others(self._counts(others))
            self._from_others[others] = self._numbered(news)
        heard = self._public[public] + self._from_others[others]
        refused = {v: s.timeout for v, s in enumerate(voter.said) if s.timeout and s.timeout[0] > v}
        return heard + self._numbered(self._heard_by_itself(refused, total)) if refused else heard

    def decisions(self, total: int) -> tuple[Lock, ...]:
        """Return what a quorum committed."""
        commits = total & self._masks[COMMIT]
        if commits not in self._decisions:
            self._decisions[commits] = tuple(_quorums(self._counts(commits), COMMIT))
        return self._decisions[commits]

    def _numbered(self, news: Iterable[News]) -> tuple[int, ...]:
        numbers = []
        for item in news:
            if item not in self._news_numbers:
                self._news_numbers[item] = len(self.news)
                self.news.append(item)
            numbers.append(self._news_numbers[item])
        return tuple(numbers)

    def _counts(self, tally: int) -> dict[Statement, int]:
        mask = (1 << COUNT_BITS) - 1
        counts = {said: tally >> COUNT_BITS * i & mask for said, i in self._statements.items()}
        return {said: count for said, count in counts.items() if count}

    def _heard_by_all(self, counts: dict[Statement, int]) -> Iterator[News]:
        locks = _quorums(counts, PREPARE)
        yield TimerFired()
        if self.configuration.restarts:
            yield Restarted()
        yield from map(Locked, locks)
        yield from (Proposed(view, d, lock) for kind, view, d, lock in counts if kind == PROPOSAL)
        for view, leader in enumerate(self.configuration.leaders):
            digests = range(len(DIGESTS) if leader == LIAR else 1)
            if view == 0:
                yield from (Proposed(0, digest, None) for digest in digests)
                continue
            ends = highest_locks(_claims(counts, view - 1), view - 1, locks)
            yield from (Ended(view - 1, lock) for lock in ends)
            if leader == LIAR:
                yield from (Proposed(view, d, lock) for d in digests for lock in ends)

    def _heard_from_others(self, counts: dict[Statement, int]) -> Iterator[News]:
        for view in range(len(self.configuration.leaders)):
            claims = _claims(counts, view)
            for size in range(1, len(claims) + 1):
                yield from (GaveUp(view, some) for some in sorted(set(combinations(claims, size))))

    def _heard_by_itself(self, refused: dict[int, Lock], total: int) -> Iterator[News]:
        counts = self._counts(total)
        locks = _quorums(counts, PREPARE)
        for view, claim in refused.items():
            if view + 1 < len(self.configuration.leaders):
                ends = highest_locks(_claims(counts, view), view, locks, refused=[claim])
                yield from (Ended(view, lock) for lock in ends)


def _quorums(counts: dict[Statement, int], kind: str) -> list[Lock]:
    """Return what a quorum, the liar included, signed."""
    return [(view, d) for (k, view, d, _), c in counts.items() if k == kind and c + 1 >= QUORUM]


def _claims(counts: dict[Statement, int], view: int) -> list[Lock]:
    """Return the locks that honest timeouts of a view claim, each as often as it is claimed."""
    of_view = [(s[3], count) for s, count in counts.items() if s[:2] == (TIMEOUT, view)]
    return sorted(claim for claim, count in of_view for _ in range(count) if claim is not None)
