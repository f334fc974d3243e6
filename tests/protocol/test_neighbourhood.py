"""Whom a peer dials, and what it still knows of others after a restart."""

import pytest

from peerformer.protocol.addresses import group_of, relayed_address
from peerformer.protocol.anchors import ANCHORS_KEY, ANCHORS_MAX, BOOK_PREFIX, PEER_PREFIX
from peerformer.protocol.discovery import MEMBER, RECORD_LIFETIME_SECONDS, TRIED
from peerformer.protocol.effects import (
    Command,
    Connected,
    Dial,
    Disconnect,
    Disconnected,
    Effect,
    Persist,
    Received,
    Send,
    StartWork,
    TimerFired,
    WorkFinished,
)
from peerformer.protocol.genesis import Founder, Genesis, Limits
from peerformer.protocol.identity import HashChain, KeyPair
from peerformer.protocol.machine import REPEAT_SECONDS, Machine
from peerformer.protocol.messages import (
    NO_HASH,
    PROTOCOL_VERSION,
    Envelope,
    Hello,
    Packet,
    PeerRecord,
    Peers,
    pack,
    sign,
)
from peerformer.protocol.neighbourhood import (
    SAVE_SECONDS,
    STRANGERS_LOST_MAX,
    STRANGERS_MAX,
)

SEEDS = {(k := KeyPair.from_seed(bytes((i,)) * 32)).peer_id: bytes((i,)) * 32 for i in range(1, 5)}
PEERS = sorted(SEEDS)
KEYS = [KeyPair.from_seed(SEEDS[peer]) for peer in PEERS]
GENESIS = Genesis(
    PROTOCOL_VERSION, b"test", b"{}", NO_HASH, 0, NO_HASH, 0, b"\5" * 32, 32, 64, Limits(),
    tuple(Founder(peer, HashChain.from_seed(SEEDS[peer]).links[0]) for peer in PEERS),
)  # fmt: skip
CHAIN = GENESIS.chain_id
NOW = 1_000_000.0


def stranger(number: int) -> KeyPair:
    return KeyPair.from_seed((1_000 + number).to_bytes(32, "little"))


def public(group: int, host: int = 1) -> str:
    return f"{11 + group // 256}.{group % 256}.{host // 256}.{host % 256}:9"


def record(keys: KeyPair, *addresses: str, now: float = NOW, sequence: int = 1) -> Envelope:
    texts = tuple(address.encode() for address in addresses)
    return sign(keys, CHAIN, PeerRecord(texts, sequence, int(now + RECORD_LIFETIME_SECONDS)))


def started(records: dict[str, bytes] | None = None, now: float = NOW) -> Machine:
    machine = Machine(GENESIS, SEEDS[PEERS[0]], addresses=(public(0),), records=records, now=now)
    machine.handle(Command("start"), now)
    return machine


def hear(machine: Machine, source: KeyPair, packet: Packet, later: float = 0.0) -> list[Effect]:
    return machine.handle(Received(source.peer_id, pack(packet)), machine.now + later)


def greet(machine: Machine, keys: KeyPair, address: str, *, outbound: bool = False) -> None:
    """Connect with a peer that says hello and tells where it is."""
    machine.handle(Connected(keys.peer_id, address, outbound=outbound), machine.now)
    told = record(keys, address, now=machine.now)
    hear(machine, keys, Hello(PROTOCOL_VERSION, CHAIN, 0, told))


def tick(machine: Machine, later: float = 1.0) -> list[Effect]:
    return machine.handle(TimerFired("tick"), machine.now + later)


def dials(effects: list[Effect]) -> list[Dial]:
    works = [effect.work for effect in effects if isinstance(effect, StartWork)]
    return [work for work in works if isinstance(work, Dial)]


def disk_after(disk: dict[str, bytes], effects: list[Effect]) -> dict[str, bytes]:
    for effect in effects:
        if isinstance(effect, Persist):
            disk.update(effect.records)
            for key in effect.deleted:
                disk.pop(key, None)
    return disk


