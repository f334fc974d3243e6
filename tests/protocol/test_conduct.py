"""Two statements convict a liar, and nothing convicts an honest peer."""

from dataclasses import replace
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peerformer.protocol.attestations import Attestation, Judgement
from peerformer.protocol.conduct import (
    SLOTS_PER_PEER_MAX,
    Ledger,
    accused_of,
    contradiction,
    culprit_of,
    describe,
    exhibit_of,
    is_exhibit,
)
from peerformer.protocol.consensus import Consensus, SignCommit, SignPrepare, SignTimeout
from peerformer.protocol.identity import KeyPair, blob_hash
from peerformer.protocol.messages import (
    NO_HASH,
    Commit,
    Contradiction,
    Contribution,
    Envelope,
    Evidence,
    FalseHolding,
    Leave,
    Prepare,
    Proposal,
    QuorumCertificate,
    Statement,
    Timeout,
    sign,
)
from peerformer.protocol.outbox import Outbox

CHAIN = b"\x07" * 32
KEYS, OTHER = KeyPair.from_seed(b"\1" * 32), KeyPair.from_seed(b"\2" * 32)
A, B = b"\x0a" * 32, b"\x0b" * 32

LIES: list[tuple[Statement, Statement]] = [
    (Contribution(3, A, 1, NO_HASH, 1), Contribution(3, B, 1, NO_HASH, 1)),
    (Contribution(3, A, 1, NO_HASH, 1), Contribution(3, A, 2, NO_HASH, 1)),
    (Attestation(3, ()), Attestation(3, (Judgement(A, B, 1, True, None),))),
    (Proposal(3, 1, A), Proposal(3, 1, B)),
    (Prepare(3, 1, A), Prepare(3, 1, B)),
    (Commit(3, 1, A), Commit(3, 1, B)),
    (Commit(3, 1, A), Timeout(3, 1, -1, NO_HASH)),
    (Commit(3, 2, A), Timeout(3, 5, 1, A)),
]
TRUTHS: list[tuple[Statement, Statement]] = [
    (Prepare(3, 1, A), Prepare(3, 1, A)),
    (Prepare(3, 1, A), Prepare(3, 2, B)),
    (Prepare(3, 1, A), Prepare(4, 1, B)),
    (Prepare(3, 1, A), Commit(3, 1, B)),
    (Prepare(3, 1, A), Proposal(3, 1, B)),
    (Contribution(3, A, 1, NO_HASH, 1), Contribution(4, B, 1, NO_HASH, 1)),
    (Commit(3, 2, A), Timeout(3, 5, 2, A)),
    (Commit(3, 2, A), Timeout(3, 5, 4, B)),
    (Commit(3, 2, A), Timeout(3, 1, -1, NO_HASH)),
    (Commit(3, 2, A), Timeout(4, 5, -1, NO_HASH)),
    (Timeout(3, 1, -1, NO_HASH), Timeout(3, 1, 0, A)),
    (Leave(3), Leave(3)),
    (Leave(3), Leave(4)),
]


def evidence_of(one: Statement, two: Statement, keys: KeyPair = KEYS) -> Evidence:
    return Contradiction(sign(keys, CHAIN, one), sign(keys, CHAIN, two))


@pytest.mark.parametrize(("one", "two"), LIES)
def test_every_kind_of_contradiction_convicts_in_either_order(
    one: Statement, two: Statement
) -> None:
    for first, second in ((one, two), (two, one)):
        evidence = evidence_of(first, second)
        assert culprit_of(evidence, CHAIN) == KEYS.peer_id
        assert "round 3" in describe(evidence)
        ledger = Ledger()
        assert ledger.record(evidence.first) is None
        assert ledger.record(evidence.second) == evidence


@pytest.mark.parametrize(("one", "two"), TRUTHS)
def test_what_an_honest_peer_may_sign_convicts_nobody(one: Statement, two: Statement) -> None:
    for first, second in ((one, two), (two, one)):
        assert culprit_of(evidence_of(first, second), CHAIN) is None
        ledger = Ledger()
        assert ledger.record(sign(KEYS, CHAIN, first)) is None
        assert ledger.record(sign(KEYS, CHAIN, second)) is None


@pytest.mark.parametrize(("one", "two"), LIES)
def test_forged_foreign_and_mixed_evidence_convicts_nobody(one: Statement, two: Statement) -> None:
    good = evidence_of(one, two)
    forged = replace(good.second, signature=bytes(64))
    relabelled = replace(good.second, sender=OTHER.peer_id)
    undecodable = replace(good.second, body=good.second.body[:-1])
    for second in (forged, relabelled, undecodable, sign(OTHER, CHAIN, two), good.first):
        assert culprit_of(Contradiction(good.first, second), CHAIN) is None
        assert culprit_of(Contradiction(second, good.first), CHAIN) is None
    assert culprit_of(good, bytes(32)) is None


