"""Members follow from headers: quorums, bitmaps, standing, admissions, departures, evictions."""

from dataclasses import replace
from functools import partial
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peerformer.protocol.genesis import ADMISSION_CLOSED, ADMISSION_OPEN, Founder, Genesis, Limits
from peerformer.protocol.identity import KeyPair
from peerformer.protocol.membership import (
    EPOCH_ROUNDS,
    GUEST,
    QUARANTINE_ROUNDS,
    REPUTATION_AFTER_QUARANTINE,
    REPUTATION_START,
    SUSPENDED,
    VOTER,
    Departed,
    Member,
    Members,
    bits_of,
    founders,
    next_members,
    peers_of,
    quorum,
    subject_of,
    tolerated_faults,
)
from peerformer.protocol.messages import (
    MEMBERS_MAX,
    NO_HASH,
    Accepted,
    Admission,
    Departure,
    Envelope,
    Eviction,
    Evidence,
    Header,
    Join,
    Leave,
    Prepare,
    Refused,
    Rejoin,
    Return,
    Voucher,
    sign,
)
from peerformer.protocol.operations import join_hash, operation_fault, operations_fault
from peerformer.protocol.refusals import (
    BAD,
    EQUIVOCATED,
    HARMFUL,
    NO_SLOT,
    NORM,
    QUARANTINED,
    UNSUPPORTED,
)

KEYS = sorted((KeyPair.from_seed(bytes((i,)) * 32) for i in range(5)), key=lambda k: k.peer_id)
STRANGER = KeyPair.from_seed(b"\xff" * 32)
GENESIS = Genesis(
    1, b"test", b"{}", NO_HASH, 0, NO_HASH, 0, NO_HASH, 32, 64,
    Limits(admission=ADMISSION_OPEN, joins_per_epoch=9),
    tuple(Founder(keys.peer_id, bytes(32)) for keys in KEYS),
)  # fmt: skip
CHAIN = GENESIS.chain_id
MEMBERS = founders(GENESIS)


def header(number: int = 1, **changes: object) -> Header:
    everybody = bits_of(MEMBERS.voters, set(MEMBERS.voters))
    plain = Header(
        1, number, NO_HASH, NO_HASH, NO_HASH, NO_HASH, KEYS[0].peer_id,
        everybody, NO_HASH, (), (), (), NO_HASH, NO_HASH, NO_HASH,
    )  # fmt: skip
    return replace(plain, **changes)  # type: ignore[arg-type]


def following(members: Members, header: Header, limits: Limits = GENESIS.limits) -> Members:
    return next_members(members, header, limits)


def fault(operation: object, number: int = 1, genesis: Genesis = GENESIS) -> str | None:
    return operation_fault(operation, MEMBERS, genesis, CHAIN, number)  # type: ignore[arg-type]


def admission(
    number: int = 1,
    who: KeyPair = STRANGER,
    vouching: tuple[int, ...] = (0,),
    role: int = VOTER,
) -> Admission:
    join = sign(who, CHAIN, Join(number, b"\x07" * 32, role))
    vouchers = tuple(sign(KEYS[i], CHAIN, Voucher(join_hash(join))) for i in vouching)
    return Admission(join, vouchers)


def eviction(culprit: KeyPair) -> Eviction:
    one, two = (sign(culprit, CHAIN, Prepare(1, 0, bytes((i,)) * 32)) for i in (1, 2))
    return Eviction(Evidence(one, two))


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


def test_a_stranger_is_admitted_once_vouched_for_and_votes_a_round_later() -> None:
    operation = admission()
    assert fault(operation) is None
    after = following(MEMBERS, header(1, operations=(operation,)))
    member = after.get(STRANGER.peer_id)
    assert member == Member(STRANGER.peer_id, VOTER, b"\x07" * 32, 2, REPUTATION_START, 0, 0)
    assert MEMBERS.get(STRANGER.peer_id) is None
    assert [m.peer for m in after.members] == sorted(m.peer for m in after.members)


