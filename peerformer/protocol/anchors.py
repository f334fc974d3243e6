"""What of the address book survives a restart: peers that I reached, members, and anchors.

Whoever restarts among attackers must find an honest peer again. So the tried entries and those of
members are kept as records, at most one for each place in those two tables; what a stranger merely
told is not. Anchors are the few peers whose connections have held longest: they are dialled first
(Heilman et al., USENIX Security 2015, countermeasure 5). A record that cannot be read is left
out: an address is a hint, and the dial proves who is there.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated

from peerformer.protocol.codec import U32, AtMost, MalformedError, Many, PeerId, decode, encode
from peerformer.protocol.discovery import NEW, AddressBook, Entry
from peerformer.protocol.effects import Persist
from peerformer.protocol.messages import Envelope, PeerRecord, is_genuine

BOOK_PREFIX = "book/"
ANCHORS_KEY, PEER_PREFIX = f"{BOOK_PREFIX}anchors", f"{BOOK_PREFIX}peer/"
ANCHORS_MAX = 4  # one honest one suffices, and four connections cost nothing
DAY_SECONDS = 24 * 3_600
TEXT_SIZE_MAX = 256

Text = Annotated[bytes, AtMost(TEXT_SIZE_MAX)]


@dataclass(frozen=True, slots=True)
class KeptEntry:
    """One entry of the book as a record. Days are enough: a record must not change every minute."""

    envelope: Envelope
    source: Text
    near: bool
    answered: Text
    reached_day: U32


@dataclass(frozen=True, slots=True)
class KeptAnchors:
    """The anchors, the oldest connection first."""

    peers: Annotated[tuple[PeerId, ...], Many(ANCHORS_MAX)]


@dataclass(slots=True)
class Keeper:
    """Knows what was persisted, so that only what changed is written again."""

    anchors: tuple[bytes, ...] = ()
    _kept: dict[str, bytes] = field(default_factory=dict)

    def restore(self, book: AddressBook, records: Mapping[str, bytes]) -> None:
        """Put back what was persisted before a restart."""
        self._kept = {key: data for key, data in records.items() if key.startswith(BOOK_PREFIX)}
        for key, data in sorted(self._kept.items()):
            try:
                if key == ANCHORS_KEY:
                    self.anchors = decode(KeptAnchors, data).peers
                    continue
                kept = decode(KeptEntry, data)
                readable = isinstance(kept.envelope.statement, PeerRecord)
            except MalformedError:
                continue
            if readable and is_genuine(kept.envelope, book.chain_id):
                book.put_back(kept.envelope.sender, _entry_of(kept))

    def choose_anchors(self, book: AddressBook, oldest_first: Iterable[bytes]) -> None:
        """Take the oldest connections with peers that I reached, each of another address group.

        With none at all those of before remain: a start without a network must not cost them.
        """
        chosen: dict[str, bytes] = {}
        for peer in oldest_first:
            entry = book.entries.get(peer)
            if entry is not None and entry.table != NEW and len(chosen) < ANCHORS_MAX:
                chosen.setdefault(entry.group, peer)
        self.anchors = tuple(chosen.values()) or self.anchors

    def changes(self, book: AddressBook) -> tuple[dict[str, bytes], set[str]]:
        """Return the records to write and the keys to delete, and note them as done."""
        wanted = {
            f"{PEER_PREFIX}{peer.hex()}": encode(_kept_of(entry))
            for peer, entry in book.entries.items()
            if entry.table != NEW
        }
        wanted[ANCHORS_KEY] = encode(KeptAnchors(self.anchors))
        written = {key: data for key, data in wanted.items() if self._kept.get(key) != data}
        deleted = self._kept.keys() - wanted.keys()
        self._kept = wanted
        return written, deleted


def is_of_book(effect: Persist) -> bool:
    """Whether an effect persists addresses only: that is no progress of a round."""
    keys = (*(key for key, _ in effect.records), *effect.deleted)
    return all(key.startswith(BOOK_PREFIX) for key in keys)


def _kept_of(entry: Entry) -> KeptEntry:
    return KeptEntry(
        entry.envelope,
        entry.source.encode()[:TEXT_SIZE_MAX],
        entry.near,
        entry.answered.encode()[:TEXT_SIZE_MAX],
        int(entry.reached_at // DAY_SECONDS),
    )


def _entry_of(kept: KeptEntry) -> Entry:
    return Entry(
        kept.envelope,
        kept.source.decode(errors="replace"),
        kept.near,
        learned_at=0.0,
        answered=kept.answered.decode(errors="replace"),
        reached_at=float(kept.reached_day * DAY_SECONDS),
    )
