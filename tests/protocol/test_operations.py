"""Joins, leaves, returns and evictions: what may stand in a header, and what it does."""

from dataclasses import replace
from functools import partial

import pytest

from peerformer.protocol.attestations import Attestation, Judgement
from peerformer.protocol.codec import MalformedError
from peerformer.protocol.genesis import ADMISSION_CLOSED, Genesis, Limits
from peerformer.protocol.identity import KeyPair
from peerformer.protocol.membership import (
    EPOCH_ROUNDS,
    GUEST,
    REPUTATION_START,
    VOTER,
    Departed,
    Member,
    Members,
    subject_of,
)
from peerformer.protocol.messages import (
    MEMBERS_MAX,
    VOUCHERS_MAX,
    Admission,
    Contradiction,
    Departure,
    Envelope,
    Eviction,
    FalseHolding,
    Leave,
    Rejoin,
    Return,
    Voucher,
    sign,
)
from peerformer.protocol.operations import join_hash, operation_fault, operations_fault
from tests.protocol.five import (
    CHAIN,
    GENESIS,
    KEYS,
    MEMBERS,
    STRANGER,
    admission,
    away,
    eviction,
    fault,
    following,
    header,
    suspended,
)

WRONG_COUNT = "not the number of vouchers that it takes"


def test_a_stranger_is_admitted_once_vouched_for_and_votes_a_round_later() -> None:
    operation = admission()
    assert fault(operation) is None
    after = following(MEMBERS, header(1, operations=(operation,)))
    member = after.get(STRANGER.peer_id)
    vouched_by = (KEYS[0].peer_id,)
    assert member == Member(
        STRANGER.peer_id, VOTER, b"\x07" * 32, 2, REPUTATION_START, 0, 0, vouched_by=vouched_by
    )
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
    assert later(replace(admission(3), vouchers=())) == WRONG_COUNT
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
    assert fault(good, genesis=strict) == WRONG_COUNT
    assert fault(admission(vouching=(0, 1)), genesis=strict) is None
    assert fault(replace(good, vouchers=())) == WRONG_COUNT
    assert fault(admission(vouching=(0, 1))) == WRONG_COUNT  # no more than it takes: each is bound
    for vouching in ((1, 0), (0, 0)):
        assert fault(admission(vouching=vouching), genesis=strict) == WRONG_COUNT
    assert fault(replace(good, vouchers=good.vouchers * 2)) == WRONG_COUNT
    for voucher in (outsider, other, elsewhere, good.join):
        assert fault(replace(good, vouchers=(voucher,))) == "a voucher that is not one"
    assert fault(replace(good, join=forged)) == "not a genuine request to join"
    assert fault(admission(role=GUEST + 1)) == "a role that nobody joins in"
    assert fault(admission(who=KEYS[1])) == "already a member, or banned"
    assert fault(admission(number=2)) == "request to join is too old"
    assert fault(good, number=EPOCH_ROUNDS) is None
    assert fault(good, number=EPOCH_ROUNDS + 1) == "request to join is too old"


def test_a_genesis_whose_limits_no_admission_could_meet_founds_nothing() -> None:
    for vouchers, good in ((0, False), (1, True), (VOUCHERS_MAX, True), (VOUCHERS_MAX + 1, False)):
        made = replace(GENESIS, limits=replace(GENESIS.limits, vouchers=vouchers)).to_bytes()
        if good:
            assert Genesis.from_bytes(made).limits.vouchers == vouchers
        else:
            with pytest.raises(MalformedError):
                Genesis.from_bytes(made)


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
    assert fault(Eviction(Contradiction(one, one))) is not None
    after = following(MEMBERS, header(1, operations=(liar,)))
    assert after.get(culprit.peer_id) is None and after.banned == (culprit.peer_id,)
    again = admission(number=2, who=culprit)
    assert operation_fault(again, after, GENESIS, CHAIN, 2) == "already a member, or banned"


def test_a_signed_statement_that_does_not_decode_convicts_and_moves_nobody() -> None:
    broken = Envelope(KEYS[1].peer_id, 3, b"short", bytes(64))
    assert fault(Eviction(Contradiction(broken, broken))) == "evidence convicts no member"


def test_a_false_holding_evicts_while_its_contribution_is_served() -> None:
    def found(size: int = 40, number: int = 5, now: int = 5) -> str | None:
        judgement = Judgement(KEYS[1].peer_id, bytes(32), size, True, None)
        attestation = sign(KEYS[3], CHAIN, Attestation(number, (judgement,)))
        evidence = FalseHolding(attestation, KEYS[1].peer_id, bytes(32), size)
        return operation_fault(Eviction(evidence), MEMBERS, GENESIS, CHAIN, now)

    assert found() is None and found(now=12) is None
    assert found(now=13) and found(number=6)  # older than eight rounds, or yet to come
    assert found(size=GENESIS.blob_size_max) is None
    assert found(size=0) and found(size=GENESIS.blob_size_max + 1)


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
        more = operations_fault((eviction(STRANGER),), crowd, GENESIS, CHAIN, 2)
        assert (more is None) == allowed
        assert operations_fault((eviction(KEYS[1]),), crowd, GENESIS, CHAIN, 2) is None


def test_whoever_vouches_for_the_vote_of_a_guest_answers_for_it() -> None:
    as_guest = admission(vouching=(1,), role=GUEST)
    members = following(MEMBERS, header(1, operations=(as_guest,)))
    promotion = admission(3, vouching=(4,))
    members = following(members, away(3, members=members, operations=(promotion,)))
    assert members.vouchers_of(STRANGER.peer_id) == (KEYS[4].peer_id,)
