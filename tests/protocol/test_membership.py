"""Members follow from headers: quorums, bitmaps, standing, admissions, departures, evictions."""

from dataclasses import replace
from itertools import combinations

from hypothesis import given, settings
from hypothesis import strategies as st

from peerformer.protocol.genesis import ADMISSION_CLOSED, ADMISSION_OPEN, Founder, Genesis, Limits
from peerformer.protocol.identity import KeyPair
from peerformer.protocol.membership import (
    ACCEPTED_GAIN,
    EPOCH_ROUNDS,
    GUEST,
    HARM_LOSS,
    QUARANTINE_ROUNDS,
    REPUTATION_AFTER_QUARANTINE,
    REPUTATION_START,
    SILENCE_LOSS,
    VOTER,
    Member,
    Members,
    bits_of,
    founders,
    join_hash,
    next_members,
    operation_fault,
    peers_of,
    quorum,
    tolerated_faults,
)
from peerformer.protocol.messages import (
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
    Voucher,
    sign,
)
from peerformer.protocol.refusals import HARMFUL

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


def fault(operation: object, number: int = 1, genesis: Genesis = GENESIS) -> str | None:
    return operation_fault(operation, MEMBERS, genesis, CHAIN, number)  # type: ignore[arg-type]


def admission(
    number: int = 1, who: KeyPair = STRANGER, vouching: int = 1, role: int = VOTER
) -> Admission:
    join = sign(who, CHAIN, Join(number, b"\x07" * 32, role))
    vouchers = tuple(sign(KEYS[i], CHAIN, Voucher(join_hash(join))) for i in range(vouching))
    return Admission(join, vouchers)


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
    after = next_members(MEMBERS, header(1, operations=(operation,)))
    member = after.get(STRANGER.peer_id)
    assert member == Member(STRANGER.peer_id, VOTER, b"\x07" * 32, 2, REPUTATION_START, 0, 0)
    assert MEMBERS.get(STRANGER.peer_id) is None
    assert [m.peer for m in after.members] == sorted(m.peer for m in after.members)


def test_a_guest_is_a_member_without_a_vote_whom_a_newer_request_promotes() -> None:
    as_guest = admission(role=GUEST)
    assert fault(as_guest) is None
    members = next_members(MEMBERS, header(1, operations=(as_guest,)))
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
    members = next_members(members, header(4, operations=(promotion,)))
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
    assert fault(admission(vouching=2), genesis=strict) is None
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
    after = next_members(MEMBERS, header(3, operations=(Departure(leave),)))
    assert after.get(KEYS[1].peer_id) is None and after.banned == ()


def test_evidence_evicts_bans_and_keeps_out() -> None:
    culprit = KEYS[3]
    one, two = (sign(culprit, CHAIN, Prepare(1, 0, bytes((i,)) * 32)) for i in (1, 2))
    eviction = Eviction(Evidence(one, two))
    assert fault(eviction) is None
    assert fault(Eviction(Evidence(one, one))) is not None
    after = next_members(MEMBERS, header(1, operations=(eviction,)))
    assert after.get(culprit.peer_id) is None and after.banned == (culprit.peer_id,)
    again = admission(number=2, who=culprit)
    assert operation_fault(again, after, GENESIS, CHAIN, 2) == "already a member, or banned"


def test_a_signed_statement_that_does_not_decode_convicts_and_moves_nobody() -> None:
    broken = Envelope(KEYS[1].peer_id, 3, b"short", bytes(64))
    assert fault(Eviction(Evidence(broken, broken))) == "evidence convicts no member"


def test_reputation_follows_acceptance_harm_and_silence() -> None:
    good, bad, mute = (keys.peer_id for keys in KEYS[1:4])
    after = next_members(
        MEMBERS,
        header(contributions=(Accepted(good, NO_HASH, 1),), refused=(Refused(bad, HARMFUL),)),
    )
    changes = [
        member.reputation - REPUTATION_START
        for peer in (good, bad, mute)
        if (member := after.get(peer))
    ]
    assert changes == [ACCEPTED_GAIN, -HARM_LOSS, -SILENCE_LOSS]
    null = next_members(MEMBERS, header())
    assert all(member.reputation == REPUTATION_START for member in null.members)


def test_repeated_harm_leads_to_quarantine_which_ends() -> None:
    harmful, members, number = KEYS[2].peer_id, MEMBERS, 1
    while not (member := members.get(harmful)) or not member.quarantined_until:
        members = next_members(members, header(number, refused=(Refused(harmful, HARMFUL),)))
        number += 1
        assert number < 9
    assert member.quarantined_until == number + QUARANTINE_ROUNDS
    others = tuple(Accepted(keys.peer_id, NO_HASH, 1) for keys in (KEYS[0], KEYS[1]))
    for _ in range(QUARANTINE_ROUNDS):
        assert members.get(harmful).quarantined_until > number  # type: ignore[union-attr]
        members = next_members(members, header(number, contributions=others))
        number += 1
    free = members.get(harmful)
    assert free and free.quarantined_until == 0
    assert free.reputation == REPUTATION_AFTER_QUARANTINE
    assert harmful in members.voters  # it never lost its vote


def test_the_builder_alone_moves_on_in_its_hash_chain_and_absence_is_counted() -> None:
    absent = KEYS[4].peer_id
    attesters = bits_of(MEMBERS.voters, set(MEMBERS.voters) - {absent})
    after = next_members(MEMBERS, header(reveal=b"\x09" * 32, attesters=attesters))
    assert [m.peer for m in after.members if m.chain_anchor == b"\x09" * 32] == [KEYS[0].peer_id]
    assert [m.peer for m in after.members if m.idle_rounds == 1] == [absent]


def test_any_change_of_standing_changes_the_members_hash() -> None:
    hashes = {MEMBERS.hash, replace(MEMBERS, banned=(bytes(32),)).hash}
    first = MEMBERS.members[0]
    changes = {
        "role": GUEST, "chain_anchor": b"\1" * 32, "joined": 2, "reputation": 1,
        "quarantined_until": 3, "idle_rounds": 4,
    }  # fmt: skip
    for name, value in changes.items():
        changed = replace(first, **{name: value})  # type: ignore[arg-type]
        hashes.add(replace(MEMBERS, members=(changed, *MEMBERS.members[1:])).hash)
    assert len(hashes) == 2 + len(changes)
    assert all(a != b for a, b in combinations(hashes, 2))
