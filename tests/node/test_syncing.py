"""A state from many sources at once: proven, resumed after a crash, liars and slow replaced."""

import asyncio
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from peerformer import events
from peerformer.node.room import Room
from peerformer.node.syncing import KeptChunks, StateFetch
from peerformer.protocol.effects import FetchState
from peerformer.protocol.identity import name_of
from peerformer.protocol.merkle import MerkleTree, chunk_key, leaf_count, leaf_span

CHUNKS = 10
PEERS = [bytes([number]) * 32 for number in range(1, 6)]


class State:
    """A state of some chunks, and sources that give it, each in its own way."""

    def __init__(self, seed: int = 7) -> None:
        size = CHUNKS * (1 << 20) - 12_345
        self.data = random.Random(seed).randbytes(size)
        view = memoryview(self.data)
        self.tree = MerkleTree(size, lambda start, end: bytes(view[start:end]))
        self.keys = {chunk_key(self.tree.root, index): index for index in range(CHUNKS)}
        assert leaf_count(size) == CHUNKS
        self.asked: list[tuple[bytes, int]] = []
        self.told: list[Any] = []
        self.ways: dict[bytes, str] = {}

    def work(self, *sources: bytes) -> FetchState:
        return FetchState(3, self.tree.root, len(self.data), sources)

    async def ask(self, peer: bytes, key: bytes, into: bytearray) -> str:
        index, way = self.keys[key], self.ways.get(peer, "honest")
        self.asked.append((peer, index))
        await asyncio.sleep(60.0 if way == "hangs" and index else 0.001)
        if way == "absent":
            return "absent"
        start, end = leaf_span(len(self.data), index)
        into[:] = self.tree.proof(index) + self.data[start:end]
        if way == "lies":
            into[-1] ^= 1
        return ""

    def fetch(self, directory: Path | None, *sources: bytes) -> StateFetch:
        kept = KeptChunks(directory, Room())
        return StateFetch(self.work(*sources), self.ask, kept, self.told.append, self.on_lie)

    def on_lie(self, peer: bytes, reason: str) -> None:
        self.told.append((peer, reason))

    def replaced(self) -> dict[str, str]:
        return {e.name: e.reason for e in self.told if isinstance(e, events.SourceReplaced)}


def test_all_sources_give_chunks_and_each_chunk_is_told_with_its_source_and_time() -> None:
    state = State()
    assert asyncio.run(state.fetch(None, *PEERS).run()) == state.data
    chunks = [event for event in state.told if isinstance(event, events.ChunkFetched)]
    assert sorted(event.index for event in chunks) == list(range(CHUNKS))
    assert [event.done for event in chunks] == list(range(1, CHUNKS + 1))
    assert {event.name for event in chunks} == {name_of(peer) for peer in PEERS}
    assert sum(event.bytes for event in chunks) == len(state.data)
    assert all(event.seconds > 0 for event in chunks) and not state.replaced()


def test_a_liar_is_named_and_asked_no_more_and_the_rest_give_the_state() -> None:
    state = State()
    state.ways = {PEERS[0]: "lies", PEERS[1]: "lies", PEERS[2]: "absent"}
    assert asyncio.run(state.fetch(None, *PEERS).run()) == state.data
    liars = {told[0] for told in state.told if isinstance(told, tuple)}
    assert liars == set(PEERS[:2])
    assert set(state.replaced()) == {name_of(peer) for peer in PEERS[:3]}
    asked = [peer for peer, _ in state.asked]
    assert all(asked.count(peer) <= 2 for peer in PEERS[:3])  # as many as were under way


def test_with_liars_only_there_is_no_state() -> None:
    state = State()
    state.ways = dict.fromkeys(PEERS, "lies")
    assert asyncio.run(state.fetch(None, *PEERS).run()) is None


def test_a_source_that_hangs_is_beaten_by_another_and_named() -> None:
    state = State()
    state.ways = {PEERS[0]: "hangs"}

    async def story() -> bytes | None:
        async with asyncio.timeout(20):  # one hanging request would take a minute
            return await state.fetch(None, *PEERS[:2]).run()

    assert asyncio.run(story()) == state.data
    assert "slower than" in state.replaced()[name_of(PEERS[0])]


def test_more_sources_than_are_asked_at_once_take_the_place_of_those_that_fail() -> None:
    state = State()
    many = [bytes([number]) * 32 for number in range(1, 20)]
    state.ways = dict.fromkeys(many[:-1], "absent")
    assert asyncio.run(state.fetch(None, *many).run()) == state.data
    assert len(state.replaced()) > 8 and name_of(many[-1]) not in state.replaced()


CRASHING = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import asyncio
from test_syncing import PEERS, State
state = State()
whole = state.ask
async def ask(peer, key, into):
    if len(state.asked) >= 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return await whole(peer, key, into)
state.ask = ask
asyncio.run(state.fetch(Path(sys.argv[1]), *PEERS[:1]).run())
"""


def test_a_fetch_killed_in_the_middle_goes_on_with_what_was_proven(tmp_path: Path) -> None:
    kept = tmp_path / "fetching"
    command = [sys.executable, "-c", CRASHING, str(kept), str(Path(__file__).parent)]
    done = subprocess.run(command, env=dict(os.environ), timeout=60)
    assert done.returncode == -signal.SIGKILL
    state = State()
    torn, *_ = sorted((kept / state.tree.root.hex()).glob("*.chunk"))
    before = len(list(torn.parent.glob("*.chunk")))
    assert 4 <= before <= 7
    torn.write_bytes(torn.read_bytes()[:1_000])  # as a crash of the machine may leave it
    assert asyncio.run(state.fetch(kept, *PEERS).run()) == state.data
    (resumed,) = (event for event in state.told if isinstance(event, events.SyncResumed))
    # The kill itself may have come in the middle of the two that were being written.
    assert before - 3 <= resumed.done <= before - 1
    assert len(state.asked) == CHUNKS - resumed.done
    assert not kept.exists(), "what is whole needs no chunks any more"


def test_chunks_of_another_state_are_thrown_away(tmp_path: Path) -> None:
    old, new = State(1), State(2)
    KeptChunks(tmp_path, Room()).keep(old.work(), 0, b"whatever")
    assert asyncio.run(new.fetch(tmp_path, *PEERS).run()) == new.data
