"""Peers that lie, for tests and demonstrations: a wrapper around an honest one.

Each attack runs the production peer and changes only what it says or makes, so that it lies at the
right moment with valid signatures. `ATTACKS` names those that a running node can tell; `corrupt`
injects one. What breaks the protocol itself is in `byzantine`.
"""

from collections.abc import Callable
from dataclasses import replace
from random import Random

from peerformer import byzantine
from peerformer.byzantine import Byzantine, Plot
from peerformer.malformed import MALFORMED, claimed
from peerformer.peer import Participant, Peer
from peerformer.protocol.effects import Effect, Event, Train, Trained, Work, WorkFinished
from peerformer.protocol.identity import blob_hash

# These need the bench while messages are handled, or the world's own way of serving.
SIMULATED_ONLY = (
    "split",
    "no-reproposal",
    "withhold-blob",
    "withhold-record",
    "half-serve",
    "bad-state",
)
POISONS = {  # attacks on learning; `train.poison` makes them
    "sign-flip": "sends the opposite of what it trained, at the same norm",
    "sign-flip-10": "sends the opposite of what it trained, ten times",
    "gaussian": "sends noise as long as what it trained",
    "gaussian-10": "sends noise ten times as long",
    "ipm-0.1": "sends a tenth of the honest mean, against it",
    "ipm-0.5": "sends half of the honest mean, against it",
    "ipm-1": "sends the opposite of the honest mean",
    "ipm-adaptive": "sends as much against the honest mean as the scorers let pass",
    "alie": "sends what is just inside the spread of the honest, on the wrong side",
    "mimic": "sends what one honest peer sends, always the same one's",
    "zero": "sends nothing, in the form of something",
    "tiny": "sends a thousandth of what it trained",
    "stale-replay": "sends its first update again and again",
    "slow-drift": "adds a little in one direction, always the same",
    "label-flip": "trains towards the opposite end of the vocabulary",
    "other-shard": "trains on other data than was assigned",
    "half-steps": "trains half of the steps",
    "backdoor": "teaches an answer of its own to a rare trigger, and all else honestly",
}
ATTACKS = {
    **POISONS,
    **MALFORMED,
    **{name: what for name, what in byzantine.ATTACKS.items() if name not in SIMULATED_ONLY},
}


class Malformer:
    """A peer whose contributions have no form, or another; the same interface as `Peer`."""

    def __init__(self, peer: Peer, attack: str, from_round: int) -> None:
        """Break the form in this way, from a round on."""
        self.peer, self.attack, self.from_round = peer, attack, from_round
        self.machine, self.bench, self.blobs = peer.machine, peer.bench, peer.blobs

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Advance honestly."""
        return self.peer.handle(event, now)

    def perform(self, work: Work, should_stop: Callable[[], bool] = lambda: False) -> WorkFinished:
        """Work honestly, then put something else in the place of what was trained."""
        finished = self.peer.perform(work, should_stop)
        made = finished.result
        if not isinstance(work, Train) or not isinstance(made, Trained):
            return finished
        if work.round < self.from_round:
            return finished
        blob = self.blobs.get(made.blob_hash)
        assert blob is not None
        told = claimed(self.attack, blob, self.machine.chain.chain_id, work.round)
        key = blob_hash(told.chain_id, told.round, self.machine.me, [told.data])
        self.blobs.put(key, told.data, durable=False, hidden=True)
        return replace(finished, result=replace(made, blob_hash=key, size=told.size))


def corrupt(peer: Peer, attack: str, *, from_round: int = 0) -> Participant:
    """Return a liar made of a peer. For attacks on learning the bench itself is told."""
    assert attack in ATTACKS, attack
    if attack in POISONS:
        poison = getattr(peer.bench, "poison_from", None)
        assert poison is not None, "this bench cannot poison its contribution"
        poison(attack, from_round)
        return peer
    if attack in MALFORMED:
        return Malformer(peer, attack, from_round)
    machine = peer.machine
    plot = Plot(machine.chain.chain_id, {machine.me: machine.keys}, {machine.me})
    return Byzantine(peer, (attack,), Random(machine.me.hex()), plot, from_round)


def honest_part(participant: Participant) -> Peer:
    """Return the production peer inside a liar, or the honest peer itself."""
    if isinstance(participant, Malformer | Byzantine):
        return participant.peer
    assert isinstance(participant, Peer)
    return participant
