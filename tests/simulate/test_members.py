"""Who belongs to a swarm, in whole worlds: guests, suspensions, vouchers, false attestations."""

from dataclasses import replace
from typing import Any

import pytest

from peerformer.protocol.conduct import culprit_of, exhibit_of, is_exhibit
from peerformer.protocol.effects import Check, Command
from peerformer.protocol.identity import name_of
from peerformer.protocol.membership import GUEST, SUSPENDED, VOTER, Members, peers_of
from peerformer.protocol.messages import Eviction, FalseHolding
from peerformer.simulate.world import LIMITS, World


def members(world: World, index: int = 0) -> Members:
    peer = world.hosts[index].peer
    assert peer is not None
    return peer.machine.chain.members


def role_of(world: World, index: int, seen_by: int = 0) -> int | None:
    member = members(world, seen_by).get(world.hosts[index].keys.peer_id)
    return None if member is None else member.role


def run_to(world: World, tip: int, hosts: list[int], seconds: float = 300) -> bool:
    return world.run(seconds=seconds, until=lambda: all(world.tip(index) >= tip for index in hosts))


def events_of(world: World, index: int, name: str) -> list[Any]:
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
    assert {slot[0] for sender, slot in world.invariants.said if sender == guest} == {
        "contribution"
    }
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


def test_voters_that_go_to_bed_one_by_one_do_not_stop_the_rest_and_return_by_themselves() -> None:
    world = World(32, 7, limits=replace(LIMITS, idle_rounds_max=5))
    world.start()
    up = list(range(7))
    for sleeper in (6, 5, 4, 3):  # a quorum of seven is five: without suspensions the third stops
        assert run_to(world, world.tip(0) + 2, hosts=up)
        world.crash(sleeper)
        up.remove(sleeper)
        assert world.run(
            seconds=200, until=lambda sleeper=sleeper: role_of(world, sleeper) == SUSPENDED
        )
    assert members(world).voters == tuple(sorted(world.hosts[i].keys.peer_id for i in up))
    before = members(world).get(world.hosts[6].keys.peer_id)
    assert before is not None
    for index in (3, 4, 5, 6):
        world.boot(index)
    assert world.run(seconds=200, until=lambda: len(members(world).voters) == 7)
    back = world.tip(0)
    after = members(world).get(world.hosts[6].keys.peer_id)
    assert after is not None and after.joined == before.joined == 1
    assert run_to(world, back + 3, hosts=list(range(7)))
    sleepers = {world.hosts[index].keys.peer_id.hex() for index in (3, 4, 5, 6)}
    for told in ("PeerSuspended", "PeerReturned"):
        assert sleepers <= {event.peer for event in events_of(world, 0, told)}
    peer = world.hosts[0].peer
    assert peer is not None
    voters = members(world).voters
    heard = [peers_of(voters, item.header.attesters) for item in peer.machine.chain.items[back:]]
    assert {voter for attesters in heard for voter in attesters or ()} == set(voters)


def test_no_suspension_where_the_genesis_has_none() -> None:
    world = World(33, 4, limits=replace(LIMITS, idle_rounds_max=0))
    world.start()
    assert run_to(world, 1, hosts=[0, 1, 2, 3])
    world.crash(3)
    assert run_to(world, 8, hosts=[0, 1, 2])
    assert role_of(world, 3) == VOTER


def test_the_last_two_voters_that_leave_at_once_go_one_after_the_other() -> None:
    world = World(34, 2)
    world.start()
    assert run_to(world, 2, hosts=[0, 1])
    for host in world.hosts:
        world.soon(host, Command("leave"))
    gone = world.run(
        seconds=60, until=lambda: all(events_of(world, index, "PeerLeft") for index in (0, 1))
    )
    assert gone
    assert all(len(members(world, index).voters) == 1 for index in (0, 1))


def test_a_leader_waits_for_the_attestations_of_all_that_live() -> None:
    """Or those far away would never be heard, and be suspended while they vote."""
    world = World(35, 7)
    world.start()
    assert run_to(world, 20, hosts=[0])
    peer = world.hosts[0].peer
    assert peer is not None
    voters = members(world).voters
    heard = [peers_of(voters, item.header.attesters) or () for item in peer.machine.chain.items]
    assert sum(len(attesters) == 7 for attesters in heard) >= 16


