"""A peer's own hand: it signs at most one statement a slot, and persists before it sends.

Effects gather in `effects` in the order in which they must be carried out. A statement once signed
for a slot is the only one this object will ever give out for it, across restarts too: the slots are
restored from what was persisted.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from peerformer import events
from peerformer.protocol.codec import MalformedError, decode, encode
from peerformer.protocol.conduct import slot_of
from peerformer.protocol.effects import (
    Disconnect,
    Effect,
    Persist,
    Report,
    Send,
    SetTimer,
    StartWork,
    Work,
)
from peerformer.protocol.identity import KeyPair
from peerformer.protocol.messages import (
    Envelope,
    Evidence,
    Packet,
    Statement,
    sign,
)
from peerformer.protocol.newcomer_packets import Farewell

SLOT_PREFIX = "slot/"


def slot_key(kind: str, round_number: int, view: int) -> str:
    """Return the record key of one signed slot; it sorts by round."""
    return f"{SLOT_PREFIX}{round_number:012d}/{kind}/{view}"


@dataclass(slots=True)
class Outbox:
    """The effects of the event being handled, and the statements signed so far."""

    keys: KeyPair
    chain_id: bytes
    connected: set[bytes] = field(default_factory=set)
    effects: list[Effect] = field(default_factory=list)
    signed: dict[str, Envelope] = field(default_factory=dict)
    gossips: bool = False  # what is for many goes around a circle of peers
    neighbours: tuple[bytes, ...] = ()  # mine, around the circle of the round at hand

    def restore(self, records: Mapping[str, bytes]) -> None:
        """Take back the statements signed before a restart; raises MalformedError."""
        for key, data in records.items():
            if key.startswith(SLOT_PREFIX):
                envelope = decode(Envelope, data)
                if envelope.sender != self.keys.peer_id:
                    raise MalformedError("a statement of another key among mine")
                self.signed[key] = envelope

    def sign_once(
        self, statement: Statement, records: Iterable[tuple[str, bytes]] = ()
    ) -> Envelope:
        """Sign a statement for its slot and persist it with `records`, before anything is sent.

        If the slot holds a statement already, that one is returned and nothing is signed.
        """
        slot = slot_of(statement)
        assert slot is not None
        key = slot_key(*slot)
        if key in self.signed:
            return self.signed[key]
        envelope = sign(self.keys, self.chain_id, statement)
        self.signed[key] = envelope
        self.effects.append(Persist(((key, encode(envelope)), *records)))
        return envelope

    def has_signed(self, kind: str, round_number: int, view: int = 0) -> Envelope | None:
        """Return what was signed for a slot, if anything was."""
        return self.signed.get(slot_key(kind, round_number, view))

    def signed_views(self, kind: str, round_number: int) -> list[int]:
        """Return the views of a round for which a statement of this kind was signed."""
        prefix = f"{SLOT_PREFIX}{round_number:012d}/{kind}/"
        return [int(key[len(prefix) :]) for key in self.signed if key.startswith(prefix)]

    def forget_rounds_before(self, round_number: int) -> tuple[str, ...]:
        """Drop the slots of decided rounds; returns their keys for deletion."""
        bound = f"{SLOT_PREFIX}{round_number:012d}/"
        old = tuple(key for key in self.signed if key < bound)
        for key in old:
            del self.signed[key]
        return old

    def persist(self, records: Iterable[tuple[str, bytes]], deleted: Iterable[str] = ()) -> None:
        """Make records durable."""
        self.effects.append(Persist(tuple(records), tuple(deleted)))

    def send(self, peer: bytes, packet: Packet) -> None:
        """Send to one peer, if it is connected."""
        if peer in self.connected:
            self.effects.append(Send(peer, packet))

    def broadcast(self, peers: Iterable[bytes], packet: Packet) -> None:
        """Send to all these peers but me; in a large swarm, to those who pass it on."""
        for peer in self.neighbours if self.gossips else peers:
            if peer != self.keys.peer_id:
                self.send(peer, packet)

    def timer(self, name: str, seconds: float) -> None:
        """Set a timer."""
        self.effects.append(SetTimer(name, seconds))

    def work(self, work: Work) -> None:
        """Order a work."""
        self.effects.append(StartWork(work))

    def disconnect(self, peer: bytes, reason: str, farewell: Farewell | None = None) -> None:
        """Close a connection."""
        self.effects.append(Disconnect(peer, reason, farewell))

    def report(self, event: events.Event, evidence: Evidence | None = None) -> None:
        """Tell the operator and the journal."""
        self.effects.append(Report(event, evidence))

    def take(self) -> list[Effect]:
        """Return the effects gathered, and start anew."""
        effects, self.effects = self.effects, []
        return effects
