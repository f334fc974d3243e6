"""Large swarms: who is drawn to vote and to contribute, and how messages go around."""

from collections import deque
from dataclasses import replace
from random import Random

import pytest

from peerformer.protocol.committee import drawn, fingers, is_assigned
from peerformer.protocol.genesis import Limits
from peerformer.protocol.identity import hash_of
from peerformer.protocol.membership import VOTER, Member, Members, _at_work

BEACON = hash_of("test beacon")


def ids(count: int, seed: int = 0) -> tuple[bytes, ...]:
    print("seed", seed)
    random = Random(seed)
    return tuple(sorted(random.randbytes(32) for _ in range(count)))


def members_of(peers: tuple[bytes, ...]) -> Members:
    return Members(tuple(Member(p, VOTER, bytes(32), 1, 500, 0, 0) for p in peers), ())


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 8, 64, 65, 128, 1_000])
def test_a_message_reaches_everybody_around_the_circle_in_logarithmic_time(count: int) -> None:
    circle = ids(count)
    for start in (circle[0], circle[-1], circle[count // 2]):
        heard, queue = {start: 0}, deque([start])
        while queue:
            peer = queue.popleft()
            for neighbour in fingers(circle, peer):
                if neighbour not in heard:
                    heard[neighbour] = heard[peer] + 1
                    queue.append(neighbour)
        assert len(heard) == count
        assert max(heard.values()) <= count.bit_length()
    assert all(len(fingers(circle, peer)) <= count.bit_length() for peer in circle)
    assert all(peer not in fingers(circle, peer) for peer in circle)


def test_a_circle_still_reaches_the_honest_when_a_fifth_passes_nothing_on() -> None:
    for seed in range(20):
        circle, random = ids(128, seed), Random(seed)
        mute = set(random.sample(circle, 25))
        start = next(peer for peer in circle if peer not in mute)
        heard, queue = {start}, deque([start])
        while queue:
            peer = queue.popleft()
            if peer in mute:
                continue
            fresh = [n for n in fingers(circle, peer) if n not in heard]
            heard.update(fresh)
            queue.extend(fresh)
        assert set(circle) - mute <= heard


def test_a_stranger_to_a_circle_has_neighbours_where_it_would_stand() -> None:
    circle = ids(64)
    stranger = ids(1, seed=5)[0]
    near = fingers(circle, stranger)
    assert stranger not in circle and 5 <= len(near) <= 7 and set(near) <= set(circle)


def test_a_draw_is_a_function_of_the_beacon_alone() -> None:
    candidates = ids(300)
    first = drawn(candidates, BEACON, "committee", 64)
    assert first == drawn(reversed(candidates), BEACON, "committee", 64)
    assert len(first) == 64 and list(first) == sorted(set(first))
    other = drawn(candidates, hash_of("another"), "committee", 64)
    assert first != other and first != drawn(candidates, BEACON, "contributors", 64)


def test_every_candidate_is_drawn_about_as_often() -> None:
    candidates = ids(200)
    counts = dict.fromkeys(candidates, 0)
    for number in range(400):
        for peer in drawn(candidates, hash_of("b", number.to_bytes(4, "little")), "committee", 50):
            counts[peer] += 1
    assert 60 < min(counts.values()) and max(counts.values()) < 140  # 100 +- 4.6 deviations


def test_few_voters_are_assigned_everything_and_many_about_their_share() -> None:
    voters = ids(64)
    assert all(is_assigned(BEACON, v, voters[0], 16, 16) for v in voters[:16])
    assert all(is_assigned(BEACON, v, voters[0], 16, 7) for v in voters[:7])
    assigned = [
        sum(is_assigned(BEACON, voter, author, 16, 64) for voter in voters) for author in voters
    ]
    assert 13 < sum(assigned) / len(assigned) < 19 and min(assigned) > 3


def test_up_to_the_committee_size_all_vote_and_above_it_those_drawn() -> None:
    limits = Limits(committee_size=64)
    small, large = ids(64), ids(200)
    few = _at_work(members_of(small), (), BEACON, 1, limits)
    assert few.committee == () and few.drawn == () and few.voters == small and few.circle == ()
    many = _at_work(members_of(large), (), BEACON, 1, limits)
    assert many.voters == drawn(large, BEACON, "committee", 64)
    assert many.contributors == drawn(large, BEACON, "contributors", 64)
    assert set(many.circle) == {*many.voters, *many.contributors}


def test_a_committee_serves_its_epoch_and_is_drawn_anew_when_a_third_is_gone() -> None:
    limits = Limits(committee_size=64, committee_rounds=100)
    peers = ids(300)
    first = _at_work(members_of(peers), (), BEACON, 1, limits)
    later = hash_of("later")
    kept = _at_work(first, first.committee, later, 50, limits)
    assert kept.committee == first.committee and kept.drawn != first.drawn
    assert _at_work(first, first.committee, later, 100, limits).committee != first.committee
    gone = set(first.committee[:21])
    left = replace(first, members=tuple(m for m in first.members if m.peer not in gone))
    fewer = _at_work(left, first.committee, later, 50, limits).committee
    assert fewer == first.committee[21:]
    gone = set(first.committee[:22])
    left = replace(first, members=tuple(m for m in first.members if m.peer not in gone))
    anew = _at_work(left, first.committee, later, 50, limits).committee
    assert len(anew) == 64 and not gone & set(anew)
