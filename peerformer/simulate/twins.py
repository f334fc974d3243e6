"""Twins: one key run by two honest machines, in every way that partitions can come between them.

Two copies that hear different things contradict each other, which is what a Byzantine peer can do:
sign two statements for one slot, forget a lock, show each half another face. So liars need not be
invented. A scenario says whose key is doubled, when the network changes (when somebody first votes,
or gives up), and who hears whom before, between and after; an index enumerates all of them. The
doubled key is judged as a liar, and the world's invariants hold for the others; when the network is
whole again they must go on. It knows nothing of what the votes mean.

After "Twins: BFT Systems Made Robust" (Bano et al., arXiv 2004.10617).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product
from math import gcd

from peerformer.protocol.membership import tolerated_faults
from peerformer.simulate.host import TWIN, Host
from peerformer.simulate.invariants import Violation
from peerformer.simulate.troubles import Outcome
from peerformer.simulate.world import World

SIZES = (4, 5)  # the smallest swarm that tolerates a liar, and one that is not 3f + 1
PHASES = 3
PHASE_SECONDS_MAX = 20.0  # more than a first view lasts
PHASE_ROUNDS_MAX = 1  # a side that goes on undisturbed shows nothing new
TRAIN_SECONDS = 0.5
SETTLE_SECONDS = 2.0
PATIENCE_SECONDS = 300.0
ROUNDS_AFTER = 1

Moment = tuple[str, int]  # the first honest statement of this kind, in this view
Moments = tuple[Moment, Moment]
MOMENTS: tuple[Moments, ...] = (
    (("prepare", 0), ("timeout", 0)),
    (("commit", 0), ("timeout", 0)),
    (("timeout", 0), ("timeout", 1)),
    (("commit", 0), ("commit", 1)),
)
Sides = tuple[int, ...]  # host -> the side it is on


@dataclass(frozen=True, slots=True)
class Scenario:
    """Who is doubled (the twin is the last host), when the network changes, who hears whom."""

    peers: int
    twinned: int
    moments: Moments
    sides: tuple[Sides, ...]

    def __str__(self) -> str:
        """Return it in words."""
        phases = " then ".join(
            " | ".join(
                ",".join(str(host) for host, side in enumerate(sides) if side == which)
                for which in sorted(set(sides))
            )
            for sides in self.sides
        )
        changes = " and ".join(f"{kind} in view {view}" for kind, view in self.moments)
        doubled = f"{self.peers} peers, {self.twinned} runs twice (as {self.peers} too)"
        return f"{doubled}; {phases}; changes at the first {changes}"


def _divisions(hosts: int) -> list[Sides]:
    """Return the ways to divide hosts into two sides, or not at all: host 0 is on side 0."""
    return [(0, *rest) for rest in product((0, 1), repeat=hosts - 1)]


def _count(peers: int) -> int:
    return peers * len(MOMENTS) * len(_divisions(peers + 1)) ** PHASES


COUNT = sum(map(_count, SIZES))
STRIDE = 104_729  # with no divisor in common, so that neighbours differ in everything
assert gcd(COUNT, STRIDE) == 1


def scenario(index: int) -> Scenario:
    """Return one of all scenarios; any run of indices is spread evenly over them."""
    assert 0 <= index < COUNT
    number = index * STRIDE % COUNT
    for peers in SIZES:
        if number < _count(peers):
            break
        number -= _count(peers)
    number, twinned = divmod(number, peers)
    number, moments = divmod(number, len(MOMENTS))
    divisions, sides = _divisions(peers + 1), []
    for _ in range(PHASES):
        number, chosen = divmod(number, len(divisions))
        sides.append(divisions[chosen])
    return Scenario(peers, twinned, MOMENTS[moments], tuple(sides))


class Twinned:
    """A world of one scenario."""

    def __init__(self, index: int) -> None:
        """Make it; nothing in it is random but the delays of messages."""
        self.index, self.scenario = index, scenario(index)
        peers, twinned = self.scenario.peers, self.scenario.twinned
        self.world = World(index, peers, attacks={twinned: TWIN}, sorted_ids=True)
        twin = self.world.add_host(self.world.hosts[twinned].seed)
        twin.attacks = (TWIN,)
        self.world.works.train_seconds = lambda _: TRAIN_SECONDS
        self.honest = self.world.honest()
        self.seen: set[Moment] = set()
        self.world.invariants.on_first_said = self._note

    @property
    def opening(self) -> str:
        """What the world is about, in a line."""
        return str(self.scenario)

    def _note(self, host: Host, kind: str) -> None:
        assert host.machine is not None
        self.seen.add((kind, host.machine.ballot.consensus.view))

    def run(self) -> Outcome:
        """Run the world to its end; a violation is in the outcome."""
        outcome, world = Outcome(self.index), self.world
        try:
            world.start()
            self._decide(1)  # in peace: how long things take is known from then on
            for phase in self._phases():
                self.seen.clear()
                world.run(seconds=PHASE_SECONDS_MAX, until=phase)
                outcome.counts["partitions"] += bool(world.network.blocked)
            world.network.heal()
            world.run(seconds=SETTLE_SECONDS)
            self._go_on()
        except Violation as violation:
            outcome.violation = violation
        outcome.rounds_decided = len(world.invariants.decided)
        outcome.views = world.invariants.views
        outcome.counts["evictions"] += world.invariants.evictions
        outcome.counts["messages lost"] += world.network.lost
        return outcome

    def _phases(self) -> Iterator[Callable[[], bool]]:
        """Divide the network anew, and yield what ends the phase before its time."""
        ends: list[Moment | None] = [*self.scenario.moments, None]
        for sides, moment in zip(self.scenario.sides, ends, strict=True):
            self.world.network.join()
            left = {host for host, side in enumerate(sides) if side == 0}
            self.world.network.split(left, set(range(len(sides))) - left)
            yield partial(self._is_over, moment, self._tip() + PHASE_ROUNDS_MAX)

    def _is_over(self, moment: Moment | None, tip: int) -> bool:
        return moment in self.seen or self._tip() >= tip

    def _tip(self) -> int:
        return max(self.world.tip(host.index) for host in self.honest)

    def _decide(self, number: int) -> None:
        world = self.world
        reached = world.run(
            seconds=PATIENCE_SECONDS,
            until=lambda: all(world.tip(host.index) >= number for host in self.honest),
        )
        if not reached:
            tips = [world.tip(host.index) for host in self.honest]
            what = f"{tips} decided {PATIENCE_SECONDS:.0f} s after healing, wanted {number}"
            world.invariants.fail("what is honest goes on", what)

    def _go_on(self) -> None:
        """Liveness: rounds are decided again, each within f + 2 views of where it stood."""
        machines, begun = [host.machine for host in self.honest], self._tip()
        at_it = [m.ballot.consensus.view for m in machines if m and m.ballot.number == begun + 1]
        self._decide(begun + ROUNDS_AFTER)
        most = tolerated_faults(self.scenario.peers) + 2
        for number in range(begun + 1, begun + ROUNDS_AFTER + 1):
            view = self.world.invariants.view_of[number]
            if view > most + (max(at_it, default=0) if number == begun + 1 else 0):
                what = f"round {number} took view {view}"
                self.world.invariants.fail("decided within f + 2 views", what)