def test_a_guest_is_a_member_without_a_vote_whom_a_newer_request_promotes() -> None:
    as_guest = admission(role=GUEST)
    assert fault(as_guest) is None
    members = following(MEMBERS, header(1, operations=(as_guest,)))
    guest = members.get(STRANGER.peer_id)
    assert guest and guest.role == GUEST and STRANGER.peer_id in members.contributors
    assert members.voters == MEMBERS.voters
    earned = replace(guest, reputation=777, quarantined_until=9)
    members = replace(members, members=tuple(earned if m == guest else m for m in members.members))

    def later(operation: Admission, now: Members = members) -> str | None:
        return operation_fault(operation, now, GENESIS, CHAIN, 4)

    assert later(admission(3, role=GUEST)) == "already a member, or banned"
    assert later(admission(1)) == "already a member, or banned"  # from before it was a guest
    assert later(replace(admission(3), vouchers=())) == "too few vouchers"
    promotion = admission(3)
    assert later(promotion) is None
    members = following(members, header(4, operations=(promotion,)))
    voter = members.get(STRANGER.peer_id)
    assert voter and (voter.role, voter.joined) == (VOTER, 5) and voter.quarantined_until == 9
    assert voter.reputation == 777 and STRANGER.peer_id in members.voters
    assert later(admission(4), members) == "already a member, or banned"


def test_an_admission_that_lacks_anything_is_refused() -> None:
    good = admission()
    forged = replace(good.join, signature=bytes(64))
    outsider = sign(STRANGER, CHAIN, Voucher(join_hash(good.join)))
    other = sign(KEYS[0], CHAIN, Voucher(bytes(32)))
    elsewhere = sign(KEYS[0], bytes(32), Voucher(join_hash(good.join)))
    closed = replace(GENESIS, limits=replace(GENESIS.limits, admission=ADMISSION_CLOSED))
    strict = replace(GENESIS, limits=replace(GENESIS.limits, vouchers=2))
    assert fault(good, genesis=closed) == "admission is closed"
    assert fault(good, genesis=strict) == "too few vouchers"
    assert fault(admission(vouching=(0, 1)), genesis=strict) is None
    assert fault(replace(good, vouchers=())) == "too few vouchers"
    assert fault(replace(good, vouchers=good.vouchers * 2)) == "too few vouchers"
    for voucher in (outsider, other, elsewhere, good.join):
        assert fault(replace(good, vouchers=(voucher,))) == "a voucher that is not one"
    assert fault(replace(good, join=forged)) == "not a genuine request to join"
    assert fault(admission(role=GUEST + 1)) == "a role that nobody joins in"
    assert fault(admission(who=KEYS[1])) == "already a member, or banned"
    assert fault(admission(number=2)) == "request to join is too old"
    assert fault(good, number=EPOCH_ROUNDS) is None
    assert fault(good, number=EPOCH_ROUNDS + 1) == "request to join is too old"


def test_a_leave_serves_its_sender_for_the_membership_it_holds() -> None:
    leave = sign(KEYS[1], CHAIN, Leave(3))
    assert fault(Departure(leave), number=3) is None
    assert fault(Departure(leave), number=2) is not None
    assert fault(Departure(replace(leave, sender=KEYS[2].peer_id)), number=3) is not None
    assert fault(Departure(sign(STRANGER, CHAIN, Leave(3))), number=3) is not None
    rejoined = replace(
        MEMBERS,
        members=tuple(
            replace(m, joined=5) if m.peer == KEYS[1].peer_id else m for m in MEMBERS.members
        ),
    )
    assert operation_fault(Departure(leave), rejoined, GENESIS, CHAIN, 9) is not None
    after = following(MEMBERS, header(3, operations=(Departure(leave),)))
    assert after.get(KEYS[1].peer_id) is None and after.banned == ()


