"""Quorum, timeout and commit certificates: built from votes, checked wherever they arrive.

A certificate names its signers by a bitmap over the round's voters, so a signer cannot count twice
and a stranger cannot count at all; every signature is checked against the vote rebuilt from the
fields.
"""

from collections.abc import Mapping

from peerformer.protocol.codec import encode
from peerformer.protocol.identity import verify
from peerformer.protocol.membership import bits_of, peers_of, quorum
from peerformer.protocol.messages import (
    NO_HASH,
    STATEMENTS,
    Certified,
    Commit,
    Envelope,
    Prepare,
    QuorumCertificate,
    Timeout,
    TimeoutCertificate,
    TimeoutVote,
    signed_bytes,
)

Voters = tuple[bytes, ...]


def certify(
    vote: Prepare | Commit, signatures: Mapping[bytes, bytes], voters: Voters
) -> QuorumCertificate:
    """Return the certificate of exactly a quorum of the given votes, the lowest ids first."""
    signers = sorted(signatures)[: quorum(len(voters))]
    return QuorumCertificate(
        isinstance(vote, Commit),
        vote.round,
        vote.view,
        vote.digest,
        bits_of(voters, set(signers)),
        tuple(signatures[signer] for signer in signers),
    )


def vote_of(certificate: QuorumCertificate) -> Prepare | Commit:
    """Return the vote that all signers of the certificate signed."""
    kind = Commit if certificate.commits else Prepare
    return kind(certificate.round, certificate.view, certificate.digest)


def votes_in(certificate: QuorumCertificate, voters: Voters) -> list[Envelope]:
    """Return the certificate's votes as envelopes: they may contradict others."""
    signers = peers_of(voters, certificate.signers) or ()
    vote = vote_of(certificate)
    kind, body = STATEMENTS.index(type(vote)), encode(vote)
    pairs = zip(signers, certificate.signatures, strict=False)
    return [Envelope(signer, kind, body, signature) for signer, signature in pairs]


def certificate_fault(
    certificate: QuorumCertificate, voters: Voters, chain_id: bytes
) -> str | None:
    """Return why a quorum certificate proves nothing, or None if it holds."""
    signers = peers_of(voters, certificate.signers)
    if signers is None or len(signers) != len(certificate.signatures):
        return "signers and signatures do not match"
    if len(signers) < quorum(len(voters)):
        return "no quorum"
    vote = vote_of(certificate)
    message = signed_bytes(chain_id, STATEMENTS.index(type(vote)), encode(vote))
    pairs = zip(signers, certificate.signatures, strict=True)
    if not all(verify(signer, message, signature) for signer, signature in pairs):
        return "a signature is wrong"
    return None


def timeout_fault(certificate: TimeoutCertificate, voters: Voters, chain_id: bytes) -> str | None:
    """Return why a timeout certificate proves nothing, or None if it holds."""
    senders = [vote.sender for vote in certificate.votes]
    if senders != sorted(set(senders)) or not set(senders) <= set(voters):
        return "senders are repeated, unsorted or strangers"
    if len(senders) < quorum(len(voters)):
        return "no quorum"
    fault = _high_fault(certificate, voters, chain_id)
    if fault:
        return fault
    kind = STATEMENTS.index(Timeout)
    for vote in certificate.votes:
        body = encode(
            Timeout(certificate.round, certificate.view, vote.high_view, vote.high_digest)
        )
        if not verify(vote.sender, signed_bytes(chain_id, kind, body), vote.signature):
            return "a signature is wrong"
    return None


def _high_fault(certificate: TimeoutCertificate, voters: Voters, chain_id: bytes) -> str | None:
    highest = max(vote.high_view for vote in certificate.votes)
    high = certificate.high
    if high is None:
        return None if highest == -1 else "the highest claim is not proven"
    if high.commits or high.round != certificate.round or high.view != highest:
        return "the proof is not of the highest claim"
    if high.view > certificate.view:
        return "a claim from a later view"
    claims = {vote.high_digest for vote in certificate.votes if vote.high_view == highest}
    if claims != {high.digest}:
        return "the highest claims differ"
    return certificate_fault(high, voters, chain_id)


def claim_fault(
    timeout: Timeout, high: QuorumCertificate | None, voters: Voters, chain_id: bytes
) -> str | None:
    """Return why one timeout's claim about its lock does not hold, or None if it does."""
    if timeout.high_view == -1:
        return None if high is None and timeout.high_digest == NO_HASH else "a claim without a lock"
    if high is None or high.commits or high.round != timeout.round:
        return "a lock without its proof"
    if (high.view, high.digest) != (timeout.high_view, timeout.high_digest):
        return "the proof is of another lock"
    if high.view > timeout.view:
        return "a lock from a later view"
    return certificate_fault(high, voters, chain_id)


def assemble_timeouts(
    round_number: int,
    view: int,
    votes: Mapping[bytes, tuple[Timeout, bytes, QuorumCertificate | None]],
    voters: Voters,
) -> TimeoutCertificate:
    """Return the certificate of a quorum of timeouts of one view."""
    senders = sorted(votes)[: quorum(len(voters))]
    highs = [high for sender in senders if (high := votes[sender][2]) is not None]
    return TimeoutCertificate(
        round_number,
        view,
        tuple(
            TimeoutVote(sender, timeout.high_view, timeout.high_digest, signature)
            for sender in senders
            for timeout, signature, _ in (votes[sender],)
        ),
        max(highs, key=lambda high: high.view, default=None),
    )


def decided_fault(item: Certified, voters: Voters, chain_id: bytes) -> str | None:
    """Return why a header is not decided by its certificate, or None if it is."""
    certificate = item.certificate
    if not certificate.commits or certificate.round != item.header.round:
        return "not a commit certificate of this round"
    if certificate.digest != item.header.digest:
        return "certificate of another header"
    return certificate_fault(certificate, voters, chain_id)
