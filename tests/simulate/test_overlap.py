"""Swarms that train one round ahead of the vote (staleness 1)."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from random import Random

import pytest

from peerformer.events import RoundCommitted
from peerformer.protocol.effects import Command, StartWork, Train
from peerformer.protocol.identity import hash_of
from peerformer.protocol.messages import Contribution, Said
from peerformer.simulate.host import Host
from peerformer.simulate.plan import WORLDS, Plan
from peerformer.simulate.troubles import Troubled
from peerformer.simulate.world import LIMITS, World

AHEAD = replace(LIMITS, staleness=1)


def world_of(seed: int, peers: int = 4, staleness: int = 1) -> World:
    return World(seed, peers, limits=replace(LIMITS, staleness=staleness))


def run_to(world: World, tip: int, seconds: float = 600) -> bool:
    honest = [host.index for host in world.honest()]
    return world.run(
        seconds=seconds, until=lambda: all(world.tip(index) >= tip for index in honest)
    )


def trainings(world: World) -> Counter[tuple[int, int, int]]:
    """Count the trainings ordered from now on, by host, life and round."""
    ordered: Counter[tuple[int, int, int]] = Counter()
    carry_out = world._carry_out

    def watch(host: Host, effect: object) -> None:
        if isinstance(effect, StartWork) and isinstance(effect.work, Train):
            ordered[host.index, host.life, effect.work.round] += 1
        carry_out(host, effect)  # type: ignore[arg-type]

    world._carry_out = watch  # type: ignore[method-assign]
    return ordered


def committed(world: World, index: int) -> list[RoundCommitted]:
    return [event for event in world.hosts[index].reports if isinstance(event, RoundCommitted)]


def on_contribution(world: World, look: Callable[[Host, int], None]) -> None:
    """Look whenever a host says what it trained for a round."""
    before_send = world.invariants.before_send

    def watch(host: Host, packet: object) -> None:
        statement = packet.envelope.statement if isinstance(packet, Said) else None
        if isinstance(statement, Contribution):
            look(host, statement.round)
        before_send(host, packet)  # type: ignore[arg-type]

    world.invariants.before_send = watch  # type: ignore[method-assign]


def test_training_for_the_next_round_begins_when_the_contribution_is_out() -> None:
    world = world_of(1)
    world.works.train_seconds = lambda _: 10.0
    ordered = trainings(world)
    world.start()
    assert world.run(seconds=60, until=lambda: ordered[0, 0, 1] == 1)
    begun = world.now
    assert world.run(seconds=60, until=lambda: ordered[0, 0, 2] == 1)
    assert 9.9 < world.now - begun < 10.1 and world.tip(0) == 0  # nothing is decided yet
    assert run_to(world, 1)
    assert world.now - begun < 12 and ordered[0, 0, 3] == 0  # one round ahead and no more


@pytest.mark.parametrize("seed", range(8))
def test_nobody_trains_twice_for_a_round_nor_speaks_before_its_round(seed: int) -> None:
    """Rounds that are slower and faster than training; the world raises on two signatures."""
    print("seed", seed)
    random = Random(seed)
    world = world_of(seed, random.choice((1, 4, 5, 7)))
    world.network.delay_seconds = random.choice((0.05, 1.5))
    train_seconds = random.choice((0.3, 4.0))
    world.works.train_seconds = lambda _: train_seconds * (1 + world.random.random() / 4)
    ordered = trainings(world)
    early: list[tuple[int, int]] = []

    def look(host: Host, number: int) -> None:
        if number > world.tip(host.index) + 1:
            early.append((host.index, number))

    on_contribution(world, look)
    world.start()
    assert run_to(world, 8)
    assert not early
    assert set(ordered.values()) == {1}
    rounds = {number for index, _, number in ordered if index == 0}
    assert rounds == set(range(1, world.tip(0) + 2)) or rounds == set(range(1, world.tip(0) + 3))
    used = {entry.peer for entry in world.hosts[0].machine.chain.items[-1].header.contributions}  # type: ignore[union-attr]
    assert used == {host.me for host in world.hosts}


@pytest.mark.parametrize("seed", range(6))
def test_crashes_between_any_two_effects_leave_one_message_a_slot(seed: int) -> None:
    print("seed", seed)
    random = Random(seed)
    world = world_of(seed)
    world.works.train_seconds = lambda _: 1.0
    ordered = trainings(world)

    def kill() -> None:
        world.hosts[random.randrange(4)].effects_until_crash = random.randint(1, 40)
        world.at(2.0, kill)

    def revive() -> None:
        for host in world.hosts:
            if host.peer is None:
                world.boot(host.index)
        world.at(1.0, revive)

    world.at(1.0, kill)
    world.at(1.0, revive)
    world.start()
    world.run(seconds=60)
    assert world.crashes > 5
    assert run_to(world, max(world.tip(index) for index in range(4)) + 1)
    assert set(ordered.values()) == {1}  # in each life; what was not signed is trained again
    again = Counter((index, number) for index, life, number in ordered)
    assert max(again.values()) > 1


@pytest.mark.parametrize("kind", WORLDS)
def test_worlds_that_train_ahead_hold_all_invariants(kind: str) -> None:
    outcome = Troubled(100, Plan(kind, staleness=1, trouble_seconds=25.0)).run()
    assert outcome.violation is None, outcome.violation


def test_a_quarter_of_the_worlds_train_ahead_and_which_is_the_seeds_affair() -> None:
    def drawn() -> list[int]:
        return [Troubled(seed, Plan(peers=4)).world.limits.staleness for seed in range(100)]

    stale = drawn()
    assert drawn() == stale and 15 <= sum(stale) <= 35
    one = Troubled(3, Plan(staleness=0)).world
    other = Troubled(3, Plan(staleness=1)).world
    assert len(one.hosts) == len(other.hosts) and one.network.jitter_seconds == (
        other.network.jitter_seconds
    )


def test_the_vote_takes_as_long_as_if_nobody_trained() -> None:
    voting, seconds, used = {}, {}, {}
    for staleness in (0, 1):
        world = world_of(5, 7, staleness)
        world.works.train_seconds = lambda _: 10.0
        world.network.delay_seconds, world.network.jitter_seconds = 0.3, 0.0
        world.start()
        assert run_to(world, 7)
        steady = committed(world, 0)[2:7]
        phases = [e.waiting_seconds + e.checking_seconds + e.voting_seconds for e in steady]
        voting[staleness] = max(phases)
        seconds[staleness] = sum(event.seconds for event in steady) / len(steady)
        used[staleness] = min(event.utilisation for event in steady)
    print(voting, seconds, used)
    assert voting[1] <= voting[0] + 0.1
    assert seconds[0] > 10.0 + voting[0] / 2
    # The training gives way to checks and aggregation, and to nothing else.
    assert 10.0 <= seconds[1] < 10.4 and used[1] > 0.95 and used[0] < 0.9


def contributors(world: World, number: int) -> set[int]:
    """The hosts whose contributions a round accepted."""
    item = next(host.machine.chain.item(number) for host in world.hosts if host.machine)
    assert item is not None
    return {world.by_id[entry.peer][0].index for entry in item.header.contributions}


@pytest.mark.parametrize("moment", [0.1, 0.5, 1.5, 3.0, 4.5, 5.7])
def test_a_peer_restarted_at_any_moment_is_soon_in_step_again(moment: float) -> None:
    """Whoever begins late would be late in every round, as nobody ever pauses for it."""
    world = world_of(9)
    world.network.delay_seconds = 0.3
    world.works.train_seconds = lambda _: 6.0
    ordered = trainings(world)
    world.start()
    assert run_to(world, 3)
    world.crash(0)
    assert world.run(seconds=60, until=lambda: world.tip(1) >= 6)  # nobody waits for it by now
    world.run(seconds=moment)
    world.boot(0)
    goal = world.tip(1) + 9
    assert run_to(world, goal)
    first = min(number for index, life, number in ordered if (index, life) == (0, 1))
    taken = [number for number in range(first, goal + 1) if 0 in contributors(world, number)]
    print(moment, first, taken)
    assert set(range(first + 2, goal + 1)) <= set(taken) and first < goal - 3


def test_a_slow_peer_is_heard_in_some_rounds_and_slows_nobody() -> None:
    world = world_of(10, 5)
    world.works.train_seconds = lambda index: 9.0 if index == 0 else 6.0
    world.start()
    assert run_to(world, 16)
    seconds = [event.seconds for event in committed(world, 1)[4:16]]
    taken = [number for number in range(5, 17) if 0 in contributors(world, number)]
    print(seconds, taken)
    assert 3 <= len(taken) < 12
    assert sum(seconds) / len(seconds) < 7.5


def test_the_data_of_a_round_is_drawn_by_the_beacon_before_the_round_that_is_voted_on() -> None:
    world = world_of(6)
    seeds: dict[int, bytes] = {}
    carry_out = world._carry_out

    def watch(host: Host, effect: object) -> None:
        if host.index == 0 and isinstance(effect, StartWork) and isinstance(effect.work, Train):
            seeds[effect.work.round] = effect.work.seed
        carry_out(host, effect)  # type: ignore[arg-type]

    world._carry_out = watch  # type: ignore[method-assign]
    world.start()
    assert run_to(world, 4)
    host = world.hosts[0]
    assert host.machine is not None
    chain = host.machine.chain
    beacons = [hash_of("beacon", chain.chain_id), *(item.header.beacon for item in chain.items)]
    for number in range(1, 5):
        beacon = beacons[max(0, number - 2)]
        assert seeds[number] == hash_of("shard", beacon, host.me, number.to_bytes(8, "little"))
    assert len(set(seeds.values())) == len(seeds)


def test_a_peer_that_is_restarted_draws_the_same_data() -> None:
    world = world_of(7)
    world.works.train_seconds = lambda _: 5.0
    seeds: dict[int, set[bytes]] = {}
    carry_out = world._carry_out

    def watch(host: Host, effect: object) -> None:
        if host.index == 0 and isinstance(effect, StartWork) and isinstance(effect.work, Train):
            seeds.setdefault(effect.work.round, set()).add(effect.work.seed)
        carry_out(host, effect)  # type: ignore[arg-type]

    world._carry_out = watch  # type: ignore[method-assign]
    world.start()
    assert run_to(world, 2)
    world.run(seconds=1)  # training ahead is under way, and is lost
    world.crash(0)
    world.boot(0)
    assert run_to(world, 4)
    assert all(len(found) == 1 for found in seeds.values())


def test_a_paused_peer_sends_what_it_has_trained_and_goes_on_when_it_is_told() -> None:
    world = world_of(8)
    ordered = trainings(world)
    world.start()
    assert run_to(world, 2)
    world.command(0, Command("pause"))
    tip = world.tip(1)
    assert world.run(seconds=200, until=lambda: world.tip(1) >= tip + 5)
    assert max(number for index, _, number in ordered if index == 0) <= tip + 2
    world.command(0, Command("resume"))
    goal = world.tip(1) + 4
    assert run_to(world, goal)
    last = world.hosts[1].machine.chain.item(goal)  # type: ignore[union-attr]
    assert last and world.hosts[0].me in {entry.peer for entry in last.header.contributions}


def test_peers_that_drift_apart_are_waited_for_because_waiting_costs_nothing() -> None:
    """Nobody pauses between rounds, so unequal trainings add up; none is left behind for it."""
    world = world_of(12, 7)
    world.works.train_seconds = lambda _: 120.0 * (0.95 + world.random.random() / 10)
    world.start()
    assert run_to(world, 12, seconds=3_000)
    rounds = [event for index in range(7) for event in committed(world, index)[3:12]]
    print([event.accepted for event in rounds[:9]], [event.utilisation for event in rounds[:9]])
    assert all(event.accepted == 7 for event in rounds)
    seconds = sum(event.seconds for event in rounds)
    assert sum(event.training_seconds for event in rounds) / seconds > 0.95