def test_evidence_evicts_bans_and_keeps_out() -> None:
    culprit = KEYS[3]
    liar = eviction(culprit)
    assert fault(liar) is None
    one = liar.evidence.first
    assert fault(Eviction(Evidence(one, one))) is not None
    after = following(MEMBERS, header(1, operations=(liar,)))
    assert after.get(culprit.peer_id) is None and after.banned == (culprit.peer_id,)
    again = admission(number=2, who=culprit)
    assert operation_fault(again, after, GENESIS, CHAIN, 2) == "already a member, or banned"


def test_a_signed_statement_that_does_not_decode_convicts_and_moves_nobody() -> None:
    broken = Envelope(KEYS[1].peer_id, 3, b"short", bytes(64))
    assert fault(Eviction(Evidence(broken, broken))) == "evidence convicts no member"


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


def away(number: int, *absent: KeyPair, members: Members = MEMBERS, **changes: object) -> Header:
    """A header whose attesters are all voters but these."""
    present = set(members.voters) - {keys.peer_id for keys in absent}
    attesters = bits_of(members.voters, present)
    return header(number, attesters=attesters, **changes)


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


def suspended(reputation: int = 400, quarantined_until: int = 0) -> tuple[Members, KeyPair]:
    who = KEYS[4]
    asleep = replace(
        MEMBERS.members[4], role=SUSPENDED, suspended_from=40, idle_rounds=30,
        reputation=reputation, quarantined_until=quarantined_until,
    )  # fmt: skip
    assert asleep.peer == who.peer_id
    return replace(MEMBERS, members=(*MEMBERS.members[:4], asleep)), who


def test_a_suspended_voter_returns_on_its_word_for_this_suspension_only() -> None:
    members, who = suspended()

    def returns(keys: KeyPair, number: int, now: Members = members) -> str | None:
        rejoin = sign(keys, CHAIN, Rejoin(number))
        return operation_fault(Return(rejoin), now, GENESIS, CHAIN, 70)

    assert returns(who, 40) is None and returns(who, 70) is None
    assert returns(who, 39) == "return from another suspension"
    assert returns(who, 71) == "return from another suspension"
    assert returns(KEYS[1], 50) == "return of nobody who is suspended"
    assert returns(STRANGER, 50) == "return of nobody who is suspended"
    good = sign(who, CHAIN, Rejoin(50))
    for wrong in (replace(good, signature=bytes(64)), sign(who, bytes(32), Rejoin(50)),
                  sign(who, CHAIN, Leave(50))):  # fmt: skip
        fault = operation_fault(Return(wrong), members, GENESIS, CHAIN, 70)
        assert fault == "not a genuine rejoin"
    back = following(members, away(70, members=members, operations=(Return(good),)))
    voter = back.get(who.peer_id)
    assert voter and (voter.role, voter.idle_rounds, voter.suspended_from) == (VOTER, 0, 0)
    assert (voter.joined, voter.reputation) == (1, 400)
    assert returns(who, 50, back) == "return of nobody who is suspended"


def test_a_suspension_does_not_serve_a_quarantine() -> None:
    members, who = suspended(reputation=150, quarantined_until=44)
    back = Return(sign(who, CHAIN, Rejoin(50)))
    voter = following(members, away(70, members=members, operations=(back,))).get(who.peer_id)
    assert voter and voter.quarantined_until == 71 + QUARANTINE_ROUNDS


def test_the_suspended_may_leave_and_may_be_evicted() -> None:
    members, who = suspended()
    leave = Departure(sign(who, CHAIN, Leave(30)))
    assert operation_fault(leave, members, GENESIS, CHAIN, 70) is None
    liar = eviction(who)
    assert operation_fault(liar, members, GENESIS, CHAIN, 70) is None
    gone = following(members, away(70, members=members, operations=(liar,)))
    assert gone.get(who.peer_id) is None and gone.banned == (who.peer_id,)


