"""Who belongs to a swarm, in whole worlds: guests, suspensions, vouchers, false attestations."""

from peerformer.protocol.membership import GUEST, VOTER, Members
from peerformer.simulate.world import World


def members(world: World, index: int = 0) -> Members:
    peer = world.hosts[index].peer
    assert peer is not None
    return peer.machine.chain.members


def role_of(world: World, index: int, seen_by: int = 0) -> int | None:
    member = members(world, seen_by).get(world.hosts[index].keys.peer_id)
    return None if member is None else member.role


def run_to(world: World, tip: int, hosts: list[int], seconds: float = 300) -> bool:
    return world.run(seconds=seconds, until=lambda: all(world.tip(index) >= tip for index in hosts))


def events_of(world: World, index: int, name: str) -> list[object]:
    return [event for event in world.hosts[index].reports if type(event).__name__ == name]


def test_a_guest_contributes_and_follows_without_a_vote_and_may_become_a_voter() -> None:
    world = World(31, 4, spares=1)
    world.hosts[4].role = GUEST
    world.start()
    guest = world.hosts[4].keys.peer_id
    assert world.run(seconds=200, until=lambda: role_of(world, 4) == GUEST)
    begun = world.tip(0)
    assert run_to(world, begun + 6, hosts=[0, 1, 2, 3, 4])
    peer = world.hosts[0].peer
    assert peer is not None
    headers = [item.header for item in peer.machine.chain.items[begun + 1 :]]
    assert any(guest in {entry.peer for entry in header.contributions} for header in headers)
    assert all(len(header.attesters) == 1 and header.attesters[0] < 16 for header in headers)
    assert len(members(world).voters) == 4
    assert {slot[0] for sender, slot in world.said if sender == guest} == {"contribution"}
    # It computes the agreed states itself, from contributions that it fetched: one state fetched
    # at the start is all.
    assert len(events_of(world, 4, "SyncFinished")) <= 1
    assert world.hosts[4].snapshot[0] >= world.tip(4) - 1

    world.crash(4)
    world.hosts[4].role = VOTER
    world.boot(4)
    assert world.run(seconds=100, until=lambda: role_of(world, 4) == VOTER)
    standing = members(world).get(guest)
    assert standing is not None and standing.reputation > 500  # it kept what it had earned
    world.crash(1)
    assert run_to(world, world.tip(0) + 3, hosts=[0, 2, 3, 4])  # four of five: with its vote only
