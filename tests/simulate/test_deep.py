"""Hundreds of worlds with everything at once: liars, crashes, partitions, loss, duplication.

Run by `make check-deep`. Each seed makes one world of 4 to 10 peers with up to f liars; after 100
seconds of trouble the network heals, and every honest peer must decide three more rounds. The world
itself checks that nobody decides, signs or evicts what it must not. One seed alone:

    PEERFORMER_SEEDS=286:287 pytest -m deep tests/simulate/test_deep.py
"""

import os
from random import Random

import pytest

from peerformer.simulate.world import World

FIRST, LAST = (int(text) for text in os.environ.get("PEERFORMER_SEEDS", "0:300").split(":"))
TROUBLE_SECONDS, PATIENCE_SECONDS = 100.0, 400.0
ATTACKS = ("equivocate", "silent", "poison", "garbage", "false-ok")


def troubled_world(seed: int) -> tuple[World, list[int], dict[str, int]]:
    """A world with all kinds of trouble scheduled; also the honest hosts, and counts of it."""
    random = Random(seed * 7_919 + 1)
    size = random.choice([4, 4, 5, 6, 7, 7, 8, 10])
    liars = random.sample(range(size), random.randint(0, (size - 1) // 3))
    world = World(seed, size, attacks={liar: random.choice(ATTACKS) for liar in liars})
    world.network.loss = random.choice([0, 0, 0.05, 0.2])
    world.network.duplication = random.choice([0, 0.2])
    world.network.jitter_seconds = random.choice([0.05, 0.3, 1.0])
    honest = [host.index for host in world.honest()]
    counts = {"liars": len(liars), "crashes": 0, "partitions": 0}

    def crash(index: int, down_seconds: float) -> None:
        if world.hosts[index].peer is not None:
            counts["crashes"] += 1
            world.crash(index)
            world.at(down_seconds, lambda: reboot(index))

    def reboot(index: int) -> None:
        if world.hosts[index].peer is None:
            world.boot(index)

    def watch() -> None:
        for index in honest:
            reboot(index)
        world.at(7, watch)

    for _ in range(random.randint(0, 4)):
        index = random.choice(honest)
        if random.random() < 0.5:
            down = random.random() * 20
            world.at(random.random() * 60, lambda index=index, down=down: crash(index, down))
        else:
            moments = world.crash_before_persist, world.crash_after_persist
            moments[random.random() < 0.5][index] = random.randint(5, 80)
            counts["crashes"] += 1
    for _ in range(random.randint(0, 3)):
        side = set(random.sample(range(size), random.randint(1, size - 1)))
        begins, both = random.random() * 60, random.random() < 0.7
        other = set(range(size)) - side
        counts["partitions"] += 1
        world.at(
            begins,
            lambda side=side, other=other, both=both: world.network.split(
                side, other, both_ways=both
            ),
        )
        world.at(begins + random.random() * 30, world.network.blocked.clear)
    world.at(7, watch)
    return world, honest, counts


@pytest.mark.deep
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", range(FIRST, LAST))
def test_a_troubled_world_never_forks_and_goes_on_once_it_heals(seed: int) -> None:
    print(f"seed {seed}")
    world, honest, counts = troubled_world(seed)
    world.start()
    world.run(seconds=TROUBLE_SECONDS)
    world.network.heal()
    goal = max(world.tip(index) for index in honest) + 3
    went_on = world.run(
        seconds=PATIENCE_SECONDS,
        until=lambda: all(world.tip(index) >= goal for index in honest),
    )
    tips = [world.tip(host.index) for host in world.hosts]
    assert went_on, f"seed {seed}: {counts}, decided {tips}, wanted {goal} of {honest}"
