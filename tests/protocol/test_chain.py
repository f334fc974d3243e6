"""Nothing enters the chain but a header that follows from its parents, certified by its voters."""

from dataclasses import replace

import pytest

from peerformer.protocol.certificates import certify
from peerformer.protocol.chain import MEMBERS_KEPT, Chain, leader_of
from peerformer.protocol.genesis import ADMISSION_OPEN, Founder, Genesis, Limits
from peerformer.protocol.identity import HashChain, KeyPair
from peerformer.protocol.membership import VOTER, Members, bits_of, next_members, quorum
from peerformer.protocol.messages import (
    NO_HASH,
    PROTOCOL_VERSION,
    Accepted,
    Admission,
    Certified,
    Commit,
    Contradiction,
    Departure,
    Eviction,
    Header,
    Join,
    Leave,
    Operation,
    Prepare,
    Voucher,
    sign,
)
from peerformer.protocol.operations import join_hash

SEEDS = [bytes((i,)) * 32 for i in range(1, 8)]
KEYS = {(keys := KeyPair.from_seed(seed)).peer_id: keys for seed in SEEDS}
LINKS = {KeyPair.from_seed(s).peer_id: HashChain.from_seed(s, length=99) for s in SEEDS}
PEERS = sorted(list(KEYS)[:4])
NEWCOMER, SECOND, THIRD = list(KEYS)[4:]
GENESIS = Genesis(
    1, b"test", b"{}", NO_HASH, 0, NO_HASH, 0, b"\5" * 32, 32, 64,
    Limits(admission=ADMISSION_OPEN, joins_per_epoch=2),
    tuple(Founder(peer, LINKS[peer].links[0]) for peer in PEERS),
)  # fmt: skip


def following(chain: Chain, header: Header) -> Members:
    return next_members(chain.members, header, GENESIS.limits)


def draft(chain: Chain, builder: bytes = PEERS[0], **changes: object) -> Header:
    """Return the header that follows the tip; changes are made before what depends on them."""
    member = chain.members.get(builder)
    reveal = LINKS[builder].next_after(member.chain_anchor) if member else None
    voters = chain.members.voters
    header = Header(
        version=PROTOCOL_VERSION,
        round=chain.tip + 1,
        parent=chain.head,
        members_hash=chain.members.hash,
        next_members_hash=NO_HASH,
        parameters_hash=chain.genesis.parameters_hash,
        builder=builder,
        attesters=bits_of(voters, set(voters)),
        attestations_hash=NO_HASH,
        contributions=(),
        refused=(),
        operations=(),
        reveal=reveal or NO_HASH,
        beacon=chain.next_beacon(reveal or NO_HASH),
        state_root=chain.state_root,
    )
    header = replace(header, **changes)  # type: ignore[arg-type]
    if "next_members_hash" in changes:
        return header
    return replace(header, next_members_hash=following(chain, header).hash)


def certified(chain: Chain, header: Header, signers: int | None = None) -> Certified:
    voters = chain.members.voters
    vote = Commit(header.round, 0, header.digest)
    count = quorum(len(voters)) if signers is None else signers
    signed = {p: sign(KEYS[p], chain.chain_id, vote).signature for p in voters[:count]}
    return Certified(header, certify(vote, signed, voters))


def grown(rounds: int) -> Chain:
    chain = Chain(GENESIS)
    for number in range(rounds):
        assert chain.append(certified(chain, draft(chain, PEERS[number % 4]))) is None
    return chain


def admission(chain: Chain, who: bytes = NEWCOMER, by: bytes = PEERS[0]) -> Admission:
    join = sign(KEYS[who], chain.chain_id, Join(chain.tip + 1, LINKS[who].links[0], VOTER))
    voucher = sign(KEYS[by], chain.chain_id, Voucher(join_hash(join)))
    return Admission(join, (voucher,))


def eviction(chain: Chain, who: bytes) -> Eviction:
    one, two = (sign(KEYS[who], chain.chain_id, Prepare(1, 0, bytes((i,)) * 32)) for i in (1, 2))
    return Eviction(Contradiction(one, two))


def append_with(chain: Chain, *operations: Operation) -> str | None:
    return chain.append(certified(chain, draft(chain, operations=operations)))


