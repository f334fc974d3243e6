"""All orders of messages: three honest voters and a liar, through as many views as have leaders.

Breadth first through everything that the production `Consensus` may do while the network delivers
any message to anybody, any number of times, in any order or never, and timers fire (and, if asked
for, processes die) at any moment. A state is three honest voters and all that they ever signed. The
liar has none: at any time it may have sent any vote for either digest in any view, any timeout with
any lock that can be proven, and as leader any proposal that can be justified.

Why so few states are enough:

*Buffers.* Votes below a quorum and timeouts below f + 1 change nothing but the buffer they wait in,
so each may as well arrive right before the one that makes it count, and one that never counts need
not arrive. What a voter does on a quorum of votes or timeouts it also does on the certificate,
which the liar can assemble of them at any time. So buffers can be left out, and with them the first
vote of a double voter, which may block but never enable. Since the liar gives up any view, one
honest timeout is f + 1; both others are heard too, which counts them by production code. A timeout
heard long before it counts, when its lock was adopted, is a way of its own in `hear`.

*Decisions.* A decided voter is as one that is never heard again. So decisions can come last: in
each state it is asked what voters would decide on all the commits there are.

*Digests.* Two are enough: of a fork between A and others, call all others B. Votes then add up to
at least what they did, and no rule asks that digests differ but to refuse. An honest leader that
makes a new header may choose either; the first of all, if honest, calls its header A. Every header
counts as valid, which lets voters prepare more than they would.

*Symmetry.* Honest voters that lead no later view are interchangeable, and so are A and B if the
liar leads the first view.

`Consensus.entry` is left out as well: only `Ballot` reads it, at once. The tests walk at random
through the same world without any of this, message by message with all buffers, and find no state
that was not met here. (Clarke, Grumberg, Peled: Model Checking, on symmetry and partial orders.)
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count

from peerformer.protocol.messages import Commit
from peerformer.simulate.hearsay import HONEST, LIAR, Configuration, Hearsay
from peerformer.simulate.lone_voter import (
    DIGESTS,
    ROUND,
    HonestVoter,
    Said,
    Voter,
    certificate_of,
    count_votes,
    hear,
)
from peerformer.simulate.news import NO_LOCK, Lock
from peerformer.simulate.retell import fork_in_words, move_in_words

STATES_MAX = 12_000_000  # about 2.5 GB
STATES_PER_LOOK = 1024  # at the clock
FORK = "two honest voters decide differently"

State = tuple[int, ...]  # the honest voters by the numbers of their states


@dataclass(frozen=True, slots=True)
class Explored:
    """What was found; `violation` tells the shortest way to it, step by step."""

    configuration: Configuration
    states: int
    transitions: int
    depth: int  # every state so many steps from the start was met
    exhausted: bool
    violation: tuple[str, ...] | None = None


def configurations(views: int, *, restarts: bool) -> tuple[Configuration, ...]:
    """Return one world for each view that the liar may lead, and one in which it leads none."""
    assert 1 <= views <= HONEST, "a voter leads one view at most"

    def leaders(turn: int) -> tuple[int, ...]:
        later = count()
        first = HONEST - 1
        order = (first if view == 0 else next(later) for view in range(views) if view != turn)
        return tuple(LIAR if view == turn else next(order) for view in range(views))

    return tuple(Configuration(leaders(turn), restarts) for turn in range(views + 1))


def explore_one(
    configuration: Configuration,
    keep_going: Callable[[], bool],
    on_progress: Callable[[Explored], None] = lambda explored: None,
) -> Explored:
    """Explore one world until nothing is new, a promise is broken, or it is time to stop."""
    return Exploration(configuration).run(keep_going, on_progress)


class Exploration:
    """One world, explored breadth first."""

    def __init__(self, configuration: Configuration) -> None:
        """Start with three honest voters that have said nothing."""
        self.configuration = configuration
        self.views = len(configuration.leaders)
        leads = [v for v, leader in enumerate(configuration.leaders) if v and leader != LIAR]
        assert [configuration.leaders[view] for view in leads] == list(range(len(leads)))
        self._leading = len(leads)
        self._digests_alike = configuration.leaders[0] == LIAR
        self._hearsay = Hearsay(configuration)
        self._voters: list[Voter] = []
        self._numbers: dict[Voter, int] = {}
        self._tallies: list[int] = []
        self._swapped: list[int] = []  # the number of the same voter with A and B exchanged
        self._steps: dict[tuple[int, int], tuple[int, ...]] = {}
        self._outcomes: dict[tuple[int, int], tuple[int, ...]] = {}
        self._broken: str | None = None
        self._transitions = self._depth = 0
        said = (Said(),) * self.views
        led = (*leads, *[-1] * HONEST)[:HONEST]
        self.start = tuple(self._number(Voter(view, said)) for view in led)
        self._parents: dict[State, State | None] = {self.canonical(self.start): None}

    # --- states --------------------------------------------------------------------------------

    def _number(self, voter: Voter) -> int:
        known = self._numbers.get(voter)
        if known is not None:
            return known
        number = self._numbers[voter] = len(self._voters)
        self._voters.append(voter)
        self._tallies.append(self._hearsay.tally(voter))
        self._swapped.append(number)
        if self._digests_alike:
            self._swapped[number] = self._number(_swap_digests(voter))
        return number

    def canonical(self, state: State) -> State:
        """Return the one that stands for all states that differ by names only."""
        leading = self._leading
        key = state[:leading] + tuple(sorted(state[leading:]))
        if not self._digests_alike:
            return key
        state = tuple([self._swapped[number] for number in state])
        return min(key, state[:leading] + tuple(sorted(state[leading:])))

    @property
    def voters(self) -> tuple[Voter, ...]:
        """All states of a single voter that were met."""
        return tuple(self._voters)

    def has_met(self, voters: tuple[Voter, ...]) -> bool:
        """Tell whether the exploration met this state."""
        return self.canonical(tuple(self._number(voter) for voter in voters)) in self._parents

    # --- steps ---------------------------------------------------------------------------------

    def _step(self, number: int, total: int) -> tuple[int, ...]:
        """Return all that may become of a voter by one piece of news; `total` is all tallies."""
        voter, found = self._voters[number], {number: None}
        for news in self._hearsay.heard_by(voter, self._tallies[number], total):
            key = number, news
            found |= dict.fromkeys(self._outcomes.get(key) or self._outcome(*key))
        del found[number]
        decisions = self._hearsay.decisions(total)
        if len({digest for _, digest in decisions}) > 1:
            if len(set[bytes]().union(*(_decided(voter, made) for made in decisions))) > 1:
                self._broken = FORK
        self._steps[number, total] = tuple(found)
        return self._steps[number, total]

    def _outcome(self, number: int, news: int) -> tuple[int, ...]:
        after = [number]
        for heard in hear(self._voters[number], self._hearsay.news[news]):
            if heard.fault and not self.configuration.forks_only:
                self._broken = heard.fault
            elif heard.voter.view < self.views:
                after.append(self._number(heard.voter))
        self._outcomes[number, news] = tuple(after)
        return self._outcomes[number, news]

    def _expand(self, state: State, found: list[State]) -> None:
        total = sum([self._tallies[number] for number in state])
        for position, number in enumerate(state):
            after = self._steps.get((number, total))
            if after is None:
                after = self._step(number, total)
            self._transitions += len(after)
            before, behind = state[:position], state[position + 1 :]
            for changed in after:
                key = self.canonical((*before, changed, *behind))
                if key not in self._parents:
                    self._parents[key] = state
                    found.append(key)

    # --- the search ----------------------------------------------------------------------------

    def run(
        self, keep_going: Callable[[], bool], on_progress: Callable[[Explored], None]
    ) -> Explored:
        """Explore until nothing is new, a promise is broken, or it is time to stop."""
        frontier = list(self._parents)
        while frontier:
            found: list[State] = []
            for index, state in enumerate(frontier):
                full = len(self._parents) >= STATES_MAX
                if index % STATES_PER_LOOK == 0 and (full or not keep_going()):
                    return self._explored()
                self._expand(state, found)
                if self._broken:
                    return self._explored(violation=self._story(state, self._broken))
            frontier = found
            self._depth += 1
            on_progress(self._explored())
        return self._explored(exhausted=True)

    def _explored(
        self, *, exhausted: bool = False, violation: tuple[str, ...] | None = None
    ) -> Explored:
        counts = len(self._parents), self._transitions, self._depth
        return Explored(self.configuration, *counts, exhausted, violation)

    # --- the way to a violation ----------------------------------------------------------------

    def _story(self, last: State, broken: str) -> tuple[str, ...]:
        """Retell the shortest way to a state and what is wrong there, with names that stay."""
        path = [last]
        while (parent := self._parents[path[-1]]) is not None:
            path.append(parent)
        state, lines = self.start, []
        for goal in path[-2::-1]:
            moves = self._moves(state)
            line, state = next((line, to) for line, to, _ in moves if self.canonical(to) == goal)
            lines.append(line)
        if broken == FORK:
            voters = tuple(self._voters[number] for number in state)
            total = sum(self._tallies[number] for number in state)
            lines += fork_in_words(voters, self._hearsay.decisions(total))
        else:
            lines.append(next(line for line, _, fault in self._moves(state) if fault))
        numbered = [f"{index}. {line}" for index, line in enumerate(lines, 1)]
        return (*numbered, f"broken: {broken}")

    def _moves(self, state: State) -> Iterator[tuple[str, State, str | None]]:
        """Yield each possible move in words, where it leads, and the promise it breaks."""
        voters = tuple(self._voters[number] for number in state)
        total = sum(self._tallies[number] for number in state)
        for position, (number, voter) in enumerate(zip(state, voters, strict=True)):
            for news in self._hearsay.heard_by(voter, self._tallies[number], total):
                item = self._hearsay.news[news]
                for after, fault in hear(voter, item):
                    to = (*state[:position], self._number(after), *state[position + 1 :])
                    yield move_in_words(voters, position, item, after), to, fault


def _decided(voter: Voter, decision: Lock) -> set[bytes]:
    """Return what a voter decides that hears of a quorum of commits, in every way there is."""
    by_certificate, by_votes = HonestVoter(voter), HonestVoter(voter)
    by_certificate.consensus.on_decision(certificate_of(decision, commits=True))
    count_votes(by_votes, Commit(ROUND, decision[0], DIGESTS[decision[1]]))
    decided = by_certificate.consensus.decided, by_votes.consensus.decided
    return {certificate.digest for certificate in decided if certificate}


def _swap_digests(voter: Voter) -> Voter:
    """Return the voter with A and B exchanged."""

    def digest(it: int | None) -> int | None:
        return None if it is None else 1 - it

    def lock(it: Lock) -> Lock:
        return it if it == NO_LOCK else (it[0], 1 - it[1])

    said = tuple(
        Said(
            digest(it.prepare),
            digest(it.commit),
            None if it.timeout is None else lock(it.timeout),
            None if it.proposal is None else (1 - it.proposal[0], lock(it.proposal[1])),
        )
        for it in voter.said
    )
    return voter._replace(said=said, high=lock(voter.high), stored=lock(voter.stored))
