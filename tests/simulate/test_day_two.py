"""Days of a swarm in whole worlds: paused voters still vote, old rounds go, and nobody minds."""

from typing import Any

import pytest

from peerformer.events import SyncFinished
from peerformer.protocol.checkpoint import BASE_KEY, HEADER_PREFIX
from peerformer.protocol.effects import Command, FetchState
from peerformer.simulate.plan import Plan
from peerformer.simulate.slow_lines import LARGE_STATE_BYTES
from peerformer.simulate.toy import ToyReplicas
from peerformer.simulate.troubles import Troubled
from peerformer.simulate.world import World


def run_to(world: World, tip: int, hosts: list[int], seconds: float = 400) -> bool:
    return world.run(seconds=seconds, until=lambda: all(world.tip(index) >= tip for index in hosts))


def machine(world: World, index: int) -> Any:
    peer = world.hosts[index].peer
    assert peer is not None
    return peer.machine


def test_voters_who_are_paused_attest_and_vote_so_the_others_go_on() -> None:
    world = World(5, 4)
    world.start()
    assert run_to(world, 2, [0, 1, 2, 3])
    for index in (0, 1):  # one more than may fail: without their votes nothing is decided
        world.command(index, Command("pause"))
    tip = world.tip(2)
    assert run_to(world, tip + 6, [0, 1, 2, 3])
    last = machine(world, 2).chain.item(tip + 6).header
    assert len(last.contributions) == 2 and last.attesters[0].bit_count() >= 3
    for index in (0, 1):
        world.command(index, Command("resume"))
    assert run_to(world, tip + 10, [0, 1, 2, 3])
    assert len(machine(world, 2).chain.item(tip + 10).header.contributions) == 4


def test_a_swarm_that_is_paused_as_a_whole_decides_nothing_and_does_not_spin() -> None:
    world = World(6, 4)
    world.start()
    assert run_to(world, 2, [0, 1, 2, 3])
    for index in range(4):
        world.command(index, Command("pause"))
    world.run(seconds=60)
    tip = world.tip(0)
    world.run(seconds=120)
    assert world.tip(0) == tip
    world.command(0, Command("resume"))
    assert run_to(world, tip + 2, [0, 1, 2, 3])


def test_old_rounds_go_and_a_restart_and_a_sleeper_go_on_from_the_rest() -> None:
    world = World(9, 4)
    world.start()
    for index in range(4):
        machine(world, index).chain.rounds_kept = 120
    assert run_to(world, 190, [0, 1, 2, 3], seconds=4_000)
    world.crash(3)
    assert run_to(world, 230, [0, 1, 2], seconds=4_000)
    chain = machine(world, 0).chain
    assert chain.base.round == 100 and len(chain.items) == chain.tip - 100
    records = world.hosts[0].disk.load()
    kept = sorted(key for key in records if key.startswith(HEADER_PREFIX))
    assert len(kept) == chain.tip - 100 and BASE_KEY in records
    world.crash(0)
    world.boot(0)
    world.boot(3)  # it lacks fewer rounds than are kept
    assert run_to(world, 234, [0, 1, 2, 3])
    again = machine(world, 0).chain
    assert again.base.round == 100 and again.admitted == machine(world, 1).chain.admitted


def test_a_sleeper_who_lacks_more_than_is_kept_is_told_so() -> None:
    world = World(9, 4)
    world.start()
    for index in range(3):
        machine(world, index).chain.rounds_kept = 100
    assert run_to(world, 5, [0, 1, 2, 3])
    world.crash(3)
    assert run_to(world, 205, [0, 1, 2], seconds=6_000)
    assert machine(world, 0).chain.base.round == 100
    world.boot(3)
    world.run(seconds=30)
    told = {
        (event.round, event.peer)
        for event in world.hosts[3].reports
        if type(event).__name__ == "HistoryGone"
    }
    assert {peer for _, peer in told} == {machine(world, i).me.hex() for i in (0, 1, 2)}
    assert machine(world, 3).chain.tip < 100


