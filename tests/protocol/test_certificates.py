"""A certificate proves a quorum of this chain's voters, or it proves nothing and says why."""

from dataclasses import replace
from random import Random

import pytest

from peerformer.protocol.certificates import (
    assemble_timeouts,
    certificate_fault,
    certify,
    claim_fault,
    timeout_fault,
    votes_in,
)
from peerformer.protocol.identity import KeyPair
from peerformer.protocol.membership import bits_of, quorum
from peerformer.protocol.messages import (
    NO_HASH,
    Commit,
    Prepare,
    QuorumCertificate,
    Timeout,
    TimeoutCertificate,
    is_genuine,
    sign,
)

CHAIN = b"\x07" * 32
DIGEST, OTHER = b"\x0a" * 32, b"\x0b" * 32
SWARM = sorted((KeyPair.from_seed(bytes((i,)) * 32) for i in range(7)), key=lambda k: k.peer_id)
VOTERS = tuple(keys.peer_id for keys in SWARM)
QUORUM = quorum(len(VOTERS))


def signatures(vote: Prepare | Commit | Timeout, keys: list[KeyPair]) -> dict[bytes, bytes]:
    return {k.peer_id: sign(k, CHAIN, vote).signature for k in keys}


def prepares(view: int = 2, digest: bytes = DIGEST, number: int = 5) -> QuorumCertificate:
    vote = Prepare(number, view, digest)
    return certify(vote, signatures(vote, SWARM), VOTERS)


def seen(
    view: int, highs: list[QuorumCertificate | None], number: int = 5
) -> dict[bytes, tuple[Timeout, bytes, QuorumCertificate | None]]:
    votes = {}
    for keys, high in zip(SWARM, highs, strict=False):
        claim = (high.view, high.digest) if high else (-1, NO_HASH)
        timeout = Timeout(number, view, *claim)
        votes[keys.peer_id] = (timeout, sign(keys, CHAIN, timeout).signature, high)
    return votes


def gave_up(view: int, highs: list[QuorumCertificate | None]) -> TimeoutCertificate:
    return assemble_timeouts(5, view, seen(view, highs), VOTERS)


@pytest.mark.parametrize("kind", [Prepare, Commit])
def test_a_quorum_of_votes_makes_a_certificate_of_exactly_a_quorum(
    kind: type[Prepare] | type[Commit],
) -> None:
    vote = kind(5, 2, DIGEST)
    certificate = certify(vote, signatures(vote, SWARM), VOTERS)
    assert len(certificate.signatures) == QUORUM
    assert certificate_fault(certificate, VOTERS, CHAIN) is None
    for envelope in votes_in(certificate, VOTERS):
        assert envelope.statement == vote and is_genuine(envelope, CHAIN)


def test_signers_may_be_any_quorum_but_no_fewer() -> None:
    vote = Prepare(5, 2, DIGEST)
    for seed in range(10):
        print("seed", seed)
        chosen = Random(seed).sample(SWARM, QUORUM)
        certificate = certify(vote, signatures(vote, chosen), VOTERS)
        assert certificate_fault(certificate, VOTERS, CHAIN) is None
        few = certify(vote, signatures(vote, chosen[1:]), VOTERS)
        assert certificate_fault(few, VOTERS, CHAIN) == "no quorum"


def test_a_certificate_with_anything_changed_is_refused() -> None:
    good = prepares()
    first, second, *rest = good.signatures
    changed = {
        "another phase": replace(good, commits=True),
        "another round": replace(good, round=6),
        "another view": replace(good, view=3),
        "another digest": replace(good, digest=OTHER),
        "unsorted": replace(good, signatures=(second, first, *rest)),
        "one signer twice": replace(good, signatures=(first, first, *rest)),
        "a signature too many": replace(good, signatures=(*good.signatures, first)),
        "a signature too few": replace(good, signatures=good.signatures[1:]),
        "other signers": replace(good, signers=bits_of(VOTERS, set(VOTERS[7 - QUORUM :]))),
        "a bit beyond the voters": replace(good, signers=bytes((good.signers[0] | 0x80,))),
        "a longer bitmap": replace(good, signers=good.signers + b"\0"),
        "no signers": replace(good, signers=b"\0", signatures=()),
        "a forged signature": replace(good, signatures=(bytes(64), second, *rest)),
    }
    for what, certificate in changed.items():
        assert certificate_fault(certificate, VOTERS, CHAIN), what
    assert certificate_fault(good, VOTERS, bytes(32)), "another chain"
    assert certificate_fault(good, VOTERS[1:], CHAIN), "other voters"
    assert certificate_fault(good, (), CHAIN), "no voters"