def flooded(machine: Machine, teller: KeyPair, start: int, count: int) -> None:
    """Tell the machine of many strangers through one connection, as fast as it takes them in."""
    told = [record(stranger(n), public(n % 2_000), now=machine.now) for n in range(start, count)]
    for first in range(0, len(told), 32):
        hear(machine, teller, Peers(tuple(told[first : first + 32])), later=15.0)


# --- whom to dial ---------------------------------------------------------------------------------


def test_members_are_dialled_whoever_else_is_known_and_strangers_in_different_networks() -> None:
    machine = started()
    teller = stranger(0)
    greet(machine, teller, public(5_000))
    for index in (1, 2, 3):
        hear(machine, teller, Peers((record(KEYS[index], public(5_001, index)),)))
    flooded(machine, teller, 1, 200)
    asked = dials(tick(machine))
    assert set(PEERS[1:]) <= {dial.peer for dial in asked}  # though all of one network
    others = [dial for dial in asked if dial.peer not in PEERS]
    assert len(others) == STRANGERS_LOST_MAX
    assert len({group_of(dial.addresses[0]) for dial in others}) == STRANGERS_LOST_MAX
    assert not dials(tick(machine, later=0.1))  # all are under way


@pytest.mark.parametrize(("voters", "networks", "met"), [(2, 9, STRANGERS_MAX), (1, 3, 3)])
def test_who_hears_a_quorum_keeps_few_strangers_and_nobody_two_of_one_network(
    voters: int, networks: int, met: int
) -> None:
    machine = started()
    for index in range(1, voters + 1):
        greet(machine, KEYS[index], public(5_000, index))
    for number in range(1, 100):
        told = record(stranger(number), public(number % networks, number), now=machine.now)
        hear(machine, KEYS[1], Peers((told,)), later=15.0)
    reached: dict[bytes, str] = {}
    for _ in range(120):
        for dial in dials(tick(machine)):
            reached[dial.peer] = dial.addresses[0]
            machine.handle(Connected(dial.peer, dial.addresses[0], outbound=True), machine.now)
            machine.handle(WorkFinished(dial, True), machine.now)
    assert len(reached) == len({group_of(address) for address in reached.values()}) == met
    entries = machine.neighbourhood.book.entries
    tried = {entry.envelope.sender for entry in entries.values() if entry.table == TRIED}
    assert tried == reached.keys()  # and nobody that was only told


def test_a_peer_that_is_cut_off_for_an_hour_forgets_nobody_for_it() -> None:
    machine = started()
    greet(machine, KEYS[1], public(1))
    for number in range(20):
        told = record(stranger(number), public(2 + number), now=machine.now)
        hear(machine, KEYS[1], Peers((told,)), later=15.0)
    known = set(machine.neighbourhood.book.entries)
    machine.handle(Disconnected(PEERS[1]), machine.now)
    missed = 0
    for _ in range(3_600):
        for dial in dials(tick(machine)):
            missed += dial.peer not in PEERS
            machine.handle(WorkFinished(dial, False), machine.now)
    greet(machine, KEYS[1], public(1))
    tick(machine)
    assert missed > 200 and set(machine.neighbourhood.book.entries) == known


def test_the_banned_are_neither_dialled_nor_told_of_nor_learned() -> None:
    machine = started()
    greet(machine, KEYS[1], public(5_000))
    bad = stranger(1)
    hear(machine, KEYS[1], Peers((record(bad, public(1)),)))
    assert bad.peer_id in machine.neighbourhood.book.entries
    members = machine.chain.members
    machine.chain.members = type(members)(members.members, (bad.peer_id,))
    assert bad.peer_id not in {dial.peer for dial in dials(tick(machine))}
    hear(machine, KEYS[1], Peers((record(bad, public(2), sequence=2),)))
    assert bad.peer_id not in machine.neighbourhood.book.entries


