"""Hard schedules: each brings about the moment that it is there for, and nothing breaks in it."""

from collections import Counter
from random import Random

import pytest

from peerformer.simulate.host import Host
from peerformer.simulate.plan import Plan
from peerformer.simulate.schedules import Schedules
from peerformer.simulate.troubles import COMMITTEE_ROUNDS, Troubled
from peerformer.simulate.world import World


def played(world: World, play: str) -> tuple[Schedules, Counter[str]]:
    """Play a schedule in the first round, and count what its hosts say."""
    schedules = Schedules(world, Random(1), [host.index for host in world.honest()])
    said: Counter[str] = Counter()

    def on_first_said(host: Host, kind: str) -> None:
        said[kind] += 1
        if not said["begun"] and kind == "prepare":
            said["begun"] = 1
            schedules.begin(getattr(schedules, play), 1, 0)
        elif schedules.stops is not None:
            schedules.on_said(host, kind)

    world.invariants.on_first_said = on_first_said
    world.invariants.on_first_decided = lambda host: schedules.on_decided(host)
    world.start()
    return schedules, said


def goes_on(world: World) -> bool:
    return world.run(
        seconds=300, until=lambda: all(world.tip(host.index) >= 3 for host in world.honest())
    )


def test_one_alone_decides_and_the_others_come_to_the_same_without_it() -> None:
    world = World(3, 5)
    schedules, said = played(world, "one_decides")
    everyone = range(5)
    assert world.run(seconds=60, until=lambda: any(world.tip(index) for index in everyone))
    assert [index for index in everyone if world.tip(index)] == [schedules.victim]
    world.run(seconds=120, until=lambda: schedules.stops is None)
    assert said["timeout"] >= 4 and world.network.blocked == set()
    assert goes_on(world)


def test_all_fall_between_giving_a_view_up_and_hearing_its_votes() -> None:
    world = World(4, 4)
    schedules, said = played(world, "all_restart")
    assert world.run(seconds=120, until=lambda: world.crashes == 4)
    assert said["timeout"] >= 4
    world.run(seconds=120, until=lambda: schedules.stops is None)
    assert goes_on(world)


def test_one_goes_ahead_while_the_others_cannot_end_their_view() -> None:
    world = World(5, 4, attacks={2: "desert"})
    schedules, _ = played(world, "one_goes_ahead")
    views: list[dict[int, int]] = []

    def ended() -> bool:
        if schedules.stops is not None:
            here = {host.index: host.machine for host in world.honest()}
            views.append({i: m.ballot.consensus.view for i, m in here.items() if m is not None})
        return bool(views) and schedules.stops is None

    assert world.run(seconds=200, until=ended)
    last = views[-1]
    assert last.pop(schedules.victim) == 1 and set(last.values()) == {0}
    assert goes_on(world)


def test_some_worlds_of_a_seed_play_schedules_and_others_draw_committees() -> None:
    worlds = [Troubled(seed, Plan()) for seed in range(200)]
    assert sum(world.schedules is not None for world in worlds) > 20
    small = [world for world in worlds if world.world.limits.committee_size < world.size]
    assert len(small) > 10
    for world in small:
        liars = sum(bool(host.attacks) for host in world.world.hosts)
        assert liars <= world.faults <= (world.world.limits.committee_size - 1) // 3


@pytest.mark.parametrize("seed", [1, 2])
def test_a_world_with_committees_changes_them_and_holds_the_invariants(seed: int) -> None:
    number = [n for n in range(300) if Troubled(n, Plan()).world.limits.committee_size < 8][seed]
    print("seed", number)
    troubled = Troubled(number, Plan(rounds=2 * COMMITTEE_ROUNDS + 1))
    assert troubled.run().violation is None
    chain = next(host.machine for host in troubled.world.honest() if host.machine).chain
    drawn = {members.committee for members in chain.past_members.values()}
    assert len(drawn) > 1 and all(drawn)
