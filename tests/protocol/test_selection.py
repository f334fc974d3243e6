"""G(attestations): f liars decide nothing, and no leader chooses."""

from dataclasses import replace
from itertools import combinations
from random import Random

import pytest

from peerformer.protocol.attestations import Attestation, Judgement
from peerformer.protocol.codec import encode
from peerformer.protocol.genesis import Limits
from peerformer.protocol.membership import (
    GUEST,
    VOTER,
    Member,
    Members,
    quorum,
    tolerated_faults,
)
from peerformer.protocol.messages import (
    STATEMENTS,
    Accepted,
    Contribution,
    Envelope,
    Refused,
)
from peerformer.protocol.refusals import (
    BAD,
    EQUIVOCATED,
    HARMFUL,
    NO_SLOT,
    QUARANTINED,
    UNSUPPORTED,
)
from peerformer.protocol.selection import attestation_fault, contributions_needed, select

LIMITS = Limits()
AUTHOR = bytes((1,)) * 32
BLOB, OTHER_BLOB = b"\x0b" * 32, b"\x0c" * 32


def members_of(count: int, role: int = VOTER) -> Members:
    peers = (bytes((i + 1,)) * 32 for i in range(count))
    return Members(tuple(Member(peer, role, bytes(32), 1, 500, 0, 0) for peer in peers), ())


def said(voter: bytes, *judgements: Judgement, number: int = 1) -> Envelope:
    body = encode(Attestation(number, judgements))
    return Envelope(voter, STATEMENTS.index(Attestation), body, bytes(64))


def holds(score: int | None = 10_000, blob: bytes = BLOB, author: bytes = AUTHOR) -> Judgement:
    return Judgement(author, blob, 40, True, score)


def bad(author: bytes = AUTHOR) -> Judgement:
    return Judgement(author, BLOB, 40, False, None)


def test_f_liars_neither_save_what_nobody_holds_nor_eject_what_the_honest_hold() -> None:
    for n in range(4, 14):
        members, f, q = members_of(n), tolerated_faults(n), quorum(n)
        voters = members.voters
        lies = [said(v, holds()) for v in voters[1 : f + 1]]
        nothing = [said(v) for v in voters[f + 1 : q]]
        assert select([*lies, *nothing], members, LIMITS, 1).accepted == ()
        # The author scores itself not at all, f liars call it harmful, bad, or another blob.
        honest = [said(voters[0], holds(None))] + [said(v, holds()) for v in voters[f + 1 : q]]
        for lie in (
            holds(-1_000_000),
            bad(),
            holds(10_000, OTHER_BLOB),
            holds(-1_000_000, OTHER_BLOB),
        ):
            lies = [said(v, lie) for v in voters[1 : f + 1]]
            chosen = select([*honest, *lies], members, LIMITS, 1)
            assert chosen.accepted == (Accepted(AUTHOR, BLOB, 40),), (n, lie)
            assert chosen.refused == ()


def test_f_liars_do_not_save_what_the_honest_saw_do_harm() -> None:
    for n in range(4, 14):
        members, f, q = members_of(n), tolerated_faults(n), quorum(n)
        voters = members.voters
        lies = [said(v, holds(1_000_000)) for v in voters[:f]]
        honest = [said(v, holds(-10_000)) for v in voters[f:q]]
        chosen = select([*lies, *honest], members, LIMITS, 1)
        assert chosen.accepted == () and chosen.refused == (Refused(AUTHOR, HARMFUL),)


def test_support_by_f_is_too_few_and_by_one_more_enough() -> None:
    for n in range(4, 14):
        members, f = members_of(n), tolerated_faults(n)
        for support in range(f + 3):
            rest = members.voters[support : quorum(n)]
            attestations = [said(v, holds()) for v in members.voters[:support]]
            chosen = select([*attestations, *map(said, rest)], members, LIMITS, 1)
            assert bool(chosen.accepted) == (support >= f + 1)
            if 0 < support <= f:
                assert chosen.refused == (Refused(AUTHOR, UNSUPPORTED),)


def test_half_the_scores_are_not_yet_harm_and_the_threshold_itself_is_none() -> None:
    members = members_of(7)
    scores = {
        (-501, -501, 0, 0): None,
        (-501, -501, -501, 0): HARMFUL,
        (-500, -500, -500, -500): None,
        (-501, None, None, None): HARMFUL,
        (None, None, None, None): None,
    }
    for given, reason in scores.items():
        attestations = [
            said(v, holds(score)) for v, score in zip(members.voters, given, strict=False)
        ]
        chosen = select(attestations, members, LIMITS, 1)
        assert [entry.reason for entry in chosen.refused] == ([] if reason is None else [reason])


def test_two_supported_blobs_of_one_author_are_both_out() -> None:
    members = members_of(7)
    attestations = [said(v, holds()) for v in members.voters[:3]]
    attestations += [said(v, holds(blob=OTHER_BLOB)) for v in members.voters[3:6]]
    chosen = select(attestations, members, LIMITS, 1)
    assert chosen.accepted == () and chosen.refused == (Refused(AUTHOR, EQUIVOCATED),)


