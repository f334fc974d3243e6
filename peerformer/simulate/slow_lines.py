"""One host of a world has a slow line: a state takes it many rounds to fetch, contributions do not.

It must come to the newest state all the same, by the contributions of the rounds meanwhile. A host
that is long without the state is as good as dead for so long, so it counts among the f.
"""

from random import Random
from typing import TYPE_CHECKING

from peerformer.protocol.effects import FetchState
from peerformer.simulate.plan import Plan
from peerformer.simulate.toy import STATE_SIZE_BYTES

if TYPE_CHECKING:
    from peerformer.simulate.host import Host
    from peerformer.simulate.troubles import Troubled
    from peerformer.simulate.works import Fetch

LARGE = 0.5  # share of the worlds whose state is larger than the contributions of many rounds
LARGE_STATE_BYTES = 1_024 * STATE_SIZE_BYTES
SLOW = 0.5  # share of those in which a line is slow
STATE_SECONDS = (5.0, 25.0)
SLEEP_SECONDS = (10.0, 50.0)


def drawn_state_size(plan: Plan, seed: int) -> int:
    """Return how large the state of a world is, in bytes.

    A random number generator of its own: other worlds stay what they are.
    """
    may = plan.replica == "toy" and plan.has("crashes")
    large = may and Random(f"state {seed}").random() < LARGE
    return LARGE_STATE_BYTES if large else STATE_SIZE_BYTES


def slow_a_line(troubled: "Troubled") -> None:
    """In some worlds, let an honest host sleep, and wait long for each state that it fetches."""
    random, world = Random(f"slow line {troubled.seed}"), troubled.world
    is_large = drawn_state_size(troubled.plan, troubled.seed) == LARGE_STATE_BYTES
    if not is_large or troubled.torn_left < 1 or random.random() >= SLOW:
        return
    troubled.torn_left -= 1
    troubled.counts["slow lines"] += 1
    slow, usual = random.choice(troubled.honest), world.works.fetch_seconds
    state_seconds = random.uniform(*STATE_SECONDS)

    def fetch_seconds(host: "Host", work: "Fetch") -> float:
        if host.index == slow and isinstance(work, FetchState):
            return state_seconds
        return usual(host, work)

    world.works.fetch_seconds = fetch_seconds
    asleep = random.uniform(*SLEEP_SECONDS)  # it misses more rounds than it would compute again
    moment = random.random() * troubled.plan.trouble_seconds
    world.at(moment, lambda: world.freeze(slow, asleep, clock_jump=0))


def catch_up(troubled: "Troubled", patience_seconds: float) -> None:
    """Let everybody who stays have the newest state at some time, also whose line is slow."""
    world = troubled.world
    behind = {host.index for host in world.honest()} - troubled.leaving - set(troubled.spares)

    def nobody_is_behind() -> bool:
        machines = [(index, world.hosts[index].machine) for index in behind]
        behind.difference_update(i for i, machine in machines if machine and machine.sync.ready)
        return not behind

    if not world.run(seconds=patience_seconds, until=nobody_is_behind):
        what = f"{sorted(behind)} never had it within {patience_seconds:.0f} s after healing"
        world.invariants.fail("everybody comes to the newest state", what)