def test_a_record_forged_in_a_members_name_is_refused_and_counted() -> None:
    machine = started()
    greet(machine, KEYS[1], public(1))
    own = record(KEYS[2], public(2))
    hear(machine, KEYS[1], Peers((own,)))
    lie = record(stranger(1), public(66), sequence=9)
    forged = Envelope(PEERS[2], lie.kind, lie.body, lie.signature)
    hear(machine, KEYS[1], Peers((forged,)))
    assert machine.faults == {PEERS[1]: 1}
    (dial,) = dials(tick(machine))
    assert (dial.peer, dial.addresses) == (PEERS[2], (public(2),))


def test_a_peer_that_moved_while_it_was_dialled_is_not_held_to_be_there() -> None:
    machine, other = started(), stranger(1)
    greet(machine, stranger(0), public(1))
    hear(machine, stranger(0), Peers((record(other, public(2)),)))
    (dial,) = dials(tick(machine))
    hear(machine, stranger(0), Peers((record(other, public(3), sequence=2),)))
    machine.handle(WorkFinished(dial, True), machine.now)
    entry = machine.neighbourhood.book.entries[other.peer_id]
    assert entry.table != TRIED and entry.addresses == (public(3),) and not entry.dialling


def test_a_tried_peer_is_called_to_see_if_it_answers_and_not_kept_on_the_line() -> None:
    machine = started()
    book = machine.neighbourhood.book
    for index in (1, 2):
        greet(machine, KEYS[index], public(5_000, index))
    for number in range(STRANGERS_MAX):
        greet(machine, stranger(number), public(number + 1), outbound=True)
    tried, waiting = stranger(100), stranger(101)
    for keys, group in ((tried, 8), (waiting, 9)):
        hear(machine, KEYS[1], Peers((record(keys, public(group)),)))
    book.reached(tried.peer_id, NOW)
    book.tests[tried.peer_id] = waiting.peer_id
    assert not dials(tick(machine, later=0.5))
    (dial,) = dials(tick(machine))
    assert dial.peer == tried.peer_id
    machine.handle(Connected(dial.peer, dial.addresses[0], outbound=True), machine.now)
    effects = machine.handle(WorkFinished(dial, True), machine.now)
    assert [e.peer for e in effects if isinstance(e, Disconnect)] == [tried.peer_id]
    assert not book.tests and book.entries[tried.peer_id].table == TRIED
    book.tests[stranger(0).peer_id] = waiting.peer_id
    tick(machine)
    assert not book.tests  # that one is connected: no need to ask


# --- what a restart finds -------------------------------------------------------------------------


def test_anchors_survive_a_restart_and_are_dialled_first_however_full_the_book_is() -> None:
    machine, disk = started(), dict[str, bytes]()
    greet(machine, KEYS[1], public(9_000))
    friends = [stranger(number) for number in range(1, 7)]
    for number, keys in enumerate(friends, 1):
        machine.handle(Connected(keys.peer_id, public(number), outbound=True), machine.now + 1)
        told = record(keys, public(number), now=machine.now)
        hear(machine, keys, Hello(PROTOCOL_VERSION, CHAIN, 0, told))
    machine.handle(Disconnected(KEYS[1].peer_id), machine.now)
    flooded(machine, friends[5], 100, 1_500)
    disk = disk_after(disk, tick(machine, later=SAVE_SECONDS))
    again = started(records=disk, now=machine.now + 100)
    oldest = [keys.peer_id for keys in friends[:ANCHORS_MAX]]
    assert list(again.neighbourhood.keeper.anchors) == oldest
    asked = [dial.peer for dial in dials(tick(again))]
    assert asked[:ANCHORS_MAX] == oldest
    assert PEERS[1] in asked  # a member, after them
    tried = [e for e in again.neighbourhood.book.entries.values() if e.table == TRIED]
    assert {entry.envelope.sender for entry in tried} == {keys.peer_id for keys in friends}
    kept = {key for key in disk if key.startswith(PEER_PREFIX)}
    assert len(kept) == len(friends) + 1  # nothing of what was only told


