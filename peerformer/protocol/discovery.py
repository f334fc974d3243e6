"""The address book: signed records of where peers are reached, in tables no stranger can fill.

Discovery is a hint, membership is agreed state. Members' records always find room. All others wait
in the *new* table until I have reached them myself, over an authenticated connection; only then
they move to the *tried* one. Both are made of buckets, found by a keyed hash of who told me and of
the address group, so that one source or one network reaches a few buckets and crowds out nobody but
itself. A tried peer gives way to another only after it failed to answer (Heilman et al., "Eclipse
attacks on Bitcoin's peer-to-peer network", USENIX Security 2015). Whom to dial, and what to say, is
the neighbourhood's business.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from functools import lru_cache

from peerformer.protocol.addresses import (
    group_of,
    is_local,
    leads_to,
    offered_relay,
    source_group_of,
)
from peerformer.protocol.backoff import FAILURES_MAX, WAIT_SECONDS_MIN, wait_seconds
from peerformer.protocol.codec import MalformedError
from peerformer.protocol.identity import hash_of
from peerformer.protocol.messages import MEMBERS_MAX, RECORDS_MAX, Envelope, PeerRecord, is_genuine

RECORD_LIFETIME_SECONDS = 24 * 3_600
CLOCK_SECONDS = 3_600  # by so much another peer's clock may be ahead

NEW_BUCKETS, NEW_BUCKET_SIZE = 64, 16
NEW_BUCKETS_PER_SOURCE = 4  # the sixteenth part of the table for whoever talks most
NEW_PER_GROUP_MAX = 64  # the same part for one network, however many sources tell of it
TRIED_BUCKETS, TRIED_BUCKET_SIZE = 32, 8
TRIED_BUCKETS_PER_GROUP = 2  # the sixteenth part again, for one network whose peers all answer
BOOK_SIZE_MAX = NEW_BUCKETS * NEW_BUCKET_SIZE + TRIED_BUCKETS * TRIED_BUCKET_SIZE + MEMBERS_MAX

NEW_MISSES_MAX = 4  # dials without an answer before a record that nobody vouches for is dropped
TRIED_MISSES_MAX, TRIED_PATIENCE_SECONDS = 10, 7 * 24 * 3_600  # both: it slept through no weekend
TRIED_KEPT_SECONDS = 30 * 24 * 3_600  # since it was last reached

RECORDS_READ_MAX = 4_096  # whose addresses are remembered as read

MEMBER, NEW, TRIED = "member", "new", "tried"


def secret_of(seed: bytes) -> bytes:
    """Return the secret of the book of whoever holds the key of `seed`."""
    return hash_of("secret", seed)


@dataclass(slots=True)
class Entry:
    """One known peer: its signed record, where it stands in the book, and how dialling went."""

    envelope: Envelope
    source: str  # the group of whoever told me first
    near: bool  # told from my own network: its local addresses mean something here
    learned_at: float
    table: str = NEW
    bucket: int = 0
    group: str = ""  # the address group it is filed under
    answered: str = ""  # the address at which I reached it
    reached_at: float = 0.0  # 0: never
    failures: int = 0  # dials in a row that failed: how long to wait
    misses: int = 0  # those while I was connected with others: what they say of this peer
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
        """Where to dial: without what is unreadable, or local and told from afar by a stranger."""
        return _leading_to(self.envelope.sender, self._told)

    @property
    def relays(self) -> tuple[str, ...]:
        """Where it relays for others."""
        return tuple(offer for offer in map(offered_relay, self._told) if offer is not None)

    @property
    def _told(self) -> tuple[str, ...]:
        return _readable(self.record.addresses, self.near or self.table == MEMBER)

    @property
    def place(self) -> str:
        """Where it was reached, or else where it claims to be reached first."""
        return self.answered or next(iter(self.addresses), "")

    @property
    def groups(self) -> set[str]:
        """All groups that dialling it may lead to."""
        return {group_of(address) for address in (*self.addresses, self.answered) if address}


@lru_cache(maxsize=RECORDS_READ_MAX)
def _readable(addresses: tuple[bytes, ...], trusted: bool) -> tuple[str, ...]:
    texts = (address.decode() for address in addresses if address.isascii())
    return tuple(text for text in texts if trusted or not is_local(text))


@lru_cache(maxsize=RECORDS_READ_MAX)
def _leading_to(peer: bytes, addresses: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(text for text in addresses if leads_to(text, peer))


@dataclass(slots=True)
class AddressBook:
    """What is known of other peers' whereabouts. `secret` makes our choices unguessable."""

    me: bytes
    chain_id: bytes
    secret: bytes
    members: frozenset[bytes] = frozenset()
    entries: dict[bytes, Entry] = field(default_factory=dict)
    tests: dict[bytes, bytes] = field(default_factory=dict)  # tried -> who would take its place
    _draws: int = 0

    # --- taking records in ---------------------------------------------------------------------

    def learn(self, envelope: Envelope, told_from: str, now: float) -> str | None:
        """Take a record in that came from the address `told_from`; returns why not, or None."""
        before = self.entries.get(envelope.sender)
        if before and before.envelope == envelope and before.record.expires > now:
            return None  # told again, as most are
        try:
            record = envelope.statement
        except MalformedError as error:
            return str(error)
        if not isinstance(record, PeerRecord):
            return "not a record"
        peer = envelope.sender
        if peer == self.me:
            return None
        if not now < record.expires <= now + RECORD_LIFETIME_SECONDS + CLOCK_SECONDS:
            return "expired, or valid for too long"
        if before and before.record.expires > now and before.record.sequence >= record.sequence:
            return None
        entry = Entry(envelope, source_group_of(told_from), is_local(told_from), now)
        if peer not in self.members and not entry.addresses:
            return "no address that could be dialled from here"
        if not is_genuine(envelope, self.chain_id):
            return "a forged record"
        if before is None:
            self._file(peer, entry)
        elif before.record.addresses == record.addresses:
            before.envelope, before.learned_at = envelope, now
        else:  # it moved: what I know of it is from the other place
            entry.source, entry.dialling = before.source, before.dialling
            self._file(peer, entry)
        return None

    def set_members(self, members: Iterable[bytes], banned: Collection[bytes]) -> None:
        """Note who the members are now: they leave the tables of strangers, or come back."""
        self.members = frozenset(members)
        for peer, entry in list(self.entries.items()):
            if peer in banned:
                self._drop(peer)
            elif (peer in self.members) != (entry.table == MEMBER):
                self.put_back(peer, entry)

    def put_back(self, peer: bytes, entry: Entry) -> None:
        """File an entry of before a restart, or of a former member, by what is known of it."""
        self._file(peer, entry)
        if entry.reached_at and self.entries.get(peer) is entry and entry.table == NEW:
            self._promote(peer)

    def _file(self, peer: bytes, entry: Entry) -> None:
        """Put an entry among the members or the new; there the worst ones give way."""
        self._drop(peer)
        self.entries[peer] = entry
        entry.table = MEMBER if peer in self.members else NEW
        entry.group = group_of(entry.place)
        if entry.table == MEMBER:
            return
        entry.bucket = self._new_bucket(entry)
        self._make_room(self._bucket(NEW, entry.bucket), NEW_BUCKET_SIZE)
        kin = [p for p, e in self.entries.items() if e.group == entry.group and e.table == NEW]
        self._make_room(kin, NEW_PER_GROUP_MAX)

    def _drop(self, peer: bytes) -> None:
        self.entries.pop(peer, None)
        self.tests.pop(peer, None)

    def _bucket(self, table: str, bucket: int) -> list[bytes]:
        return [p for p, e in self.entries.items() if e.bucket == bucket and e.table == table]

    def _make_room(self, peers: list[bytes], size_max: int) -> None:
        worst_first = sorted(peers, key=self._badness, reverse=True)
        for peer in worst_first[: max(0, len(peers) - size_max)]:
            self._drop(peer)

    def _badness(self, peer: bytes) -> tuple[int, float]:
        """What fails most goes first, then what was told longest ago."""
        entry = self.entries[peer]
        return entry.misses, -max(entry.learned_at, entry.reached_at)

    def _new_bucket(self, entry: Entry) -> int:
        share = self._keyed("new share", entry.source, entry.group) % NEW_BUCKETS_PER_SOURCE
        return self._keyed("new bucket", entry.source, str(share)) % NEW_BUCKETS

    def _tried_bucket(self, entry: Entry) -> int:
        share = self._keyed("tried share", entry.group, entry.place) % TRIED_BUCKETS_PER_GROUP
        return self._keyed("tried bucket", entry.group, str(share)) % TRIED_BUCKETS

    def _keyed(self, tag: str, *parts: str) -> int:
        digest = hash_of(tag, self.secret, *(part.encode() for part in parts))
        return int.from_bytes(digest[:8], "little")

    # --- dialling ------------------------------------------------------------------------------

    def due(self, wanted: Iterable[bytes], now: float) -> list[Entry]:
        """Return the entries to dial now among the wanted peers, marking them as being dialled."""
        ready = []
        for peer in wanted:
            entry = self.entries.get(peer)
            if entry is not None and not entry.dialling and entry.dial_after <= now:
                entry.dialling = True
                ready.append(entry)
        return ready

    def retry(self, now: float) -> None:
        """Let everybody be dialled at once: what failed before failed on another network."""
        for entry in self.entries.values():
            entry.failures, entry.dial_after = 0, now

    def choose(
        self, count: int, used: Collection[str], barred: Collection[bytes], now: float
    ) -> list[bytes]:
        """Choose strangers to dial, no two of one address group and none of the groups in `used`.

        A table is drawn, then a bucket of it, then a peer: whoever fills one bucket to the brim is
        chosen no more often than whoever stands in another alone.
        """
        ready: dict[str, dict[int, list[bytes]]] = {}
        strangers = sorted(p for p, e in self.entries.items() if e.table != MEMBER)
        for peer in strangers if count > 0 else ():
            entry = self.entries[peer]
            free = not entry.dialling and entry.dial_after <= now
            if free and entry.addresses and peer not in barred:
                ready.setdefault(entry.table, {}).setdefault(entry.bucket, []).append(peer)
        taken, chosen = set(used), list[bytes]()
        while ready and len(chosen) < count:
            table = sorted(ready)[self.draw(len(ready))]
            bucket = sorted(ready[table])[self.draw(len(ready[table]))]
            peers = ready[table][bucket]
            peer = peers.pop(self.draw(len(peers)))
            if not peers:
                del ready[table][bucket]
            if not ready[table]:
                del ready[table]
            groups = self.entries[peer].groups
            if taken.isdisjoint(groups):
                taken |= groups
                chosen.append(peer)
        return chosen

    def came_in(self, peer: bytes, now: float) -> None:
        """Note that a peer connected by itself: it lives, but its address may be anything."""
        if entry := self.entries.get(peer):
            entry.failures, entry.dial_after = 0, now + WAIT_SECONDS_MIN

    def reached(self, peer: bytes, now: float, address: str = "") -> None:
        """Note that I reached a peer where its record says, and at `address` if that is known."""
        entry = self.entries.get(peer)
        if entry is None:
            return
        entry.failures, entry.misses, entry.dialling = 0, 0, False
        entry.dial_after = now + WAIT_SECONDS_MIN
        entry.answered, entry.reached_at = address or entry.answered, now
        entry.group = group_of(entry.place)
        self.tests.pop(peer, None)
        if entry.table == NEW:
            self._promote(peer)

    def missed(self, peer: bytes, now: float, *, online: bool, lost: bool = False) -> None:
        """Note a dial that failed: the next waits longer, with jitter; see `wait_seconds`.

        `online` says that I am connected with somebody else. If I am not, the fault may be mine,
        and no record is thrown away for it. `lost`: I hear too few to go on, and hurry.
        """
        entry = self.entries.get(peer)
        if entry is None:
            return
        entry.dialling = False
        entry.failures = min(entry.failures + 1, FAILURES_MAX)
        entry.dial_after = now + wait_seconds(entry.failures, self.draw(1_000) / 1_000, lost=lost)
        waiting = self.tests.pop(peer, None)
        if online:
            entry.misses += 1
            if waiting in self.entries and self.entries[waiting].table == NEW:
                self._promote(waiting)

    def _promote(self, peer: bytes) -> None:
        """Move a peer that I reached to the tried table; if there is no room, test its oldest."""
        entry = self.entries[peer]
        bucket = self._tried_bucket(entry)
        held = self._bucket(TRIED, bucket)
        if len(held) >= TRIED_BUCKET_SIZE:
            oldest = max(held, key=self._badness)
            if not self.entries[oldest].misses:
                self.tests.setdefault(oldest, peer)
                return
            self._file(oldest, self.entries[oldest])
        entry.table, entry.bucket = TRIED, bucket

    # --- telling and forgetting ------------------------------------------------------------------

    def sample(self, now: float) -> tuple[Envelope, ...]:
        """Return a random few of the live records, first of those that I know to be good."""
        live = {p: e for p, e in sorted(self.entries.items()) if e.record.expires > now}
        good = [peer for peer, entry in live.items() if entry.table != NEW]
        told = [peer for peer, entry in live.items() if entry.table == NEW and not entry.misses]
        chosen: list[bytes] = []
        while (pool := good or told) and len(chosen) < RECORDS_MAX - 1:
            chosen.append(pool.pop(self.draw(len(pool))))
        return tuple(live[peer].envelope for peer in chosen)

    def forget(self, now: float) -> None:
        """Drop what is out of date. Where I reached a peer I may look for it even then."""
        for peer, entry in list(self.entries.items()):
            since = now - entry.reached_at
            lost = entry.misses >= TRIED_MISSES_MAX and since > TRIED_PATIENCE_SECONDS
            unknown = entry.record.expires <= now or entry.misses >= NEW_MISSES_MAX
            if (entry.table == NEW and unknown) or (
                entry.table == TRIED and (lost or since > TRIED_KEPT_SECONDS)
            ):
                self._drop(peer)

    def draw(self, bound: int) -> int:
        """Return a number below `bound` that others cannot foresee."""
        self._draws += 1
        return self._keyed("draw", str(self._draws)) % bound
