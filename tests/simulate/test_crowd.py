"""Swarms above the size at which all vote: the committee decides, the others follow."""

import time

import pytest

from peerformer.simulate.crowd import Crowd


def test_a_committee_decides_for_a_swarm_too_large_for_all_to_vote() -> None:
    crowd = Crowd(3, 40, committee_size=13, blob_size_bytes=1_000)
    rounds = []
    cost = crowd.run(4, rounds.append)
    assert rounds == [1, 2, 3, 4] and cost.views == 0
    machines = [host.machine for host in crowd.world.hosts]
    assert all(machine is not None for machine in machines)
    members = machines[0].chain.past_members[2]  # type: ignore[union-attr]
    assert len(members.committee) == 13 and len(members.voters) == 13
    certified = machines[0].chain.item(2)  # type: ignore[union-attr]
    assert certified is not None and len(certified.certificate.signatures) == 9
    states = {machine.sync.state_round for machine in machines if machine}
    assert max(states) >= 4 and min(states) >= 3  # those that do not vote compute the state too


@pytest.mark.deep
def test_a_peer_of_a_large_swarm_has_few_links_and_sends_little_more_when_it_doubles() -> None:
    small = Crowd(4, 80, committee_size=16, blob_size_bytes=1_000).run(2)
    large = Crowd(4, 160, committee_size=16, blob_size_bytes=1_000).run(2)
    print(small, large)
    assert large.links < 40 and large.links < small.links + 8
    assert large.messages < small.messages + 2


def test_what_a_peer_pays_alone_is_measured_by_giving_it_its_events_again() -> None:
    crowd = Crowd(5, 7, blob_size_bytes=1_000, watched=(0,))
    crowd.run(2)
    assert 0 < crowd.replay(0, time.process_time) < 20


@pytest.mark.deep
@pytest.mark.timeout(1_200)
def test_a_thousand_peers_decide_twenty_rounds() -> None:
    crowd = Crowd(1, 1_000)
    cost = crowd.run(20, lambda number: print(number, crowd.world.steps))
    print(cost)
    assert cost.links < 60 and cost.views <= 2
