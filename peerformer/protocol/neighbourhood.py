"""Greeting, peer exchange, and whom to dial: the parts of discovery that talk."""

from peerformer import events
from peerformer.protocol.chain import Chain
from peerformer.protocol.discovery import EXCHANGE_SECONDS, RECORD_LIFETIME_SECONDS, AddressBook
from peerformer.protocol.effects import Dial
from peerformer.protocol.identity import hash_of, name_of
from peerformer.protocol.membership import Members
from peerformer.protocol.messages import (
    ADDRESSES_MAX,
    PROTOCOL_VERSION,
    RECORDS_MAX,
    AskPeers,
    Certified,
    Envelope,
    Hello,
    PeerRecord,
    Peers,
    sign,
)
from peerformer.protocol.outbox import Outbox

STRANGERS_DIALLED_MAX = 8  # known peers that are no members, dialled by whoever is no member either


class Neighbourhood:
    """Who is connected, who has greeted, and where the others are."""

    def __init__(
        self, chain: Chain, outbox: Outbox, seed: bytes, addresses: tuple[str, ...]
    ) -> None:
        """Know nobody yet."""
        self.chain, self.outbox = chain, outbox
        self.addresses = addresses
        self.book = AddressBook(outbox.keys.peer_id, chain.chain_id, hash_of("secret", seed))
        self.greeted: set[bytes] = set()  # said hello, with this chain
        self._record: Envelope | None = None
        self._exchange_at = 0.0

    def my_record(self, now: float) -> Envelope | None:
        """Return my signed record, made anew when half its time is over."""
        if not self.addresses:
            return None
        statement = self._record.statement if self._record else None
        half = RECORD_LIFETIME_SECONDS / 2
        if not isinstance(statement, PeerRecord) or statement.expires < now + half:
            texts = tuple(address.encode() for address in self.addresses[:ADDRESSES_MAX])
            record = PeerRecord(texts, int(now * 1_000), int(now + RECORD_LIFETIME_SECONDS))
            self._record = sign(self.outbox.keys, self.chain.chain_id, record)
        return self._record

    def set_addresses(self, addresses: tuple[str, ...]) -> None:
        """Note where I am reached from now on."""
        self.addresses, self._record = addresses, None

    def on_connected(self, peer: bytes, now: float) -> None:
        """Greet."""
        self.outbox.connected.add(peer)
        self.book.dialled(peer, now, reached=True)
        self._greet(peer, now)

    def _greet(self, peer: bytes, now: float) -> None:
        record = self.my_record(now)
        hello = Hello(PROTOCOL_VERSION, self.chain.chain_id, self.chain.tip, record)
        self.outbox.send(peer, hello)

    def on_disconnected(self, peer: bytes) -> None:
        """Note that a peer is gone."""
        self.outbox.connected.discard(peer)
        if peer in self.greeted:
            self.greeted.discard(peer)
            self.outbox.report(events.PeerDisconnected(peer=peer.hex(), name=name_of(peer)))

    def on_hello(self, peer: bytes, hello: Hello, now: float) -> bool:
        """Take a greeting in; False if this peer is not of my swarm and was sent away."""
        if hello.version != PROTOCOL_VERSION:
            self.outbox.disconnect(
                peer, f"it speaks protocol {hello.version}, I speak {PROTOCOL_VERSION}"
            )
            return False
        if hello.chain_id != self.chain.chain_id:
            self.outbox.disconnect(peer, "it belongs to another swarm")
            return False
        if peer in self.chain.members.banned:
            self.outbox.disconnect(peer, "it is banned")
            return False
        if peer not in self.greeted:
            self.greeted.add(peer)
            self.outbox.report(events.PeerConnected(peer=peer.hex(), name=name_of(peer)))
            self.outbox.send(peer, AskPeers(RECORDS_MAX))
        if hello.record is not None and hello.record.sender == peer:
            self.learn(hello.record, peer, now)
        return True

    def learn(self, envelope: Envelope, source: bytes, now: float) -> str | None:
        """Take a record in; returns why not, or None."""
        known = self.chain.members.get(envelope.sender) is not None
        return self.book.learn(envelope, source, now, known=known)

    def answer(self, peer: bytes, now: float) -> None:
        """Send some records, mine among them."""
        mine = self.my_record(now)
        records = self.book.sample(now) + ((mine,) if mine else ())
        self.outbox.send(peer, Peers(records[:RECORDS_MAX]))

    def tick(self, now: float) -> None:
        """Dial whom I miss; greet again who has not answered; now and then ask for peers."""
        for peer in sorted(self.outbox.connected - self.greeted):
            self._greet(peer, now)
        members = {member.peer for member in self.chain.members.members}
        wanted = members
        if self.outbox.keys.peer_id not in members:
            wanted = members | set(sorted(self.book.entries)[:STRANGERS_DIALLED_MAX])
        for entry in self.book.due(wanted - self.outbox.connected, now):
            self.outbox.work(Dial(entry.envelope.sender, entry.addresses))
        if now >= self._exchange_at and self.greeted:
            self._exchange_at = now + EXCHANGE_SECONDS
            self.book.forget_expired(now)
            chosen = sorted(self.greeted)[self.book.draw(len(self.greeted))]
            self.outbox.send(chosen, AskPeers(RECORDS_MAX))

    def on_dialled(self, peer: bytes, *, reached: bool, now: float) -> None:
        """Note how a dial went."""
        self.book.dialled(peer, now, reached=reached)

    def tell_newcomers(self, item: Certified, before: Members) -> None:
        """Send a decided round to those who did not vote on it."""
        voted = set(before.voters)
        self.outbox.broadcast(sorted(self.greeted - voted), item)
