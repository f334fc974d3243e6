"""Whole swarms of the production peer under loss, crashes, partitions, joins and liars."""

from functools import partial
from random import Random

import pytest

from peerformer.events import SyncFinished
from peerformer.protocol.conduct import culprit_of
from peerformer.protocol.effects import Persist
from peerformer.protocol.messages import Eviction
from peerformer.protocol.refusals import HARMFUL
from peerformer.simulate.host import Host
from peerformer.simulate.invariants import Invariants, Violation
from peerformer.simulate.world import World


def run_to(world: World, tip: int, hosts: list[int] | None = None, seconds: float = 300) -> bool:
    """Run until the hosts (all honest ones) have decided round `tip`."""
    watched = [host.index for host in world.honest()] if hosts is None else hosts
    return world.run(
        seconds=seconds, until=lambda: all(world.tip(index) >= tip for index in watched)
    )


def revive(world: World, index: int, after: float = 3.0) -> None:
    """Boot a host again and again, `after` seconds after it was seen down."""

    def look() -> None:
        if world.hosts[index].peer is None:
            world.boot(index)
        world.at(after, look)

    world.at(after, look)


def digests(world: World, index: int) -> list[bytes]:
    peer = world.hosts[index].peer
    assert peer is not None
    return [item.header.digest for item in peer.machine.chain.items]


def saved(world: World, index: int) -> int:
    snapshot = world.hosts[index].snapshot
    return snapshot[0] if snapshot else 0


def events_of(world: World, index: int, name: str) -> list[object]:
    return [event for event in world.hosts[index].reports if type(event).__name__ == name]


@pytest.mark.parametrize("seed", range(30))
def test_honest_peers_never_decide_otherwise_under_loss_delay_and_reordering(seed: int) -> None:
    print("seed", seed)
    random = Random(seed)
    world = World(seed, random.choice((4, 5, 6, 7)))
    world.network.loss = random.choice((0.0, 0.05, 0.2))
    world.network.duplication = random.choice((0.0, 0.3))
    world.network.jitter_seconds = random.choice((0.05, 0.3, 1.0))
    world.start()
    world.run(seconds=25)  # the world checks every event: forks and double signatures raise
    world.network.heal()
    goal = max(world.tip(host.index) for host in world.hosts) + 2
    assert run_to(world, goal), [world.tip(host.index) for host in world.hosts]
    chains = {tuple(digests(world, host.index)[:goal]) for host in world.hosts}
    assert len(chains) == 1


PERSISTS = 42


@pytest.mark.parametrize("first", range(1, PERSISTS + 1, 6))
@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_host_killed_at_any_persist_restarts_and_signs_nothing_twice(
    first: int, moment: str
) -> None:
    for number in range(first, first + 6):
        print("seed", number, "persist", number, moment)
        world = World(number, 4)
        victim = number % 4
        kills = world.crash_before_persist if moment == "before" else world.crash_after_persist
        kills[victim] = number
        revive(world, victim)
        world.start()
        assert world.run(seconds=300, until=lambda: world.hosts[victim].life > 0)  # noqa: B023
        goal = max(world.tip(index) for index in range(4)) + 1
        assert run_to(world, goal), (number, [world.tip(index) for index in range(4)])


def test_the_killing_points_cover_every_kind_of_record() -> None:
    world = World(1, 4)
    seen: list[str] = []
    persist = world._persist

    def watch(host: Host, records: tuple[tuple[str, bytes], ...], deleted: tuple[str, ...]) -> None:
        if host is world.hosts[0] and len(seen) < PERSISTS:
            seen.append(records[0][0])
        persist(host, records, deleted)

    world._persist = watch  # type: ignore[method-assign]
    world.start()
    assert run_to(world, 9) and len(seen) == PERSISTS
    for kind in (
        "/contribution/",
        "/attestation/",
        "/proposal/",
        "/prepare/",
        "/commit/",
        "header/",
    ):
        assert any(kind in key for key in seen), kind


def test_all_hosts_killed_at_once_go_on_where_they_were() -> None:
    for seed in range(4):
        print("seed", seed)
        world = World(seed, 4)
        world.start()
        world.run(seconds=9 + seed)
        before = max(world.tip(index) for index in range(4))
        for index in range(4):
            world.crash(index)
        for index in range(4):
            world.at(1 + index, partial(world.boot, index))
        assert run_to(world, before + 2)


def test_a_world_replays_from_its_seed() -> None:
    def play() -> tuple[list[bytes], int, float]:
        world = World(5, 5, attacks={2: "equivocate"})
        world.network.loss = 0.1
        world.start()
        run_to(world, 3)
        return digests(world, 0), world.steps, world.now

    assert play() == play()


def test_without_a_quorum_on_any_side_nothing_is_decided_and_healing_goes_on() -> None:
    world = World(11, 4)
    world.start()
    assert run_to(world, 2)
    world.run(seconds=1)
    world.network.split({0, 1}, {2, 3})
    before = max(world.tip(index) for index in range(4))
    world.run(seconds=90)
    during = max(world.tip(index) for index in range(4))
    assert during <= before + 1  # what was on its way may still have got through
    world.network.heal()
    assert run_to(world, during + 2)


def test_a_minority_cut_off_stands_still_while_the_others_go_on_and_catches_up() -> None:
    world = World(12, 7)
    world.start()
    assert run_to(world, 1)
    world.network.split({5, 6}, set(range(5)))
    held = max(world.tip(5), world.tip(6))
    assert run_to(world, held + 3, hosts=[0, 1, 2, 3, 4])
    assert max(world.tip(5), world.tip(6)) <= held + 1
    world.network.heal()
    assert run_to(world, held + 5)