@pytest.mark.parametrize("size", [1, 2, 4])
def test_a_state_that_nobody_saved_is_made_again_from_contributions(size: int) -> None:
    """The power of all fails; their disks hold the rounds, the contributions, and an old state."""
    everybody, world = list(range(size)), World(7, size)
    for host in world.hosts:
        host.snapshot_every = 1_000
    world.start()
    assert run_to(world, 5, everybody)
    tip, root = machine(world, 0).chain.tip, machine(world, 0).chain.state_root
    for index in everybody:
        world.crash(index)
    for index in everybody:
        world.boot(index)
        assert machine(world, index).sync.state_round == 0
    assert run_to(world, tip + 3, everybody)
    assert machine(world, 0).chain.item(tip).header.state_root == root
    assert all(machine(world, index).sync.state_round >= tip for index in everybody)
    assert not any("SyncFinished" in type(e).__name__ for h in world.hosts for e in h.reports)


def test_who_comes_back_to_a_swarm_that_went_on_fetches_its_state_and_replays_nothing() -> None:
    world = World(7, 4)
    for host in world.hosts:
        host.snapshot_every = 1_000
    world.start()
    assert run_to(world, 3, [0, 1, 2, 3])
    world.crash(0)
    assert run_to(world, 7, [1, 2, 3])
    world.boot(0)
    assert run_to(world, 12, [0, 1, 2, 3])
    fetched = [e for e in world.hosts[0].reports if type(e).__name__ == "SyncFinished"]
    assert fetched and machine(world, 0).sync.state_round >= 7


def large_states(seed: int) -> World:
    """Four peers whose state is many times the contributions of a round."""
    return World(seed, 4, replicas=ToyReplicas(LARGE_STATE_BYTES))


def fetched_by(world: World, index: int) -> list[int]:
    reports = world.hosts[index].reports
    return [event.round for event in reports if isinstance(event, SyncFinished)]


def test_who_missed_a_few_rounds_computes_them_where_that_is_less_than_the_state() -> None:
    world = large_states(7)
    world.start()
    assert run_to(world, 3, [0, 1, 2, 3])
    world.crash(0)
    assert run_to(world, world.tip(0) + 2, [1, 2, 3])
    world.boot(0)
    assert world.run(seconds=60, until=lambda: world.tip(0) > 5 and machine(world, 0).sync.ready)
    assert fetched_by(world, 0) == []


@pytest.mark.parametrize("replicas", [ToyReplicas(), ToyReplicas(LARGE_STATE_BYTES)])
def test_a_state_that_takes_many_rounds_to_fetch_is_enough_if_contributions_are_small(
    replicas: ToyReplicas,
) -> None:
    """A state of 32 bytes is less than contributions: there nothing is gathered, and all is new."""
    world = World(11, 4, replicas=replicas)
    usual = world.works.fetch_seconds
    world.works.fetch_seconds = lambda host, work: (
        45.0 if host.index == 0 and isinstance(work, FetchState) else usual(host, work)
    )
    world.start()
    assert run_to(world, 3, [0, 1, 2, 3])
    world.crash(0)
    assert run_to(world, 15, [1, 2, 3])
    world.boot(0)
    assert run_to(world, 15, [0])
    came = world.run(seconds=200, until=lambda: machine(world, 0).sync.ready)
    if replicas.state_size < LARGE_STATE_BYTES:
        assert not came and len(fetched_by(world, 0)) >= 3
        return
    (fetched,) = fetched_by(world, 0)
    assert came and world.tip(0) - fetched >= 8, "more rounds than contributions are served for"
    last = world.tip(0)
    assert run_to(world, last + 3, [0, 1, 2, 3])
    header = machine(world, 1).chain.item(last + 3).header
    assert world.hosts[0].me in {entry.peer for entry in header.contributions}
    assert machine(world, 0).sync.oldest_needed > last  # what was gathered may go


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("seed", range(8))
def test_swarms_of_fewer_than_four_go_on_after_any_trouble(size: int, seed: int) -> None:
    outcome = Troubled(seed, Plan(peers=size)).run()
    assert outcome.violation is None and outcome.rounds_decided >= 3, outcome