def test_a_swarm_that_was_off_for_a_long_weekend_still_knows_where_its_members_are() -> None:
    machine = started()
    for index in (1, 2, 3):
        greet(machine, KEYS[index], public(index))
    disk = disk_after({}, tick(machine))
    again = started(records=disk, now=NOW + 4 * 24 * 3_600)
    assert {dial.peer: dial.addresses for dial in dials(tick(again))} == {
        PEERS[index]: (public(index),) for index in (1, 2, 3)
    }


def test_a_start_without_a_network_does_not_cost_the_anchors() -> None:
    machine = started()
    friend = stranger(1)
    greet(machine, friend, public(1), outbound=True)
    disk = disk_after({}, tick(machine))
    for _ in range(3):
        again = started(records=disk, now=machine.now + 100)
        for _ in range(60):
            effects = tick(again)
            disk = disk_after(disk, effects)
            for dial in dials(effects):
                again.handle(WorkFinished(dial, False), again.now)
        machine = again
    assert again.neighbourhood.keeper.anchors == (friend.peer_id,)
    assert again.neighbourhood.book.entries[friend.peer_id].table == TRIED


def test_damaged_records_of_the_book_and_foreign_ones_stop_nothing_and_are_cleared_away() -> None:
    machine = started()
    greet(machine, KEYS[1], public(1))
    disk = disk_after({}, tick(machine))
    forged = disk[f"{PEER_PREFIX}{PEERS[1].hex()}"].replace(public(1).encode(), b"11.0.9.9:9")
    disk |= {
        f"{PEER_PREFIX}{PEERS[1].hex()}": forged,
        f"{PEER_PREFIX}zz": b"?",
        ANCHORS_KEY: b"\xff",
        "tomorrow/what": b"is not known today",
    }
    again = started(records=disk)
    assert not again.neighbourhood.book.entries
    greet(again, KEYS[2], public(2))
    disk = disk_after(disk, tick(again))
    assert {key for key in disk if key.startswith(BOOK_PREFIX)} == {
        ANCHORS_KEY,
        f"{PEER_PREFIX}{PEERS[2].hex()}",
    }


def test_the_book_is_persisted_when_it_changes_and_counts_for_no_progress_of_the_round() -> None:
    machine = started()
    greet(machine, KEYS[1], public(1))
    assert any(isinstance(effect, Persist) for effect in tick(machine))
    assert machine.progress_at == NOW
    quiet = [tick(machine) for _ in range(60)]
    assert not [e for effects in quiet for e in effects if isinstance(e, Persist)]
    greet(machine, KEYS[2], public(2))
    assert [e for _ in range(11) for e in tick(machine) if isinstance(e, Persist)]
    assert machine.now - machine.progress_at > REPEAT_SECONDS


def test_a_former_member_is_a_stranger_again_and_a_new_one_is_no_longer() -> None:
    machine = started()
    greet(machine, KEYS[1], public(1), outbound=True)
    greet(machine, stranger(1), public(2), outbound=True)
    entries = machine.neighbourhood.book.entries
    assert (entries[PEERS[1]].table, entries[stranger(1).peer_id].table) == (MEMBER, TRIED)
    members = machine.chain.members
    gone = [m for m in members.members if m.peer != PEERS[1]]
    machine.chain.members = type(members)(tuple(gone), ())
    tick(machine)
    assert entries[PEERS[1]].table == TRIED
    machine.chain.members = members
    tick(machine)
    assert entries[PEERS[1]].table == MEMBER


def test_all_who_are_connected_are_told_when_a_peer_is_reached_elsewhere() -> None:
    machine = started()
    for keys in KEYS[1:]:
        greet(machine, keys, public(5))
    elsewhere = (relayed_address(public(7), machine.me), public(0))
    machine.neighbourhood.set_addresses(elsewhere)
    told = [
        (effect.peer, effect.packet.record.statement.addresses)
        for effect in machine.handle(Command("announce"), machine.now + 1)
        if isinstance(effect, Send) and isinstance(effect.packet, Hello)
    ]
    texts = tuple(address.encode() for address in elsewhere)
    assert told == [(keys.peer_id, texts) for keys in sorted(KEYS[1:], key=lambda k: k.peer_id)]