def test_one_way_partitions_do_not_fork() -> None:
    for seed in range(3):
        print("seed", seed)
        random = Random(seed)
        world = World(seed, 4)
        world.start()
        for _ in range(4):
            side = set(random.sample(range(4), random.randint(1, 3)))
            world.network.split(side, set(range(4)) - side, both_ways=False)
            world.run(seconds=8)
            world.network.blocked.clear()
        goal = max(world.tip(index) for index in range(4)) + 2
        assert run_to(world, goal)


def test_a_spare_host_joins_and_becomes_a_voter_whose_vote_counts() -> None:
    world = World(21, 4, spares=1)
    world.start()
    spare = world.hosts[4].keys.peer_id

    def votes() -> bool:
        peer = world.hosts[0].peer
        return peer is not None and spare in peer.machine.chain.members.voters

    assert world.run(seconds=200, until=votes)
    goal = world.tip(0) + 3
    assert run_to(world, goal)
    peer = world.hosts[0].peer
    assert peer is not None
    recent = peer.machine.chain.items[-1].header
    assert spare in {entry.peer for entry in recent.contributions}
    world.crash(0)  # four of five remain: a quorum only with the newcomer's vote
    assert run_to(world, goal + 2, hosts=[1, 2, 3, 4])


def test_a_poisoner_is_refused_quarantined_and_keeps_its_vote() -> None:
    world = World(22, 4, attacks={1: "poison"})
    world.start()
    assert run_to(world, 6, seconds=400)
    peer = world.hosts[0].peer
    assert peer is not None
    poisoner = world.hosts[1].keys.peer_id
    for item in peer.machine.chain.items:
        assert poisoner not in {entry.peer for entry in item.header.contributions}
        reasons = {entry.peer: entry.reason for entry in item.header.refused}
        assert set(reasons) <= {poisoner}
    assert any(
        entry.reason == HARMFUL
        for item in peer.machine.chain.items
        for entry in item.header.refused
    )
    assert events_of(world, 0, "PeerQuarantined")
    assert poisoner in peer.machine.chain.members.voters


@pytest.mark.parametrize("peers", [4, 7])
def test_an_equivocating_voter_is_evicted_everywhere_on_its_own_two_signatures(peers: int) -> None:
    world = World(23, peers, attacks={2: "equivocate"})
    world.start()
    liar = world.hosts[2].keys.peer_id

    def gone() -> bool:
        chains = [host.peer.machine.chain for host in world.honest() if host.peer]
        return all(liar in chain.members.banned for chain in chains)

    assert world.run(seconds=200, until=gone)
    peer = world.hosts[0].peer
    assert peer is not None
    chain = peer.machine.chain
    (eviction,) = (o for item in chain.items for o in item.header.operations)
    assert isinstance(eviction, Eviction)
    assert culprit_of(eviction.evidence, world.genesis.chain_id) == liar
    assert run_to(world, world.tip(0) + 2)


@pytest.mark.parametrize("attack", ["silent", "withhold-blob", "lying-scorer", "forge"])
def test_a_liar_does_not_stop_the_others(attack: str) -> None:
    world = World(24, 4, attacks={3: attack})
    world.start()
    assert run_to(world, 5, seconds=400)


def test_a_leader_killed_in_view_0_costs_one_view_change() -> None:
    world = World(25, 4)
    world.start()
    assert run_to(world, 2)
    world.run(seconds=1)
    peer = world.hosts[0].peer
    assert peer is not None
    machine = peer.machine
    number = machine.collection.number
    leader = world.by_id[machine.ballot.leader(0)][0].index
    others = [index for index in range(4) if index != leader]
    world.crash(leader)
    assert run_to(world, number, hosts=others, seconds=120)
    watching = world.hosts[others[0]].peer
    assert watching is not None
    item = watching.machine.chain.item(number)
    assert item is not None and item.certificate.view == 1
    assert run_to(world, number + 3, hosts=others)
    later = [watching.machine.chain.item(number + more) for more in (1, 2, 3)]
    assert sum(item.certificate.view for item in later if item) <= 1  # a dead peer leads once more


def test_a_host_that_slept_for_rounds_catches_up_by_fetching_the_state() -> None:
    world = World(26, 4)
    world.start()
    assert run_to(world, 1)
    world.crash(3)
    assert run_to(world, 5, hosts=[0, 1, 2])
    world.boot(3)
    assert world.run(seconds=30, until=lambda: saved(world, 3) >= 5)
    finished = [e for e in world.hosts[3].reports if isinstance(e, SyncFinished)]
    assert [event.round >= 5 for event in finished] == [True]  # no state of a passed round first
    assert run_to(world, world.tip(0) + 2)
    assert saved(world, 3) >= world.tip(3) - 1  # and it keeps up from there


def test_a_host_with_an_empty_disk_that_is_no_member_follows_from_genesis() -> None:
    world = World(27, 4, spares=1)
    for index in range(4):
        world.boot(index)
    assert run_to(world, 3, hosts=[0, 1, 2, 3])
    world.boot(4)
    assert world.run(seconds=100, until=lambda: world.tip(4) >= 4)
    assert digests(world, 4)[:3] == digests(world, 0)[:3]


def test_the_world_notices_a_slot_signed_twice_and_a_fork() -> None:
    world = World(28, 4)
    world.start()
    assert run_to(world, 1)
    host = world.hosts[0]
    world._carry_out(host, Persist((("slot/000000000009/prepare/0", b"one"),)))
    with pytest.raises(Violation, match="one message per slot"):
        world._carry_out(host, Persist((("slot/000000000009/prepare/0", b"two"),)))
    fresh = Invariants(28, world.genesis, world.by_id)
    fresh.decided[1] = bytes(32)
    with pytest.raises(Violation, match="two headers"):
        fresh.after_event(host)
