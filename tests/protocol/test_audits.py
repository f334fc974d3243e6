"""Audits: whom the beacon draws, what most auditors must say, and what it costs."""

from dataclasses import replace
from random import Random

import pytest

from peerformer.events import WorkDoubted
from peerformer.protocol.attestations import Attestation, Finding, Judgement
from peerformer.protocol.auditing import GAINS_NEEDED, Auditing
from peerformer.protocol.audits import (
    AUDIT_ROUNDS,
    Audit,
    draw_audits,
    failed_audits,
    is_picked,
)
from peerformer.protocol.chain import Chain
from peerformer.protocol.codec import MalformedError, encode
from peerformer.protocol.genesis import Founder, Genesis, Limits
from peerformer.protocol.identity import KeyPair, hash_of
from peerformer.protocol.membership import VOTER, Member, Members, next_members
from peerformer.protocol.messages import (
    NO_HASH,
    STATEMENTS,
    Accepted,
    Envelope,
    Header,
    Refused,
)
from peerformer.protocol.outbox import Outbox
from peerformer.protocol.refusals import AUDIT, HARMFUL
from peerformer.protocol.selection import attestation_fault, select

LIMITS = Limits(audit_permille=1_000)
BLOB = b"\x0b" * 32


def peers(count: int) -> tuple[bytes, ...]:
    return tuple(bytes((i + 1,)) * 32 for i in range(count))


def members_of(count: int, audits: tuple[Audit, ...] = ()) -> Members:
    them = tuple(Member(peer, VOTER, bytes(32), 1, 500, 0, 0) for peer in peers(count))
    return Members(them, (), audits=audits)


def said(voter: bytes, *findings: Finding, number: int = 5, of: tuple[bytes, ...] = ()) -> Envelope:
    judgements = tuple(Judgement(peer, BLOB, 40, True, 10_000) for peer in of)
    body = encode(Attestation(number, judgements, findings))
    return Envelope(voter, STATEMENTS.index(Attestation), body, bytes(64))