def test_a_score_of_another_blob_counts_for_nothing() -> None:
    voters = members_of(4).voters
    lie = said(voters[2], holds(-(10**9), OTHER_BLOB))
    unscored = [said(voter, holds(None)) for voter in voters[:2]]
    chosen = select([*unscored, lie], members_of(4), LIMITS, 1)
    assert chosen.accepted == (Accepted(AUTHOR, BLOB, 40),)


def test_what_more_than_f_could_not_decode_is_bad() -> None:
    members = members_of(4)
    chosen = select([said(v, bad()) for v in members.voters[:2]], members, LIMITS, 1)
    assert chosen.refused == (Refused(AUTHOR, BAD),)


def test_the_quarantined_get_no_slot_until_their_time_is_over() -> None:
    members = members_of(4)
    marked = replace(members.members[0], quarantined_until=9)
    members = replace(members, members=(marked, *members.members[1:]))
    attestations = [said(v, holds()) for v in members.voters[:3]]
    assert select(attestations, members, LIMITS, 8).refused == (Refused(AUTHOR, QUARANTINED),)
    assert select(attestations, members, LIMITS, 9).accepted == (Accepted(AUTHOR, BLOB, 40),)


def test_the_evicted_and_strangers_are_passed_over_in_silence() -> None:
    members = members_of(4)
    stranger = b"\xee" * 32
    attestations = [said(v, holds(), holds(author=stranger)) for v in members.voters]
    chosen = select(attestations, members, LIMITS, 1)
    assert [entry.peer for entry in chosen.accepted] == [AUTHOR]
    assert select(attestations, members, LIMITS, 1, [AUTHOR]) == select([], members, LIMITS, 1)


def test_slots_go_to_voters_before_guests_then_by_reputation_then_by_id() -> None:
    plain = members_of(6)
    reputations = (400, 900, 500, 500, 999, 998)
    roles = (VOTER, VOTER, VOTER, VOTER, GUEST, GUEST)
    members = Members(
        tuple(
            replace(member, reputation=reputation, role=role)
            for member, reputation, role in zip(plain.members, reputations, roles, strict=True)
        ),
        (),
    )
    peers = [member.peer for member in members.members]
    judgements = [holds(author=peer) for peer in peers]
    attestations = [said(v, *judgements) for v in members.voters]
    for slots, expected in (
        (2, [1, 2]),
        (3, [1, 2, 3]),
        (4, [0, 1, 2, 3]),
        (8, [0, 1, 2, 3, 4, 5]),
    ):
        chosen = select(attestations, members, Limits(contributions_max=slots), 1)
        assert [entry.peer for entry in chosen.accepted] == [peers[i] for i in expected], slots
        crowded = {entry.peer for entry in chosen.refused}
        assert all(entry.reason == NO_SLOT for entry in chosen.refused)
        assert crowded == set(peers) - {entry.peer for entry in chosen.accepted}


def test_a_guest_gets_at_most_a_quarter_of_the_slots() -> None:
    voters, guests = members_of(2), members_of(6, GUEST)
    members = Members((*voters.members, *guests.members[2:]), ())
    judgements = [holds(author=member.peer) for member in members.members]
    attestations = [said(v, *judgements) for v in voters.voters]
    chosen = select(attestations, members, Limits(contributions_max=8), 1)
    assert len(chosen.accepted) == 2 + 2 and len(chosen.refused) == 2


def test_the_order_of_attestations_changes_nothing() -> None:
    for seed in range(30):
        print("seed", seed)
        random = Random(seed)
        members = members_of(7)
        attestations = [
            said(
                voter,
                *(
                    random.choice(
                        (holds(author=a), holds(-9_999, author=a), bad(a), holds(0, OTHER_BLOB, a))
                    )
                    for a in members.voters
                    if random.random() < 0.8
                ),
            )
            for voter in members.voters
        ]
        chosen = select(attestations, members, Limits(contributions_max=3), 1)
        random.shuffle(attestations)
        assert select(attestations, members, Limits(contributions_max=3), 1) == chosen


def test_no_leader_drops_what_all_honest_voters_hold_whichever_quorum_it_takes() -> None:
    members = members_of(7)
    liars = members.voters[5:]
    everybody = [said(v, holds(-(10**9)) if v in liars else holds()) for v in members.voters]
    for taken in combinations(everybody, quorum(7)):
        assert select(taken, members, LIMITS, 1).accepted == (Accepted(AUTHOR, BLOB, 40),)


def test_k_min_is_lowered_for_a_swarm_of_one() -> None:
    assert [contributions_needed(n, Limits(contributions_min=2)) for n in (1, 2, 9)] == [1, 2, 2]


@pytest.mark.parametrize(
    "envelope",
    [
        said(AUTHOR, holds(), number=2),
        said(AUTHOR, holds(), holds()),
        said(AUTHOR, holds(author=b"\2" * 32), holds()),
        Envelope(AUTHOR, STATEMENTS.index(Attestation), b"short", bytes(64)),
        Envelope(
            AUTHOR,
            STATEMENTS.index(Contribution),
            encode(Contribution(1, BLOB, 40, BLOB, 1)),
            bytes(64),
        ),
    ],
)
def test_what_is_no_attestation_of_the_round_is_refused_with_a_reason(envelope: Envelope) -> None:
    assert attestation_fault(envelope, 1)
    assert attestation_fault(said(AUTHOR, holds()), 1) is None