def test_a_false_holding_is_about_the_very_contribution_that_was_attested() -> None:
    blob, author = b"x" * 40, OTHER.peer_id
    key = blob_hash(CHAIN, 3, author, [blob])
    holds = Judgement(author, key, 40, True, None)
    attestation = sign(KEYS, CHAIN, Attestation(3, (holds,)))
    evidence = FalseHolding(attestation, author, key, 40)
    assert culprit_of(evidence, CHAIN) == accused_of(evidence) == KEYS.peer_id
    assert "does not decode" in describe(evidence) and "round 3" in describe(evidence)
    exhibit = exhibit_of(evidence)
    assert is_exhibit(blob, exhibit, CHAIN)
    for other in (replace(exhibit, round=4), replace(exhibit, author=KEYS.peer_id),
                  replace(exhibit, size=41), replace(exhibit, blob_hash=A)):  # fmt: skip
        assert not is_exhibit(blob, other, CHAIN)
    assert not is_exhibit(blob, exhibit, bytes(32)) and not is_exhibit(blob[1:], exhibit, CHAIN)
    bad = sign(KEYS, CHAIN, Attestation(3, (replace(holds, holds=False),)))
    broken = replace(attestation, body=attestation.body[:-1])
    for wrong in (
        replace(evidence, author=KEYS.peer_id), replace(evidence, blob_hash=A),
        replace(evidence, size=39), replace(evidence, attestation=bad),
        replace(evidence, attestation=replace(attestation, signature=bytes(64))),
        replace(evidence, attestation=replace(attestation, sender=author)),
        replace(evidence, attestation=broken),
    ):  # fmt: skip
        assert culprit_of(wrong, CHAIN) is None
    assert culprit_of(evidence, bytes(32)) is None


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("ptqr"), st.integers(0, 4), st.sampled_from((A, B)))))
def test_a_voter_that_follows_its_consensus_and_outbox_never_incriminates_itself(
    steps: list[tuple[str, int, bytes]],
) -> None:
    voters = tuple(sorted((KEYS.peer_id, OTHER.peer_id, b"\3" * 32, b"\4" * 32)))
    consensus, outbox = Consensus(1, voters), Outbox(KEYS, CHAIN)
    locked = b""
    for kind, view, digest in steps:
        if kind == "p":
            allowed = consensus.may_prepare(consensus.view, digest, None) or consensus.view > 0
            free = max(consensus.prepared, consensus.timed_out) < consensus.view
            actions = consensus.prepare(consensus.view, digest) if allowed and free else []
        elif kind == "q":  # one digest at most is certified in a round: quorums intersect
            locked = locked or digest
            actions = consensus.on_prepared(QuorumCertificate(False, 1, view, locked, b"", ()))
        elif kind == "t":
            actions = consensus.on_timer()
        else:  # a restart
            consensus = Consensus(
                1,
                voters,
                consensus.prepared,
                consensus.committed,
                consensus.timed_out,
                consensus.high,
            )
            actions = []
        for action in actions:
            match action:
                case SignPrepare(number, chosen):
                    outbox.sign_once(Prepare(1, number, chosen))
                case SignCommit(number, chosen, _):
                    outbox.sign_once(Commit(1, number, chosen))
                case SignTimeout(number, high):
                    claim = (high.view, high.digest) if high else (-1, NO_HASH)
                    outbox.sign_once(Timeout(1, number, *claim))
    for one, two in combinations(outbox.signed.values(), 2):
        assert contradiction(one.statement, two.statement) is None, (one.statement, two.statement)


def test_the_outbox_signs_one_statement_a_slot_across_a_restart() -> None:
    outbox = Outbox(KEYS, CHAIN)
    first = outbox.sign_once(Prepare(3, 1, A))
    assert outbox.sign_once(Prepare(3, 1, B)) == first
    (persisted,) = outbox.take()
    again = Outbox(KEYS, CHAIN)
    again.restore(dict(persisted.records))  # type: ignore[union-attr]
    assert again.sign_once(Prepare(3, 1, B)) == first
    assert again.take() == []


def test_the_ledger_is_bounded_and_forgets_old_rounds() -> None:
    ledger = Ledger()
    for view in range(3 * SLOTS_PER_PEER_MAX):
        ledger.record(
            Envelope(KEYS.peer_id, 3, sign(KEYS, CHAIN, Prepare(3, view, A)).body, bytes(64))
        )
    assert sum(map(len, ledger._seen.values())) == SLOTS_PER_PEER_MAX
    assert ledger.find(KEYS.peer_id, "prepare", 3, 0) is not None
    ledger.forget_before(4)
    assert not ledger._seen
