"""Peer exchange: signed records of where peers are reached, and whom to dial next.

Discovery is a hint, membership is agreed state: a record counts only when its signature is good, it
has not expired and it is newer than the one held; it is believed only after an authenticated dial.
All members are always dialled. Tables are bounded, and a peer that nobody vouches for fills at most
a share of them (eclipse hardening in the large has its own design: Heilman et al., USENIX Security
2015).
"""

from dataclasses import dataclass, field

from peerformer.protocol.codec import MalformedError
from peerformer.protocol.identity import hash_of
from peerformer.protocol.messages import (
    RECORDS_MAX,
    Envelope,
    PeerRecord,
    is_genuine,
)

RECORD_LIFETIME_SECONDS = 24 * 3_600
RECORDS_KEPT_MAX = 1_024
RECORDS_PER_SOURCE_MAX = 128  # one talkative source cannot fill the book
DIAL_DELAY_SECONDS_MIN, DIAL_DELAY_SECONDS_MAX = 1.0, 60.0
EXCHANGE_SECONDS = 30.0


@dataclass(slots=True)
class Entry:
    """One known peer: its signed record, who told us, and how dialling went."""

    envelope: Envelope
    source: bytes
    failures: int = 0
    dial_after: float = 0.0
    dialling: bool = False

    @property
    def record(self) -> PeerRecord:
        """The signed record."""
        statement = self.envelope.statement
        assert isinstance(statement, PeerRecord)
        return statement

    @property
    def addresses(self) -> tuple[str, ...]:
        """The addresses as text; unreadable ones are left out."""
        return tuple(a.decode() for a in self.record.addresses if a.isascii())


@dataclass(slots=True)
class AddressBook:
    """What is known of other peers' whereabouts. `secret` makes our choices unguessable."""

    me: bytes
    chain_id: bytes
    secret: bytes
    entries: dict[bytes, Entry] = field(default_factory=dict)
    _draws: int = 0

    def learn(self, envelope: Envelope, source: bytes, now: float, *, known: bool) -> str | None:
        """Take a record in; return why it was refused, or None.

        `known` says that the sender is a member, whose record always finds room.
        """
        try:
            record = envelope.statement
        except MalformedError as error:
            return str(error)
        if not isinstance(record, PeerRecord):
            return "not a record"
        if envelope.sender == self.me:
            return None
        if not now < record.expires <= now + RECORD_LIFETIME_SECONDS + 3_600:
            return "expired, or valid for too long"
        before = self.entries.get(envelope.sender)
        if before is not None and before.record.sequence >= record.sequence:
            return None
        if before is None and not known:
            told = sum(entry.source == source for entry in self.entries.values())
            if len(self.entries) >= RECORDS_KEPT_MAX or told >= RECORDS_PER_SOURCE_MAX:
                return "no room"
        if not is_genuine(envelope, self.chain_id):
            return "a forged record"
        self.entries[envelope.sender] = Entry(envelope, source)
        return None

    def due(self, wanted: set[bytes], now: float) -> list[Entry]:
        """Return the entries to dial now among the wanted peers, marking them as being dialled."""
        ready = [
            entry
            for peer in sorted(wanted)
            if (entry := self.entries.get(peer)) and not entry.dialling and entry.dial_after <= now
        ]
        for entry in ready:
            entry.dialling = True
        return ready

    def dialled(self, peer: bytes, now: float, *, reached: bool) -> None:
        """Note how a dial went: failures back off up to a minute, with jitter."""
        entry = self.entries.get(peer)
        if entry is None:
            return
        entry.dialling = False
        entry.failures = 0 if reached else entry.failures + 1
        delay = min(DIAL_DELAY_SECONDS_MIN * 1.6**entry.failures, DIAL_DELAY_SECONDS_MAX)
        entry.dial_after = now + delay * (0.75 + 0.5 * self.draw(1_000) / 1_000)

    def sample(self, now: float) -> tuple[Envelope, ...]:
        """Return a random few of the live records for somebody who asked."""
        live = sorted(peer for peer, entry in self.entries.items() if entry.record.expires > now)
        while len(live) > RECORDS_MAX - 1:
            live.pop(self.draw(len(live)))
        return tuple(self.entries[peer].envelope for peer in live)

    def forget_expired(self, now: float) -> None:
        """Drop what has expired."""
        self.entries = {p: entry for p, entry in self.entries.items() if entry.record.expires > now}

    def draw(self, bound: int) -> int:
        """Return a number below `bound` that others cannot foresee."""
        self._draws += 1
        digest = hash_of("draw", self.secret, self._draws.to_bytes(8, "little"))
        return int.from_bytes(digest[:8], "little") % bound