def test_headers_that_follow_enter_one_after_the_other() -> None:
    chain = grown(5)
    assert chain.tip == 5
    assert [item.header.round for item in chain.items] == [1, 2, 3, 4, 5]
    assert chain.head == chain.items[-1].header.digest
    assert chain.item(0) is None and chain.item(6) is None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"version": 2}, "wrong version"),
        ({"round": 4}, "wrong round"),
        ({"round": 2}, "wrong round"),
        ({"parent": b"\1" * 32}, "wrong parent"),
        ({"members_hash": b"\1" * 32}, "wrong members"),
        ({"next_members_hash": b"\1" * 32}, "wrong next members"),
        ({"parameters_hash": b"\1" * 32}, "wrong parameters"),
        ({"builder": NEWCOMER}, "built by no voter"),
        ({"builder": PEERS[1]}, "wrong reveal"),
        ({"reveal": b"\1" * 32}, "wrong beacon"),
        ({"beacon": b"\1" * 32}, "wrong beacon"),
        ({"state_root": b"\1" * 32}, "a null round that changes the state"),
    ],
)
def test_a_header_with_one_field_wrong_is_refused_with_its_reason(
    changes: dict[str, object], reason: str
) -> None:
    chain = grown(2)
    good = draft(chain)
    assert chain.header_fault(good) is None
    header = replace(good, **changes)  # type: ignore[arg-type]
    assert chain.header_fault(header) == reason
    assert chain.append(certified(chain, header)) is not None
    assert chain.tip == 2 and chain.append(certified(chain, good)) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"attesters": b"\x00"},
        {"contributions": (Accepted(PEERS[0], NO_HASH, 1),)},
        {"refused": ()},
        {"attestations_hash": b"\1" * 32},
    ],
)
def test_what_moves_the_members_is_bound_by_the_hash_of_the_next_ones(
    changes: dict[str, object],
) -> None:
    chain = grown(1)
    header = replace(draft(chain), **changes)  # type: ignore[arg-type]
    moved = next_members(chain.members, header, GENESIS.limits) != next_members(
        chain.members, draft(chain), GENESIS.limits
    )
    assert (chain.header_fault(header) == "wrong next members") == moved


def test_a_reveal_that_is_no_preimage_is_refused_even_with_its_beacon() -> None:
    chain = grown(1)
    reveal = b"\1" * 32
    header = draft(chain, reveal=reveal, beacon=chain.next_beacon(reveal))
    assert chain.header_fault(header) == "wrong reveal"


def test_a_header_enters_with_a_quorum_of_commits_for_itself_only() -> None:
    chain = grown(1)
    good = certified(chain, draft(chain))
    other = certified(chain, draft(chain, PEERS[1]))
    wrong = {
        "no quorum": certified(chain, draft(chain), signers=2),
        "certificate of another header": Certified(good.header, other.certificate),
        "not a commit certificate of this round": Certified(
            good.header, replace(good.certificate, commits=False)
        ),
        "a signature is wrong": Certified(good.header, replace(good.certificate, view=1)),
    }
    for reason, item in wrong.items():
        assert chain.append(item) == reason
    assert chain.append(good) is None and chain.append(good) is not None


def test_a_joiner_votes_one_round_later_and_not_before() -> None:
    chain = grown(1)
    assert append_with(chain, admission(chain)) is None
    assert NEWCOMER not in chain.past_members[2].voters and NEWCOMER in chain.members.voters
    assert quorum(len(chain.members.voters)) == 4
    few = certified(chain, draft(chain), signers=3)
    assert chain.append(few) == "no quorum"
    assert chain.append(certified(chain, draft(chain, NEWCOMER))) is None
    member = chain.members.get(NEWCOMER)
    assert member and member.chain_anchor == LINKS[NEWCOMER].links[1]


def test_the_leaver_and_the_evicted_still_vote_in_the_round_that_lets_them_go() -> None:
    chain = grown(1)
    gone, liar = PEERS[1], PEERS[2]
    leave = Departure(sign(KEYS[gone], chain.chain_id, Leave(2)))
    operations = sorted((leave, eviction(chain, liar)), key=lambda o: PEERS.index(
        o.leave.sender if isinstance(o, Departure) else o.evidence.first.sender))  # fmt: skip
    assert append_with(chain, *operations) is None
    assert chain.members.voters == (PEERS[0], PEERS[3])
    assert chain.members.banned == (liar,)
    assert set(chain.past_members[2].voters) == set(PEERS)


