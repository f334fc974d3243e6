"""A disk without room: it is said, nothing that is not durable is voted for, and it goes on."""

import asyncio
import errno
import secrets
import sqlite3
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from peerformer import events
from peerformer.errors import IdentityError, PeerformerError
from peerformer.full_disk import is_full
from peerformer.journal import Journal, read_journal
from peerformer.node.blobs import BlobStore
from peerformer.node.evidence import FILES_KEPT, evidence_file, save_evidence
from peerformer.node.founding import limits_of
from peerformer.node.journal import DurableStore
from peerformer.node.known_round import KnownBench, known_genesis, known_node, meet
from peerformer.node.node import Node
from peerformer.node.room import Room
from peerformer.protocol.effects import Command
from peerformer.protocol.identity import KeyPair
from peerformer.protocol.messages import Contradiction, Prepare, sign
from peerformer.settings import resolve

CONFIG = resolve(size="nano").config
NOON = datetime(2026, 11, 29, 12, tzinfo=UTC)


def fill(store: DurableStore) -> None:
    """Let no page more fit into a store, as on a full disk; SQLite says so itself."""
    connection = store._connection
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count = {pages}")
    while True:
        try:
            with connection:
                connection.execute("INSERT INTO records VALUES (?, ?)", (secrets.token_hex(), b"x"))
        except sqlite3.OperationalError as error:
            assert is_full(error)
            return


def make_room(store: DurableStore) -> None:
    store._connection.execute("PRAGMA max_page_count = 100000")


