"""Greeting, peer exchange, and whom to dial: the parts of discovery that talk.

Members are always dialled. Beyond them a peer keeps a few connections of its own choice, no two in
one address group, and more while it hears less than a quorum of voters: a quorum cannot be forged,
so whoever hears one is not cut off, whoever else surrounds it.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from peerformer import __version__, events
from peerformer.protocol.addresses import group_of
from peerformer.protocol.anchors import Keeper
from peerformer.protocol.chain import Chain
from peerformer.protocol.committee import fingers
from peerformer.protocol.discovery import (
    MEMBER,
    RECORD_LIFETIME_SECONDS,
    AddressBook,
    secret_of,
)
from peerformer.protocol.effects import Dial
from peerformer.protocol.identity import name_of
from peerformer.protocol.membership import Members, quorum
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
from peerformer.protocol.newcomer_packets import BANNED, OTHER_SWARM, OTHER_VERSION, Farewell
from peerformer.protocol.outbox import Outbox

EXCHANGE_SECONDS = 30.0
SAVE_SECONDS = 10.0  # what is lost of the book at a crash
STRANGERS_MAX = 2  # connections of my choice with peers that are no members
STRANGERS_LOST_MAX = 8  # those while I hear no quorum

EXTRA_REASON = "it was only asked whether it is still there"


@dataclass(frozen=True, slots=True)
class Link:
    """One connection: with which address, who began it, and since when."""

    address: str
    outbound: bool
    since: float


def farewell(reason: int) -> Farewell:
    """Return what a peer is told that is sent away."""
    return Farewell(PROTOCOL_VERSION, __version__.encode(), reason)


class Neighbourhood:
    """Who is connected, who has greeted, and where the others are."""

    chain: Chain
    outbox: Outbox
    addresses: tuple[str, ...]
    book: AddressBook
    keeper: Keeper
    links: dict[bytes, Link]
    greeted: set[bytes]  # said hello, with this chain
    _noted: Members | None
    _record: Envelope | None
    _exchange_at: float
    _save_at: float

    def __init__(
        self, chain: Chain, outbox: Outbox, seed: bytes, addresses: tuple[str, ...]
    ) -> None:
        """Know nobody yet."""
        self.chain, self.outbox = chain, outbox
        self.addresses = addresses
        self.book = AddressBook(outbox.keys.peer_id, chain.chain_id, secret_of(seed))
        self.keeper = Keeper()
        self.links = {}
        self.greeted = set()
        self._noted = None
        self._record = None
        self._exchange_at = self._save_at = 0.0

    def restore(self, records: Mapping[str, bytes]) -> None:
        """Take back what the address book persisted before a restart."""
        self._note_members()
        self.keeper.restore(self.book, records)

    def _note_members(self) -> None:
        members = self.chain.members
        if members is not self._noted:
            self._noted = members
            self.book.set_members((member.peer for member in members.members), members.banned)

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

    def say_where(self, now: float, *, dial: bool) -> None:
        """Tell all who are connected where I am reached; `dial` the others at once if asked."""
        if dial:
            self.book.retry(now)
        for peer in sorted(self.outbox.connected):
            self._greet(peer, now)
        if dial:
            self._note_members()
            self._dial(now)

    def on_connected(self, peer: bytes, link: Link, now: float) -> None:
        """Greet."""
        self.outbox.connected.add(peer)
        self.links[peer] = link
        if not link.outbound:
            self.book.came_in(peer, now)
        self._greet(peer, now)

    def _greet(self, peer: bytes, now: float) -> None:
        record = self.my_record(now)
        hello = Hello(PROTOCOL_VERSION, self.chain.chain_id, self.chain.tip, record)
        self.outbox.send(peer, hello)

    def on_disconnected(self, peer: bytes) -> None:
        """Note that a peer is gone."""
        self.outbox.connected.discard(peer)
        self.links.pop(peer, None)
        if peer in self.greeted:
            self.greeted.discard(peer)
            self.outbox.report(events.PeerDisconnected(peer=peer.hex(), name=name_of(peer)))

    def on_hello(self, peer: bytes, hello: Hello, now: float) -> bool:
        """Take a greeting in; False if this peer is not of my swarm and was sent away."""
        if hello.version != PROTOCOL_VERSION:
            reason = f"it speaks protocol {hello.version}, I speak {PROTOCOL_VERSION}"
            self.outbox.disconnect(peer, reason, farewell(OTHER_VERSION))
            return False
        if hello.chain_id != self.chain.chain_id:
            self.outbox.disconnect(peer, "it belongs to another swarm", farewell(OTHER_SWARM))
            return False
        if peer in self.chain.members.banned:
            self.outbox.disconnect(peer, "it is banned", farewell(BANNED))
            return False
        if peer not in self.greeted:
            self.greeted.add(peer)
            self.outbox.report(events.PeerConnected(peer=peer.hex(), name=name_of(peer)))
            self.outbox.send(peer, AskPeers(RECORDS_MAX))
        if hello.record is not None and hello.record.sender == peer:
            self.learn(hello.record, peer, now)
        return True

    def learn(self, envelope: Envelope, told_by: bytes, now: float) -> str | None:
        """Take a record in; returns why not, or None."""
        if envelope.sender in self.chain.members.banned:
            return "of a banned peer"
        self._note_members()
        link, peer = self.links.get(told_by), envelope.sender
        fault = self.book.learn(envelope, link.address if link else "", now)
        own, entry = self.links.get(peer), self.book.entries.get(peer)
        if own and own.outbound and entry and own.address in entry.addresses:
            self.book.reached(peer, now, own.address)  # dialled before its record was known
        return fault

    def answer(self, peer: bytes, now: float) -> None:
        """Send some records, mine among them."""
        mine = self.my_record(now)
        records = self.book.sample(now) + ((mine,) if mine else ())
        self.outbox.send(peer, Peers(records[:RECORDS_MAX]))

    def tick(self, now: float) -> None:
        """Dial whom I miss; greet again who has not answered; now and then ask for peers."""
        for peer in sorted(self.outbox.connected - self.greeted):
            self._greet(peer, now)
        self._note_members()
        self._dial(now)
        if now >= self._save_at:
            self._save_at = now + SAVE_SECONDS
            self._save(now)
        if now >= self._exchange_at and self.greeted:
            self._exchange_at = now + EXCHANGE_SECONDS
            self.book.forget(now)
            chosen = sorted(self.greeted)[self.book.draw(len(self.greeted))]
            self.outbox.send(chosen, AskPeers(RECORDS_MAX))

    # --- whom to dial --------------------------------------------------------------------------

    def _dial(self, now: float) -> None:
        book, connected = self.book, self.outbox.connected
        for peer in sorted(book.tests.keys() & connected):
            book.came_in(peer, now)
            del book.tests[peer]  # it lives: its place stays its own
        anchors = () if self._hears_quorum() else self.keeper.anchors
        barred = connected | set(self.chain.members.banned)
        wanted = (*anchors, *self._needed(), *sorted(book.tests))
        due = book.due((peer for peer in wanted if peer not in barred), now)
        due += book.due(self._strangers(barred, now), now)
        for entry in due:
            self.outbox.work(Dial(entry.envelope.sender, entry.addresses))

    def _needed(self) -> list[bytes]:
        """All members, or in a large swarm my neighbours around its circles."""
        members, me = self.chain.members, self.outbox.keys.peer_id
        if not members.committee:
            return sorted(self.book.members)
        return sorted({*fingers(members.ids, me), *self.outbox.neighbours})

    def _hears_quorum(self) -> bool:
        voters = set(self._needed() if self.chain.members.committee else self.chain.members.voters)
        heard = voters & (self.greeted | {self.outbox.keys.peer_id})
        return len(heard) >= quorum(len(voters))

    def _strangers(self, barred: set[bytes], now: float) -> list[bytes]:
        """Choose whom to dial beyond the members, so that no two are of one address group."""
        if all(entry.table == MEMBER for entry in self.book.entries.values()):
            return []
        held = self._held_strangers()
        used = {group_of(self.links[peer].address) for peer in held}
        for peer, entry in self.book.entries.items():
            if entry.dialling and entry.table != MEMBER:
                held.add(peer)
                used |= entry.groups
        wanted = STRANGERS_MAX if self._hears_quorum() else STRANGERS_LOST_MAX
        return self.book.choose(wanted - len(held), used, barred, now)

    def _held_strangers(self) -> set[bytes]:
        return {p for p, link in self.links.items() if link.outbound and p not in self.book.members}

    def on_dialled(self, dial: Dial, *, reached: bool, now: float) -> None:
        """Note how a dial went."""
        peer, entry = dial.peer, self.book.entries.get(dial.peer)
        if entry is None:
            return
        if entry.addresses != dial.addresses:
            entry.dialling = False  # it moved meanwhile: this says nothing of where it is now
        elif reached:
            tested, link = peer in self.book.tests, self.links.get(peer)
            self.book.reached(peer, now, link.address if link and link.outbound else "")
            held = self._held_strangers()
            if tested and peer in held and len(held) > STRANGERS_MAX and self._hears_quorum():
                self.outbox.disconnect(peer, EXTRA_REASON)
        else:
            online, lost = bool(self.outbox.connected - {peer}), not self._hears_quorum()
            self.book.missed(peer, now, online=online, lost=lost)

    def _save(self, now: float) -> None:
        """Persist what has changed of the book."""
        oldest_first = sorted(self.links, key=lambda peer: (self.links[peer].since, peer))
        for peer in oldest_first:
            entry = self.book.entries.get(peer)
            if entry is not None and entry.reached_at:
                entry.reached_at = now
        self.keeper.choose_anchors(self.book, oldest_first)
        written, deleted = self.keeper.changes(self.book)
        if written or deleted:
            self.outbox.persist(sorted(written.items()), sorted(deleted))

    def tell_newcomers(self, item: Certified, before: Members) -> None:
        """Send a decided round to those who did not vote on it; they tell others in their turn."""
        if before.committee:
            for peer in fingers(before.ids, self.outbox.keys.peer_id):
                self.outbox.send(peer, item)
            return
        voted = set(before.voters)
        self.outbox.broadcast(sorted(self.greeted - voted), item)
