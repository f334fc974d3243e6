"""Signatures of mine that I do not remember: what a decided round shows of them.

A peer makes durable what it signs before it sends it, and keeps that until the round is decided. So
a header that shows a statement of mine which my store does not hold was signed elsewhere: by a
second process with a copy of this key, by a thief, or by this very peer before its disk was lost.
Whoever goes on all the same will sign twice for one slot some day, and be evicted for it. The store
itself notices only that it is gone or old; of a key that was carried to an empty disk by hand it
knows nothing, but its first decided round with my name in it tells.
"""

from peerformer import events
from peerformer.protocol.identity import name_of
from peerformer.protocol.membership import peers_of
from peerformer.protocol.messages import Certified, Contribution
from peerformer.protocol.outbox import Outbox


def watch(outbox: Outbox, item: Certified, voters: tuple[bytes, ...]) -> None:
    """Report a decided round that shows a signature of mine which `outbox` does not hold."""
    found = unremembered(outbox, item, voters)
    if found:
        me, number = outbox.keys.peer_id, item.header.round
        outbox.report(
            events.KeyUsedElsewhere(round=number, peer=me.hex(), name=name_of(me), what=found)
        )


def unremembered(outbox: Outbox, item: Certified, voters: tuple[bytes, ...]) -> str | None:
    """Return what this round shows of me that I do not remember to have signed, or None."""
    header, certificate, me = item.header, item.certificate, outbox.keys.peer_id
    number = header.round
    if me in (peers_of(voters, header.attesters) or ()):
        if outbox.has_signed("attestation", number) is None:
            return "an attestation"
    if me in (peers_of(voters, certificate.signers) or ()):
        if outbox.has_signed("commit", number, certificate.view) is None:
            return "a vote"
    for accepted in header.contributions:
        if accepted.peer == me:
            mine = outbox.has_signed("contribution", number)
            statement = mine.statement if mine is not None else None
            if not isinstance(statement, Contribution):
                return "a contribution"
            if statement.blob_hash != accepted.blob_hash:
                return "another contribution"
    return None
