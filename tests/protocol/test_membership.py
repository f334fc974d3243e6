"""Members follow from headers: quorums, bitmaps, standing, suspensions, strikes."""

from dataclasses import replace
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peerformer.protocol.genesis import Limits
from peerformer.protocol.identity import KeyPair
from peerformer.protocol.membership import (
    GUEST,
    QUARANTINE_ROUNDS,
    REPUTATION_AFTER_QUARANTINE,
    REPUTATION_START,
    SUSPENDED,
    Departed,
    bits_of,
    peers_of,
    quorum,
    tolerated_faults,
)
from peerformer.protocol.messages import (
    NO_HASH,
    Accepted,
    Departure,
    Leave,
    Refused,
    Rejoin,
    Return,
    sign,
)
from peerformer.protocol.operations import operation_fault
from peerformer.protocol.refusals import (
    BAD,
    EQUIVOCATED,
    HARMFUL,
    NO_SLOT,
    NORM,
    QUARANTINED,
    UNSUPPORTED,
)
from tests.protocol.five import (
    CHAIN,
    GENESIS,
    KEYS,
    MEMBERS,
    STRANGER,
    admission,
    away,
    eviction,
    following,
    header,
    suspended,
)


def test_a_quorum_is_what_remains_without_the_faulty_and_two_share_an_honest_voter() -> None:
    for n in range(1, 1_001):
        f, q = tolerated_faults(n), quorum(n)
        assert q == n - f
        assert 2 * q - n >= f + 1
        assert 3 * q > 2 * n and 3 * (q - 1) <= 2 * n


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 20), st.data())
def test_a_bitmap_names_its_subset_and_only_the_canonical_one_is_read(
    count: int, data: st.DataObject
) -> None:
    voters = tuple(bytes((i,)) * 32 for i in range(count))
    chosen = {voter for voter in voters if data.draw(st.booleans())}
    bitmap = bits_of(voters, chosen)
    assert set(peers_of(voters, bitmap) or ()) == chosen
    assert peers_of(voters, bitmap + b"\0") is None
    for length in range(len(bitmap)):
        assert peers_of(voters, bitmap[:length]) is None
    for bit in range(count, 8 * len(bitmap)):
        beyond = bytearray(bitmap)
        beyond[bit // 8] |= 1 << bit % 8
        assert peers_of(voters, bytes(beyond)) is None


CHANGES = {  # what became of a contribution -> the change of its author's reputation
    "accepted": 10, HARMFUL: -100, BAD: -100, EQUIVOCATED: -100, "nothing contributed": -5,
    UNSUPPORTED: -5, QUARANTINED: 0, NO_SLOT: 0, NORM: 0,
}  # fmt: skip


@pytest.mark.parametrize(("fate", "change"), CHANGES.items())
def test_reputation_moves_by_the_numbers_of_the_protocol_within_its_bounds(
    fate: object, change: int
) -> None:
    who, other = KEYS[1].peer_id, Accepted(KEYS[2].peer_id, NO_HASH, 1)
    mine = (Accepted(who, NO_HASH, 1),) if fate in ("accepted", NORM) else ()
    refused = (Refused(who, fate),) if isinstance(fate, int) else ()
    contributions = tuple(sorted((*mine, other), key=lambda entry: entry.peer))
    decided = header(contributions=contributions, refused=refused)
    assert REPUTATION_START == 500
    for before in (500, 0, 3, 997, 1_000):
        members = replace(
            MEMBERS,
            members=tuple(
                replace(m, reputation=before) if m.peer == who else m for m in MEMBERS.members
            ),
        )
        after = following(members, decided).get(who)
        assert after and after.reputation == min(max(before + change, 0), 1_000)


def test_a_null_round_costs_nobody_anything() -> None:
    null = following(MEMBERS, header())
    assert all(member.reputation == REPUTATION_START for member in null.members)


def test_below_200_a_member_is_quarantined_for_8_rounds_and_then_stands_at_250() -> None:
    who = KEYS[1].peer_id
    for before, falls in ((205, False), (204, True)):
        start = replace(MEMBERS.members[1], reputation=before)
        assert start.peer == who
        members = replace(MEMBERS, members=(MEMBERS.members[0], start, *MEMBERS.members[2:]))
        other = (Accepted(KEYS[2].peer_id, NO_HASH, 1),)
        members = following(members, header(7, contributions=other))
        member = members.get(who)
        assert member and member.reputation == before - 5
        assert bool(member.quarantined_until) == falls
    without_slot = 0
    for number in range(8, 30):
        member = members.get(who)
        assert member
        if member.quarantined_until <= number:
            break
        without_slot += 1
        assert who in members.voters
        members = following(members, header(number, contributions=other))
    assert without_slot == 8 and member.reputation == 250


def test_repeated_harm_leads_to_quarantine_which_ends() -> None:
    harmful, members, number = KEYS[2].peer_id, MEMBERS, 1
    while not (member := members.get(harmful)) or not member.quarantined_until:
        members = following(members, header(number, refused=(Refused(harmful, HARMFUL),)))
        number += 1
        assert number < 9
    assert member.quarantined_until == number + QUARANTINE_ROUNDS
    others = tuple(Accepted(keys.peer_id, NO_HASH, 1) for keys in (KEYS[0], KEYS[1]))
    for _ in range(QUARANTINE_ROUNDS):
        assert members.get(harmful).quarantined_until > number  # type: ignore[union-attr]
        members = following(members, header(number, contributions=others))
        number += 1
    free = members.get(harmful)
    assert free and free.quarantined_until == 0
    assert free.reputation == REPUTATION_AFTER_QUARANTINE
    assert harmful in members.voters  # it never lost its vote


def test_a_voter_away_for_the_longest_allowed_time_is_suspended_and_no_sooner() -> None:
    limits, absent = Limits(idle_rounds_max=3), KEYS[4]
    members = MEMBERS
    for number in (1, 2):
        members = following(members, away(number, absent), limits)
    assert following(members, header(3), limits).voters == MEMBERS.voters  # in a row, or not
    assert following(members, away(3, absent), Limits(idle_rounds_max=0)).voters == MEMBERS.voters
    members = following(members, away(3, absent), limits)
    asleep = members.get(absent.peer_id)
    assert asleep and asleep.role == SUSPENDED and asleep.suspended_from == 4
    assert absent.peer_id not in (*members.voters, *members.contributors)
    others = (Accepted(KEYS[0].peer_id, NO_HASH, 1), Accepted(KEYS[1].peer_id, NO_HASH, 1))
    for number in range(4, 60):
        members = following(members, away(number, members=members, contributions=others), limits)
    assert members.get(absent.peer_id) == asleep  # its standing stands still


def test_a_suspension_does_not_serve_a_quarantine() -> None:
    members, who = suspended(reputation=150, quarantined_until=44)
    back = Return(sign(who, CHAIN, Rejoin(50)))
    voter = following(members, away(70, members=members, operations=(back,))).get(who.peer_id)
    assert voter and voter.quarantined_until == 71 + QUARANTINE_ROUNDS


def test_the_vouchers_of_an_evicted_peer_get_a_strike_and_may_not_vouch_for_100_rounds() -> None:
    strict = replace(GENESIS, limits=replace(GENESIS.limits, vouchers=2))
    good = admission(vouching=(0, 1))
    members = following(MEMBERS, header(1, operations=(good,)))
    members = following(members, away(2, members=members, operations=(eviction(STRANGER),)))
    reputations = [member.reputation for member in members.members]
    assert reputations == [400, 400, 500, 500, 500]
    assert [member.strikes for member in members.members] == [1, 1, 0, 0, 0]
    other = KeyPair.from_seed(b"\xfd" * 32)
    for number, barred in ((3, True), (102, True), (103, False)):
        for vouching in ((0, 2), (1, 2), (2, 3)):
            again = admission(number, other, vouching)
            found = operation_fault(again, members, strict, CHAIN, number)
            assert (found is not None) == (barred and bool({0, 1} & {*vouching})), found
    assert members.voters == MEMBERS.voters  # it never costs the vote


def test_a_strike_reaches_the_vouchers_of_one_that_left_but_nobody_else() -> None:
    good = admission(vouching=(3,))
    members = following(MEMBERS, header(1, operations=(good,)))
    leave = Departure(sign(STRANGER, CHAIN, Leave(2)))
    members = following(members, away(2, members=members, operations=(leave,)))
    assert members.departed == (Departed(STRANGER.peer_id, 2, (KEYS[3].peer_id,)),)
    members = following(members, away(3, members=members, operations=(eviction(STRANGER),)))
    assert [member.strikes for member in members.members] == [0, 0, 0, 1, 0]
    founder = following(MEMBERS, header(1, operations=(eviction(KEYS[0]),)))
    assert all(member.strikes == 0 for member in founder.members)  # nobody vouched for it


def test_a_strike_counts_for_the_quarantined_the_suspended_and_down_to_nothing() -> None:
    who = KEYS[2].peer_id
    cases = (
        ({"quarantined_until": 50, "reputation": 150}, 50),
        ({"role": SUSPENDED, "suspended_from": 1, "reputation": 300}, 200),
        ({"reputation": 60}, 0),
    )
    for changes, expected in cases:
        members = following(MEMBERS, header(1, operations=(admission(vouching=(2,)),)))
        members = replace(
            members,
            members=tuple(
                replace(m, **changes) if m.peer == who else m  # type: ignore[arg-type]
                for m in members.members
            ),
        )
        members = following(members, away(2, members=members, operations=(eviction(STRANGER),)))
        member = members.get(who)
        assert member and (member.reputation, member.strikes) == (expected, 1)


def test_the_builder_alone_moves_on_in_its_hash_chain_and_absence_is_counted() -> None:
    absent = KEYS[4].peer_id
    attesters = bits_of(MEMBERS.voters, set(MEMBERS.voters) - {absent})
    after = following(MEMBERS, header(reveal=b"\x09" * 32, attesters=attesters))
    assert [m.peer for m in after.members if m.chain_anchor == b"\x09" * 32] == [KEYS[0].peer_id]
    assert [m.peer for m in after.members if m.idle_rounds == 1] == [absent]


def test_any_change_of_standing_changes_the_members_hash() -> None:
    hashes = {MEMBERS.hash, replace(MEMBERS, banned=(bytes(32),)).hash}
    hashes.add(replace(MEMBERS, departed=(Departed(bytes(32), 1),)).hash)
    first = MEMBERS.members[0]
    changes = {
        "role": GUEST, "chain_anchor": b"\1" * 32, "joined": 2, "reputation": 1,
        "quarantined_until": 3, "idle_rounds": 4, "suspended_from": 5,
        "vouched_by": (bytes(32),), "strikes": 6, "barred_until": 7,
    }  # fmt: skip
    for name, value in changes.items():
        changed = replace(first, **{name: value})  # type: ignore[arg-type]
        hashes.add(replace(MEMBERS, members=(changed, *MEMBERS.members[1:])).hash)
    assert len(hashes) == 3 + len(changes)
    assert all(a != b for a, b in combinations(hashes, 2))