async def until(nodes: list[Node], condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 40
    while not condition():
        assert time.monotonic() < deadline
        for node in nodes:
            assert not node.stopped.done() or node.stopped.result()
        await asyncio.sleep(0.02)


def test_a_voter_with_a_full_disk_is_silent_and_goes_on_when_there_is_room(tmp_path: Path) -> None:
    async def story() -> None:
        seeds = [secrets.token_bytes(32) for _ in range(4)]
        genesis, first = known_genesis(CONFIG, limits_of(CONFIG), seeds)
        heard: list[tuple[str, bytes]] = []
        nodes = []
        for seed in seeds:
            bench = KnownBench(CONFIG, first)
            listener = (lambda *_: None) if nodes else (lambda *said: heard.append(said))
            nodes.append(await known_node(tmp_path, genesis, seed, bench, listener))
        full, tells = nodes[-1], list[str]()
        me = full.peer.machine.me
        full.room.retry_seconds = 0.05
        full.room.on_full = lambda why: tells.append(f"full: {why}")
        full.room.on_room = lambda _: tells.append("room")
        fill(full.store)
        try:
            others = nodes[:-1]
            await meet(others)
            for node in others:
                address = node.peer.machine.neighbourhood.addresses[0]
                reached = await full.transport.dial(address, expect=node.peer.machine.me)
                full.on_connection(reached)
            for node in nodes:
                node.post(Command("start"))
            await until(nodes, lambda: all(n.peer.machine.chain.tip >= 1 for n in others))
            await until(nodes, lambda: len(tells) == 1)
            assert tells == ["full: database or disk is full"] and full.room.is_full
            assert me not in {sender for _, sender in heard}, "it signed what it could not keep"
            assert full.store.load("slot/") == {}
            make_room(full.store)
            tip = others[0].peer.machine.chain.tip
            await until(nodes, lambda: full.peer.machine.chain.tip >= tip)
            assert tells == ["full: database or disk is full", "room"] and not full.room.is_full
        finally:
            for node in nodes:
                node.stop("over")
                await node.close()

    asyncio.run(story())


def test_a_start_on_a_full_disk_is_not_taken_for_a_damaged_store(tmp_path: Path) -> None:
    peer_id, chain_id = bytes(32), b"\x01" * 32

    def no_room(_: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    store = DurableStore.open(tmp_path, peer_id=peer_id, chain_id=chain_id, fault=no_room)
    with pytest.raises(OSError) as met:
        store.persist([("header/1", b"x")])
    assert is_full(met.value)
    store.close()
    full = sqlite3.OperationalError("database or disk is full")
    full.sqlite_errorcode = sqlite3.SQLITE_FULL
    from peerformer.node.journal import _refused

    refused = _refused(tmp_path, full)
    assert isinstance(refused, PeerformerError) and not isinstance(refused, IdentityError)
    assert "disk is full" in refused.what and refused.hint and "make room" in refused.hint
    damaged = _refused(tmp_path, sqlite3.DatabaseError("file is not a database"))
    assert isinstance(damaged, IdentityError)


def test_records_are_written_and_forgotten_in_one_transaction(tmp_path: Path) -> None:
    points: list[str] = []

    def fault(point: str) -> None:
        points.append(point)
        if len(points) == 5:
            raise OSError(errno.ENOSPC, "No space left on device")

    store = DurableStore.open(tmp_path, peer_id=bytes(32), chain_id=b"\x01" * 32, fault=fault)
    store.persist([("header/1", b"1")])
    assert points == ["before-begin", "before-commit", "after-commit"]
    with pytest.raises(OSError):
        store.persist([("base", b"2")], ["header/1"])  # cut short before its commit
    assert store.load() == {"header/1": b"1"}
    store.persist([("base", b"2")], ["header/1"])
    assert store.load() == {"base": b"2"}
    store.close()


def test_a_blob_waits_for_room_and_says_so_once(tmp_path: Path) -> None:
    told: list[str] = []
    room = Room(lambda why: told.append(why), lambda _: told.append("room"), retry_seconds=0.01)
    tries = 0

    def write() -> str:
        nonlocal tries
        tries += 1
        if tries < 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        return "written"

    assert room.write(write) == "written" and tries == 4
    assert len(told) == 2 and "No space left" in told[0] and told[1] == "room"
    with pytest.raises(OSError, match="broken"):
        room.write(lambda: (_ for _ in ()).throw(OSError(errno.EIO, "broken")).__next__())
    room.stop()
    store = BlobStore(tmp_path / "blobs", bytes_max=10, room=room)
    store.put(bytes(32), b"content", durable=True)
    assert store.get(bytes(32)) == b"content"


def test_events_wait_in_memory_for_room_and_no_line_is_torn(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with Journal(path, lambda: NOON) as journal:
        whole = journal._file
        journal.append(events.Slept(seconds=1.0, cause="x"))

        class Full:
            """A file with room for half a line."""

            def write(self, line: bytes) -> int:
                return whole.write(line[: len(line) // 2])

            def truncate(self, size: int) -> int:
                return whole.truncate(size)

            def close(self) -> None:
                whole.close()

        journal._file = Full()  # type: ignore[assignment]
        journal.append(events.Slept(seconds=2.0, cause="x"))
        journal.append(events.Slept(seconds=3.0, cause="x"))
        assert [event.seconds for event in read_journal(path)] == [1.0]
        journal._file = whole
        journal.append(events.Slept(seconds=4.0, cause="x"))
    assert [event.seconds for event in read_journal(path)] == [1.0, 2.0, 3.0, 4.0]


def test_a_journal_is_bounded_and_read_through_from_the_oldest(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with Journal(path, lambda: NOON, bytes_max=1_000) as journal:
        for number in range(200):
            journal.append(events.ClockJumped(seconds=float(number)))
            seen = [event.seconds for event in read_journal(path)]
            assert seen[-1] == number and seen == list(range(int(seen[0]), number + 1))
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) <= 5_000
    assert len(seen) >= 40
    with Journal(path, lambda: NOON, bytes_max=1_000) as journal:
        journal.append(events.ClockJumped(seconds=200.0))
    assert [event.seconds for event in read_journal(path)][-2:] == [199.0, 200.0]


def test_evidence_is_bounded_and_the_newest_is_kept(tmp_path: Path) -> None:
    (tmp_path / "evidence").mkdir()
    keys = KeyPair.from_seed(b"\x05" * 32)
    chain_id = b"\x01" * 32
    votes = [sign(keys, chain_id, Prepare(1, 0, bytes([d]) * 32)) for d in (1, 2)]
    for number in range(FILES_KEPT + 3):
        event = events.PeerEvicted(round=1, peer="aa", name=f"peer-{number}", evidence="twice")
        save_evidence(tmp_path, event, chain_id, Contradiction(*votes), b"blob")
    kept = {path.name for path in (tmp_path / "evidence").iterdir()}
    assert len(kept) == 2 * FILES_KEPT
    assert evidence_file(tmp_path, event).name in kept