def test_a_stranger_counts_for_nothing() -> None:
    stranger = KeyPair.from_seed(b"\xfe" * 32)
    vote = Prepare(5, 2, DIGEST)
    signed = signatures(vote, [*SWARM[: QUORUM - 1], stranger])
    assert certificate_fault(certify(vote, signed, VOTERS), VOTERS, CHAIN)


def test_a_quorum_of_timeouts_carries_the_highest_lock() -> None:
    low, high = prepares(1), prepares(3, OTHER)
    certificate = gave_up(4, [None, low, high, None, low, None, None])
    assert certificate.high == high and len(certificate.votes) == QUORUM
    assert timeout_fault(certificate, VOTERS, CHAIN) is None
    assert timeout_fault(gave_up(0, [None] * 7), VOTERS, CHAIN) is None


def test_a_timeout_certificate_with_anything_changed_is_refused() -> None:
    low, high = prepares(1), prepares(3, OTHER)
    good = gave_up(4, [None, low, high, None, low, None, None])
    first, second, *rest = good.votes
    stranger = KeyPair.from_seed(b"\xfe" * 32)
    foreign = replace(first, sender=stranger.peer_id)
    changed = {
        "another round": replace(good, round=6),
        "another view": replace(good, view=5),
        "unsorted": replace(good, votes=(second, first, *rest)),
        "a sender twice": replace(good, votes=(first, first, *rest)),
        "too few": replace(good, votes=good.votes[1:]),
        "none": replace(good, votes=(), high=None),
        "a stranger": replace(
            good, votes=tuple(sorted((foreign, second, *rest), key=lambda v: v.sender))
        ),
        "a forged signature": replace(
            good, votes=(replace(first, signature=bytes(64)), second, *rest)
        ),
        "a claim altered": replace(good, votes=(first, replace(second, high_view=0), *rest)),
        "the highest lock hidden": replace(good, high=None),
        "a lower lock shown": replace(good, high=low),
        "commits as a lock": replace(good, high=replace(high, commits=True)),
        "a lock of another round": replace(good, high=prepares(3, OTHER, number=4)),
        "a lock without a quorum": replace(
            good, high=replace(high, signers=b"\1", signatures=high.signatures[:1])
        ),
    }
    for what, certificate in changed.items():
        assert timeout_fault(certificate, VOTERS, CHAIN), what
    assert timeout_fault(good, VOTERS, bytes(32)), "another chain"
    assert timeout_fault(good, VOTERS[2:], CHAIN), "other voters"


def test_differing_or_later_highest_claims_are_refused() -> None:
    one, two, later = prepares(3, DIGEST), prepares(3, OTHER), prepares(9)
    differing = gave_up(4, [one, two, None, None, None, None, None])
    assert timeout_fault(differing, VOTERS, CHAIN) == "the highest claims differ"
    ahead = gave_up(4, [later, None, None, None, None, None, None])
    assert timeout_fault(ahead, VOTERS, CHAIN) == "a claim from a later view"


def test_a_claim_of_a_lock_counts_only_with_its_proof() -> None:
    lock = prepares(3)

    def fault(timeout: Timeout, high: QuorumCertificate | None) -> str | None:
        return claim_fault(timeout, high, VOTERS, CHAIN)

    assert fault(Timeout(5, 4, -1, NO_HASH), None) is None
    assert fault(Timeout(5, 4, 3, DIGEST), lock) is None
    assert fault(Timeout(5, 3, 3, DIGEST), lock) is None
    refused = (
        (Timeout(5, 4, -1, DIGEST), None),
        (Timeout(5, 4, -1, NO_HASH), lock),
        (Timeout(5, 4, -2, NO_HASH), None),
        (Timeout(5, 4, 3, DIGEST), None),
        (Timeout(5, 4, 2, DIGEST), lock),
        (Timeout(5, 4, 3, OTHER), lock),
        (Timeout(6, 4, 3, DIGEST), lock),
        (Timeout(5, 2, 3, DIGEST), lock),
        (Timeout(5, 4, 3, DIGEST), replace(lock, commits=True)),
        (Timeout(5, 4, 3, DIGEST), replace(lock, signatures=lock.signatures[::-1])),
    )
    for timeout, high in refused:
        assert fault(timeout, high), timeout