def test_no_header_suspends_lets_go_or_evicts_the_last_voter() -> None:
    limits = Limits(idle_rounds_max=1)
    idle = following(MEMBERS, away(1, *KEYS), limits)  # no valid header has no attester
    assert idle.voters == MEMBERS.voters
    leaves = tuple(Departure(sign(keys, CHAIN, Leave(1))) for keys in KEYS)
    together = partial(
        operations_fault, members=MEMBERS, genesis=GENESIS, chain_id=CHAIN, round_number=1
    )
    assert together(leaves[:4]) is None
    assert together(leaves) == "nobody would be left to vote"
    assert together((*leaves[:4], eviction(KEYS[4]))) == "nobody would be left to vote"
    by_subject = sorted((*leaves, admission()), key=subject_of)
    assert together(tuple(by_subject)) is None  # the newcomer votes on
    as_guest = sorted((*leaves, admission(role=GUEST)), key=subject_of)
    assert together(tuple(as_guest)) == "nobody would be left to vote"
    # The leaver attested, the one that stays was idle: it stays all the same.
    two = replace(MEMBERS, members=MEMBERS.members[:2])
    gone = Departure(sign(KEYS[0], CHAIN, Leave(1)))
    left = following(two, away(1, KEYS[1], members=two, operations=(gone,)), limits)
    assert left.voters == (KEYS[1].peer_id,)


def test_who_left_lately_is_remembered_convicted_and_kept_from_old_requests() -> None:
    who = KEYS[1]
    leave = Departure(sign(who, CHAIN, Leave(3)))
    members = following(MEMBERS, header(5, operations=(leave,)))
    assert members.departed == (Departed(who.peer_id, 5),)
    assert members.is_accountable(who.peer_id) and not members.is_accountable(STRANGER.peer_id)
    old, new = admission(5, who), admission(6, who, vouching=(2,))
    assert operation_fault(admission(5, who, vouching=(2,)), members, GENESIS, CHAIN, 6) == (
        "a request to join from before its sender left"
    )
    assert old.join.statement != new.join.statement
    assert operation_fault(new, members, GENESIS, CHAIN, 6) is None
    again = following(members, away(6, members=members, operations=(new,)))
    assert again.departed == () and who.peer_id in again.voters
    liar = eviction(who)
    assert operation_fault(liar, members, GENESIS, CHAIN, 6) is None
    banned = following(members, away(6, members=members, operations=(liar,)))
    assert banned.banned == (who.peer_id,) and banned.departed == ()
    for number in range(6, 5 + EPOCH_ROUNDS):
        assert members.departed, number
        members = following(members, away(number, members=members))
    assert members.departed == ()  # and requests from before it left are too old by now
    stale = operation_fault(admission(5, who, vouching=(2,)), members, GENESIS, CHAIN, 105)
    assert stale == "request to join is too old"


def test_what_is_remembered_has_a_limit() -> None:
    strangers = tuple(sorted(bytes((i % 256, i // 256)) * 16 for i in range(MEMBERS_MAX)))
    full = replace(MEMBERS, departed=tuple(Departed(peer, 1) for peer in strangers))
    leave = Departure(sign(KEYS[1], CHAIN, Leave(1)))
    assert operations_fault((leave,), full, GENESIS, CHAIN, 2) is not None
    assert operations_fault((leave,), MEMBERS, GENESIS, CHAIN, 2) is None
    gone = (Departed(STRANGER.peer_id, 1),)
    for banned, allowed in ((MEMBERS_MAX - 6, True), (MEMBERS_MAX - 5, False)):
        crowd = replace(MEMBERS, banned=strangers[:banned], departed=gone)
        assert (
            operations_fault((eviction(STRANGER),), crowd, GENESIS, CHAIN, 2) is None
        ) == allowed
        assert operations_fault((eviction(KEYS[1]),), crowd, GENESIS, CHAIN, 2) is None


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
    }  # fmt: skip
    for name, value in changes.items():
        changed = replace(first, **{name: value})  # type: ignore[arg-type]
        hashes.add(replace(MEMBERS, members=(changed, *MEMBERS.members[1:])).hash)
    assert len(hashes) == 3 + len(changes)
    assert all(a != b for a, b in combinations(hashes, 2))
