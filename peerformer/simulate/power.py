"""All hosts of a world lose power at once, just after a round was decided.

What was decided is on their disks then, and the state that it led to may be on none: nobody can
serve it, and it must be made again from the contributions that all keep.
"""

from random import Random
from typing import TYPE_CHECKING

from peerformer.simulate.host import Host

if TYPE_CHECKING:
    from peerformer.simulate.troubles import Troubled

FAILS = 0.1  # share of the worlds
ROUND_MAX = 10
SECONDS_MAX = 0.5  # after the round was first decided


def await_power_failure(troubled: "Troubled") -> None:
    """In some worlds, draw a round after which the power fails.

    A random number generator of its own: other worlds stay what they are.
    """
    random, world = Random(f"power {troubled.seed}"), troubled.world
    if random.random() >= FAILS:
        return
    every, number = random.choice((1, 3)), random.randint(1, ROUND_MAX)
    for host in world.hosts:
        host.snapshot_every = every
    decided = world.invariants.on_first_decided

    def lose_power() -> None:
        if not troubled.healed:
            troubled.counts["power failures"] += 1
            for host in world.hosts:
                world.crash(host.index)

    def on_first_decided(host: Host) -> None:
        decided(host)
        if len(world.invariants.decided) == number:
            world.at(random.random() * SECONDS_MAX, lose_power)

    world.invariants.on_first_decided = on_first_decided
