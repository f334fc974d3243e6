"""Peers that lie, for tests and demonstrations: a wrapper around an honest one.

Each attack runs the production peer and changes only what it says or makes, so that it lies at the
right moment with valid signatures. `ATTACKS` names them; `corrupt` injects one.
"""

from collections.abc import Callable
from dataclasses import replace

from peerformer.peer import Peer
from peerformer.protocol.conduct import slot_of
from peerformer.protocol.effects import (
    Check,
    Checked,
    Effect,
    Event,
    Send,
    Trained,
    Work,
    WorkFinished,
)
from peerformer.protocol.identity import blob_hash, hash_of
from peerformer.protocol.messages import Envelope, Prepare, Proposed, Said, sign

ATTACKS = {
    "sign-flip": "sends the opposite of what it trained, at the same norm",
    "garbage": "sends contributions that do not decode, and frames of noise",
    "equivocate": "votes for two headers in one slot",
    "false-ok": "attests that contributions decode which do not",
    "silent": "trains and attests, but never votes or proposes",
}


PRAISE_MICRONATS = 1_000_000


class Liar:
    """A peer that lies in one way; the same interface as `Peer`."""

    def __init__(self, peer: Peer, attack: str, *, from_round: int = 0) -> None:
        """Lie from a round on; before it the peer is honest."""
        assert attack in ATTACKS, attack
        self.peer, self.attack, self.from_round = peer, attack, from_round
        self.machine, self.bench, self.blobs = peer.machine, peer.bench, peer.blobs

    @property
    def lies(self) -> bool:
        """Whether the time to lie has come."""
        return self.machine.collection.number >= self.from_round

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Advance honestly, then twist what is sent."""
        effects = self.peer.handle(event, now)
        if not self.lies or self.attack not in ("equivocate", "silent"):
            return effects
        return [twisted for effect in effects for twisted in self._twist(effect)]

    def _twist(self, effect: Effect) -> list[Effect]:
        if not isinstance(effect, Send) or not isinstance(effect.packet, Said | Proposed):
            return [effect]
        envelope = effect.packet.envelope
        if envelope.sender != self.machine.me:
            return [effect]
        slot = slot_of(envelope.statement)
        if self.attack == "silent" and slot and slot[0] in ("prepare", "commit", "proposal"):
            return []
        if self.attack == "equivocate" and isinstance(envelope.statement, Prepare):
            return [
                effect
                if effect.peer[0] % 2
                else replace(effect, packet=Said(self._other(envelope)))
            ]
        return [effect]

    def _other(self, envelope: Envelope) -> Envelope:
        vote = envelope.statement
        assert isinstance(vote, Prepare)
        other = replace(vote, digest=hash_of("another header", vote.digest))
        return sign(self.machine.keys, self.machine.chain.chain_id, other)

    def perform(self, work: Work, should_stop: Callable[[], bool] = lambda: False) -> WorkFinished:
        """Work honestly, then twist what was made."""
        finished = self.peer.perform(work, should_stop)
        if not self.lies:
            return finished
        if self.attack == "false-ok" and isinstance(finished.result, Checked):
            return replace(finished, result=self._praise(work, finished.result))
        if not isinstance(finished.result, Trained):
            return finished
        blob = self.blobs.get(finished.result.blob_hash)
        if blob is None or self.attack != "garbage":
            return finished
        noise = hash_of("noise", blob) * (len(blob) // 32 + 1)
        return replace(finished, result=self._keep(finished.result, noise[: len(blob)]))

    @staticmethod
    def _praise(work: Work, result: Checked) -> Checked:
        """Say the best of what does not decode."""
        scored = isinstance(work, Check) and work.score_seed is not None
        return Checked(None, PRAISE_MICRONATS if scored else None) if result.malformed else result

    def _keep(self, made: Trained, blob: bytes) -> Trained:
        number = self.machine.collection.number
        key = blob_hash(self.machine.chain.chain_id, number, self.machine.me, [blob])
        self.blobs.put(key, blob, durable=False, hidden=True)
        return replace(made, blob_hash=key, size=len(blob))


def corrupt(peer: Peer, attack: str, *, from_round: int = 0) -> Liar:
    """Return a liar made of a peer. For `sign-flip` the bench itself is told to flip."""
    if attack == "sign-flip":
        flip = getattr(peer.bench, "flip_from", None)
        assert flip is not None, "this bench cannot flip its contribution"
        flip(from_round)
    return Liar(peer, attack, from_round=from_round)