def header_of(
    members: Members,
    number: int,
    accepted: tuple[bytes, ...] = (),
    refused: tuple[Refused, ...] = (),
) -> Header:
    contributions = tuple(Accepted(peer, BLOB, 40) for peer in accepted)
    everyone = (1 << len(members.voters)) - 1
    attesters = everyone.to_bytes(-(-len(members.voters) // 8), "little")
    return Header(
        1, number, NO_HASH, members.hash, NO_HASH, NO_HASH, members.voters[0], attesters,
        NO_HASH, contributions, refused, (), NO_HASH, hash_of("b", bytes([number])), NO_HASH,
    )  # fmt: skip


def test_the_beacon_picks_about_the_share_that_the_genesis_asks_for() -> None:
    seed = 11
    print("seed", seed)
    random = Random(seed)
    picked = sum(is_picked(random.randbytes(32), random.randbytes(32), 62) for _ in range(4_000))
    assert 180 < picked < 320  # 248 are expected, with a standard deviation of 15
    assert not is_picked(bytes(32), bytes(32), 0) and is_picked(bytes(32), bytes(32), 1_000)


def test_f_and_one_others_repeat_a_training_and_nobody_its_own() -> None:
    for n in range(2, 14):
        everybody = peers(n)
        accepted = tuple(Accepted(peer, BLOB, 40) for peer in everybody)
        drawn = draw_audits(accepted, everybody, hash_of("x", bytes([n])), 3, 1_000)
        assert [audit.peer for audit in drawn] == list(everybody)
        for audit in drawn:
            assert len(audit.auditors) == (n - 1) // 3 + 1
            assert audit.peer not in audit.auditors and set(audit.auditors) < set(everybody)
        if n > 4:
            assert len({audit.auditors for audit in drawn}) > 1  # other ones for each
    assert draw_audits((Accepted(peers(1)[0], BLOB, 40),), peers(1), bytes(32), 3, 1_000) == ()


def test_most_of_those_drawn_must_say_it_and_nobody_else_counts() -> None:
    everybody = peers(7)
    victim, auditors, strangers = everybody[0], everybody[1:4], everybody[4:]
    audit = Audit(5 - AUDIT_ROUNDS, victim, auditors)
    no, yes = Finding(victim, False), Finding(victim, True)
    lies = [said(stranger, no) for stranger in strangers]
    assert failed_audits([said(auditors[0], no), *lies], [audit], 5) == frozenset()
    assert failed_audits([said(a, no) for a in auditors[:2]], [audit], 5) == {victim}
    found = [said(auditors[0], no), said(auditors[1], yes), said(auditors[2], no)]
    assert failed_audits(found, [audit], 5) == {victim}
    # Silence counts as nothing found, and another round is not theirs.
    assert failed_audits([said(auditors[0], no), said(auditors[1])], [audit], 5) == frozenset()
    assert failed_audits([said(a, no) for a in auditors], [audit], 6) == frozenset()
    four = replace(audit, auditors=everybody[1:3])  # of two, both
    assert failed_audits([said(everybody[1], no)], [four], 5) == frozenset()


def test_whose_training_cannot_be_repeated_loses_its_place_and_three_hundred() -> None:
    everybody = peers(7)
    lazy = everybody[2]
    members = members_of(7, (Audit(3, lazy, everybody[4:]),))
    told = [said(v, Finding(lazy, False), of=everybody) for v in everybody[4:]]
    told += [said(v, of=everybody) for v in everybody[:4]]
    selection = select(told, members, LIMITS, 5)
    assert selection.refused == (Refused(lazy, AUDIT),)
    assert [entry.peer for entry in selection.accepted] == [p for p in everybody if p != lazy]
    # Also if it contributes nothing in the round in which it is told.
    absent = [said(v, Finding(lazy, False)) for v in everybody[4:]]
    assert select(absent, members, LIMITS, 5).refused == (Refused(lazy, AUDIT),)

    header = header_of(members, 5, accepted=(everybody[0],), refused=selection.refused)
    after = next_members(members, header, LIMITS)
    standing = {member.peer: member.reputation for member in after.members}
    assert standing[lazy] == 200 and standing[everybody[0]] == 510
    assert after.get(lazy) in after.members and lazy in after.voters  # the vote stays
    harm = header_of(members, 5, refused=(Refused(lazy, HARMFUL),), accepted=(everybody[0],))
    found = next_members(members, harm, LIMITS).get(lazy)
    assert found is not None and found.reputation == 400


def test_who_repeats_a_training_instead_of_its_own_loses_nothing_by_its_silence() -> None:
    everybody = peers(4)
    members = members_of(4, (Audit(3, everybody[0], everybody[1:3]),))
    for number, standing in ((5, [510, 500, 500, 495]), (4, [510, 495, 495, 495])):
        header = header_of(members, number, accepted=everybody[:1])
        after = next_members(members, header, LIMITS)
        assert [member.reputation for member in after.members] == standing


def test_an_audit_is_agreed_state_until_it_is_told_of() -> None:
    everybody = peers(5)
    members = members_of(5)
    after = next_members(members, header_of(members, 3, accepted=everybody[:3]), LIMITS)
    assert {(a.round, a.peer) for a in after.audits} == {(3, peer) for peer in everybody[:3]}
    later = next_members(after, header_of(after, 4, accepted=everybody[3:]), LIMITS)
    assert {a.round for a in later.audits} == {3, 4}  # those of 3 are told of in round 5
    last = next_members(later, header_of(later, 5), LIMITS)
    assert {a.round for a in last.audits} == {4}
    assert len({after.hash, later.hash, replace(after, audits=()).hash}) == 3  # it is bound
    none = next_members(members, header_of(members, 3, accepted=everybody), Limits())
    assert none.audits == ()


def test_findings_repeated_or_unsorted_are_no_attestation() -> None:
    a, b = (Finding(peer, True) for peer in peers(2))
    assert attestation_fault(said(peers(1)[0], a, b), 5) is None
    for findings in ((b, a), (a, a)):
        assert "findings" in str(attestation_fault(said(peers(1)[0], *findings), 5))


@pytest.mark.parametrize(
    "limits", [Limits(audit_permille=1_001), Limits(staleness=1, audit_permille=1)]
)
def test_a_genesis_with_audits_that_nobody_can_do_founds_nothing(limits: Limits) -> None:
    founders = tuple(Founder(peer, bytes(32)) for peer in peers(4))
    genesis = Genesis(1, b"x", b"{}", NO_HASH, 0, NO_HASH, 0, NO_HASH, 1, 1, limits, founders)
    with pytest.raises(MalformedError, match="audits"):
        Genesis.from_bytes(genesis.to_bytes())
    able = replace(genesis, limits=LIMITS)
    assert Genesis.from_bytes(able.to_bytes()) == able
    assert able.record_size_max > 0 and replace(genesis, limits=Limits()).record_size_max == 0


def test_work_that_does_its_own_data_no_more_good_than_other_data_is_doubted_once() -> None:
    genesis = Genesis(
        1, b"x", b"{}", NO_HASH, 0, NO_HASH, 0, NO_HASH, 1, 1, LIMITS,
        tuple(Founder(peer, bytes(32)) for peer in peers(4)),
    )  # fmt: skip
    outbox = Outbox(KeyPair.from_seed(bytes(32)), genesis.chain_id)
    auditing = Auditing(Chain(genesis), outbox)
    honest, lazy = peers(4)[1], peers(4)[2]
    for _ in range(GAINS_NEEDED - 1):
        auditing.on_gain(honest, 9_000)
        auditing.on_gain(lazy, -1_000)
    assert outbox.take() == []  # too few to say anything
    auditing.on_gain(honest, -20_000)  # one bad round among good ones
    auditing.on_gain(lazy, 2_000)
    (told,) = (effect.event for effect in outbox.take())
    assert isinstance(told, WorkDoubted) and told.peer == lazy.hex()
    assert told.gain_micronats == (-1_000 * (GAINS_NEEDED - 1) + 2_000) // GAINS_NEEDED
    auditing.on_gain(lazy, -1_000)
    assert outbox.take() == []  # it is looked at anew