@pytest.mark.parametrize("loss", [0.0, 0.2])
def test_a_join_collects_vouchers_of_as_many_voters_as_the_genesis_asks_for(loss: float) -> None:
    world = World(36, 4, spares=2, limits=replace(LIMITS, vouchers=3, joins_per_voucher=2))
    world.network.loss = loss
    world.start()
    spares = [world.hosts[index].keys.peer_id for index in (4, 5)]
    assert world.run(seconds=300, until=lambda: set(spares) <= set(members(world).voters))
    for spare in spares:
        vouched_by = members(world).vouchers_of(spare)
        assert len(set(vouched_by)) == 3 and spare not in vouched_by
    assert run_to(world, world.tip(0) + 2, hosts=list(range(6)), seconds=600)


def test_vouchers_run_out_and_those_of_others_serve() -> None:
    """Two voters, one admission each in 100 rounds: the third newcomer has the second's vouch."""
    world = World(37, 2, spares=3, limits=replace(LIMITS, joins_per_voucher=1))
    world.start()
    assert world.run(seconds=400, until=lambda: len(members(world).voters) == 5)
    vouched_by = [member.vouched_by for member in members(world).members if member.vouched_by]
    assert len(vouched_by) == len(set(vouched_by)) == 3


def test_whoever_vouched_for_a_liar_gets_a_strike_when_it_is_evicted() -> None:
    world = World(38, 4, spares=1, attacks={4: "equivocate"}, limits=replace(LIMITS, vouchers=2))
    world.start()
    liar = world.hosts[4].keys.peer_id
    assert world.run(seconds=200, until=lambda: liar in members(world).voters)
    vouched_by = set(members(world).vouchers_of(liar))
    assert world.run(seconds=200, until=lambda: liar in members(world).banned)
    assert {m.peer for m in members(world).members if m.strikes} == vouched_by
    assert {event.peer for event in events_of(world, 0, "PeerStruck")} == {
        peer.hex() for peer in vouched_by
    }
    assert run_to(world, world.tip(0) + 2, hosts=[0, 1, 2, 3])


@pytest.mark.parametrize("seed", range(4))
def test_whoever_attests_garbage_is_evicted_on_its_attestation_and_the_honest_are_not(
    seed: int,
) -> None:
    print("seed", seed)
    world = World(390 + seed, 7, attacks={5: "garbage", 6: "false-ok"})
    world.network.loss = (0.0, 0.1)[seed % 2]
    world.start()
    liars = {world.hosts[index].keys.peer_id for index in (5, 6)}
    honest = list(range(5))

    def gone() -> bool:
        return all(set(members(world, index).banned) == liars for index in honest)

    assert world.run(seconds=300, until=gone)  # the world raises if an honest host is evicted
    peer = world.hosts[0].peer
    assert peer is not None
    chain_id, author = world.genesis.chain_id, world.hosts[5].keys.peer_id
    evidence = [
        operation.evidence
        for item in peer.machine.chain.items
        for operation in item.header.operations
        if isinstance(operation, Eviction)
    ]
    assert {culprit_of(each, chain_id) for each in evidence} == liars
    for each in evidence:
        assert isinstance(each, FalseHolding) and each.author == author
        exhibit = exhibit_of(each)
        blob = world.hosts[0].blobs.held[each.blob_hash]
        looked = Check(exhibit.round, exhibit.author, exhibit.blob_hash, exhibit.size, None)
        assert is_exhibit(blob, exhibit, chain_id) and peer.bench.check(looked, blob).malformed
    told = [event for event in events_of(world, 0, "PeerEvicted") if event.name == name_of(author)]
    assert "does not decode" in told[0].evidence
    blamed = {event.peer for index in honest for event in events_of(world, index, "Misbehaved")}
    assert not blamed & {host.keys.peer_id.hex() for host in world.honest()}
    assert run_to(world, world.tip(0) + 2, hosts=honest)