def test_operations_are_sorted_distinct_and_each_one_valid() -> None:
    chain = grown(1)
    two = sorted((NEWCOMER, SECOND))
    joins = [admission(chain, who) for who in two]
    assert chain.operations_fault(tuple(joins)) is None
    assert chain.operations_fault(tuple(joins[::-1])) == "operations repeated or unsorted"
    assert chain.operations_fault((joins[0], joins[0])) == "operations repeated or unsorted"
    early = Departure(sign(KEYS[PEERS[0]], chain.chain_id, Leave(9)))
    assert chain.operations_fault((early,)) is not None
    assert append_with(chain, early) is not None


def test_admissions_beyond_the_quota_of_an_epoch_are_refused() -> None:
    chain = grown(1)
    three = tuple(admission(chain, who) for who in sorted((NEWCOMER, SECOND, THIRD)))
    assert chain.operations_fault(three) == "too many admissions"
    assert append_with(chain, *three[:2]) is None
    assert chain.joins_left() == 0
    last = next(o for o in three if chain.members.get(o.join.sender) is None)
    assert append_with(chain, last) == "too many admissions"


def test_one_voter_vouches_for_two_admissions_in_100_rounds_unless_the_genesis_lifts_it() -> None:
    lifted = replace(GENESIS, limits=replace(GENESIS.limits, joins_per_voucher=0))
    for genesis in (GENESIS, lifted):
        genesis = replace(genesis, limits=replace(genesis.limits, joins_per_epoch=9))
        chain = Chain(genesis)
        three = [admission(chain, who) for who in sorted((NEWCOMER, SECOND, THIRD))]
        beyond = chain.operations_fault(tuple(three))
        assert append_with(chain, *three[:2]) is None
        again = append_with(chain, three[2])
        if genesis.limits.joins_per_voucher:
            assert beyond == again == "too many admissions on one voter's vouchers"
            assert not chain.may_vouch(PEERS[0]) and chain.may_vouch(PEERS[1])
            assert append_with(chain, admission(chain, three[2].join.sender, PEERS[1])) is None
        else:
            assert beyond is again is None


def test_a_voter_may_vouch_again_after_100_rounds() -> None:
    chain = Chain(replace(GENESIS, limits=replace(GENESIS.limits, idle_rounds_max=0)))
    assert (
        append_with(chain, *(admission(chain, who) for who in sorted((NEWCOMER, SECOND)))) is None
    )
    while chain.tip < 100:
        assert not chain.may_vouch(PEERS[0]), chain.tip
        assert chain.append(certified(chain, draft(chain, PEERS[chain.tip % 4]))) is None
    assert chain.may_vouch(PEERS[0]) and chain.joins_left() == 2


def test_a_second_certificate_for_a_decided_round_is_a_contradiction() -> None:
    chain = grown(1)
    twin = grown(1)
    one, two = certified(chain, draft(chain)), certified(chain, draft(chain, PEERS[1]))
    assert chain.append(one) is None and twin.append(two) is None
    assert chain.contradicts(two) and twin.contradicts(one)
    assert not chain.contradicts(one)
    forged = Certified(two.header, replace(two.certificate, view=5))
    assert not chain.contradicts(forged)


def test_leaders_are_those_that_attested_last_and_take_turns() -> None:
    chain = grown(1)
    assert chain.leaders() == tuple(PEERS)
    attesters = bits_of(chain.members.voters, set(PEERS[1:]))
    assert chain.append(certified(chain, draft(chain, attesters=attesters))) is None
    assert chain.leaders() == tuple(PEERS[1:])
    turns = {leader_of(chain.leaders(), 3, view) for view in range(3)}
    assert turns == set(PEERS[1:])
    assert chain.append(certified(chain, draft(chain, attesters=b"\3"))) is None
    assert chain.leaders() == tuple(PEERS)  # fewer than a quorum: everybody
    assert leader_of((), 3, 0) == NO_HASH


def test_old_member_sets_are_let_go() -> None:
    chain = grown(MEMBERS_KEPT + 3)
    assert len(chain.past_members) == MEMBERS_KEPT
