"""Fetching an agreed state from many peers at once, each chunk proven before it counts.

Every source works its way through the chunks that are left, so a fast one gives more of them. When
none is left, those still under way are asked of an idle source too, and the slower of the two is
asked no more: the end is never slower than the fastest source. Whoever lies, has nothing or is
beaten is left out and named. What was proven lies on disk until the state is whole, with its proof,
so that a fetch cut short by a crash goes on with what it had.

It knows no network: how a chunk is asked for is the caller's.
"""

import asyncio
import shutil
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from peerformer import events
from peerformer.node.room import Room
from peerformer.protocol.codec import MalformedError
from peerformer.protocol.effects import FetchState
from peerformer.protocol.identity import name_of
from peerformer.protocol.merkle import (
    check_leaf,
    chunk_key,
    leaf_count,
    leaf_span,
    proof_size_bytes,
)

SOURCES_AT_ONCE = 8
REQUESTS_PER_SOURCE = 2  # one on its way while another is written down
TRIES_MAX = 3  # that fail before a source is left out: connections break
LOOK_SECONDS = 0.1  # between two looks for something to do
BEATEN_FACTOR = 3.0  # a chunk under way for so many usual times is asked of another source too
USUAL_SECONDS_MIN = 0.2

Ask = Callable[[bytes, bytes, bytearray], Awaitable[str]]  # peer, key, into -> why not, or ""


class KeptChunks:
    """Chunks of one state on disk, each behind its proof. `directory` holds no other state's."""

    def __init__(self, directory: Path | None, room: Room) -> None:
        """Keep them in a directory, or (None) not at all."""
        self.directory, self._room = directory, room

    def load(self, work: FetchState) -> dict[int, bytes]:
        """Return the chunks of a state that are there; those of others are thrown away."""
        if self.directory is None:
            return {}
        mine = self.directory / work.state_root.hex()
        for other in self.directory.iterdir() if self.directory.is_dir() else ():
            if other != mine:
                shutil.rmtree(other, ignore_errors=True)
        found = {}
        for path in mine.glob("*.chunk"):
            index = int(path.stem) if path.stem.isdecimal() else -1
            if 0 <= index < leaf_count(work.size):
                leaf = proven(work, index, path.read_bytes())
                if leaf is not None:
                    found[index] = leaf
        return found

    def keep(self, work: FetchState, index: int, chunk: bytes) -> None:
        """Write one chunk; what a crash tears is noticed by its proof."""
        if self.directory is None:
            return
        path = self.directory / work.state_root.hex() / f"{index}.chunk"
        path.parent.mkdir(parents=True, exist_ok=True)
        self._room.write(lambda: path.write_bytes(chunk))

    def forget(self) -> None:
        """Throw everything away: the state is whole."""
        if self.directory is not None:
            shutil.rmtree(self.directory, ignore_errors=True)


def proven(work: FetchState, index: int, chunk: bytes) -> bytes | None:
    """Return the leaf of a chunk whose proof, which stands before it, leads to the root."""
    size = proof_size_bytes(work.size, index)
    proof, leaf = chunk[:size], chunk[size:]
    try:
        check_leaf(work.state_root, work.size, index, leaf, proof)
    except MalformedError:
        return None
    return leaf


@dataclass(slots=True)
class Source:
    """One peer that is asked for chunks."""

    peer: bytes
    failures: int = 0
    seconds: float = 0.0  # that its last chunk took
    given: int = 0  # bytes

    def rate(self) -> str:
        """Return its rate in words."""
        per_second = self.given / self.seconds if self.seconds else 0.0
        return f"{per_second / 1e6:.2f} MB/s"


@dataclass(slots=True)
class StateFetch:
    """The fetch of one state."""

    work: FetchState
    ask: Ask
    kept: KeptChunks
    tell: Callable[[events.Event], None]
    on_lie: Callable[[bytes, str], None]
    data: bytearray = field(init=False)
    _left: list[int] = field(init=False)  # nobody was asked for them yet
    _under_way: dict[int, dict[bytes, tuple[float, asyncio.Task[str]]]] = field(init=False)
    _done: set[int] = field(init=False)
    _sources: dict[bytes, Source] = field(init=False)  # those that may still be asked
    _lanes: set[asyncio.Task[None]] = field(init=False)

    def __post_init__(self) -> None:
        """Begin with nothing."""
        self.data = bytearray(self.work.size)
        self._left, self._under_way, self._done = [], {}, set()
        self._sources = {peer: Source(peer) for peer in self.work.sources}
        self._lanes = set()

    async def run(self) -> bytes | None:
        """Return the state; None if nobody is left who has all of it."""
        await self._take_up()
        spare = list(self._sources)
        try:
            while len(self._done) < leaf_count(self.work.size):
                self._lanes = {lane for lane in self._lanes if not lane.done()}
                asked = {lane.get_name() for lane in self._lanes}
                for peer in spare[:]:
                    if len(asked) >= SOURCES_AT_ONCE:
                        break
                    spare.remove(peer)
                    asked.add(peer.hex())
                    self._begin(peer)
                if not self._lanes:
                    return None
                await asyncio.wait(self._lanes, return_when=asyncio.FIRST_COMPLETED)
                for lane in self._lanes:
                    if lane.done():
                        lane.result()  # an error of ours comes out here
        finally:
            await self._end()
        await asyncio.to_thread(self.kept.forget)
        return bytes(self.data)

    def _begin(self, peer: bytes) -> None:
        for _ in range(REQUESTS_PER_SOURCE):
            self._lanes.add(asyncio.create_task(self._lane(self._sources[peer]), name=peer.hex()))

    async def _end(self) -> None:
        requests = [task for tasks in self._under_way.values() for _, task in tasks.values()]
        for task in (*self._lanes, *requests):
            task.cancel()
        await asyncio.gather(*self._lanes, *requests, return_exceptions=True)

    async def _take_up(self) -> None:
        """Go on with what is on disk."""
        chunks = leaf_count(self.work.size)
        found = await asyncio.to_thread(self.kept.load, self.work)
        for index, leaf in found.items():
            start, end = leaf_span(self.work.size, index)
            self.data[start:end] = leaf
            self._done.add(index)
        self._left = [index for index in range(chunks) if index not in self._done]
        if found:
            size = sum(map(len, found.values()))
            number, done = self.work.round, len(found)
            self.tell(events.SyncResumed(round=number, done=done, chunks=chunks, bytes=size))

    async def _lane(self, source: Source) -> None:
        """Fetch chunk after chunk from one source, while it may be asked and some are missing."""
        while source.peer in self._sources and len(self._done) < leaf_count(self.work.size):
            index = self._next(source)
            if index is None:
                await asyncio.sleep(LOOK_SECONDS)
                continue
            size = proof_size_bytes(self.work.size, index)
            start, end = leaf_span(self.work.size, index)
            buffer = bytearray(size + end - start)
            key = chunk_key(self.work.state_root, index)
            began = time.monotonic()
            request = asyncio.ensure_future(self.ask(source.peer, key, buffer))
            self._under_way.setdefault(index, {})[source.peer] = (began, request)
            try:
                fault = await request
            except asyncio.CancelledError:
                if request.cancelled() and source.peer not in self._sources:
                    return  # another was faster
                raise
            finally:
                self._under_way.get(index, {}).pop(source.peer, None)
            await self._on_answer(source, index, bytes(buffer), fault, time.monotonic() - began)

    def _next(self, source: Source) -> int | None:
        """Return a chunk to ask a source for: a new one, or one that another takes long over."""
        if self._left:
            return self._left.pop(0)
        now = time.monotonic()
        usual = max(source.seconds, USUAL_SECONDS_MIN) if source.seconds else None
        late = [
            (min(began for began, _ in tasks.values()), index)
            for index, tasks in self._under_way.items()
            if len(tasks) == 1 and source.peer not in tasks
        ]
        if late and usual is not None:
            began, index = min(late)
            if now - began > BEATEN_FACTOR * usual:
                return index
        return None

    async def _on_answer(
        self, source: Source, index: int, chunk: bytes, fault: str, seconds: float
    ) -> None:
        if index in self._done:
            return
        leaf = proven(self.work, index, chunk) if not fault else None
        if leaf is None:
            if not self._under_way.get(index):
                self._left.insert(0, index)
            if not fault:
                self.on_lie(source.peer, "it served a chunk that is not of the state")
                self._leave_out(source, "it served a chunk that is not of the state")
                return
            source.failures += 1
            if fault in ("absent", "refused") or source.failures >= TRIES_MAX:
                self._leave_out(source, f"it did not give a chunk: {fault}")
            return
        start, end = leaf_span(self.work.size, index)
        self.data[start:end] = leaf
        self._done.add(index)
        source.seconds, source.given, source.failures = seconds, len(chunk), 0
        for peer, (_, task) in self._under_way.pop(index, {}).items():
            slow = self._sources.get(peer)
            if slow is not None:
                self._leave_out(slow, f"slower than {name_of(source.peer)} with {source.rate()}")
            task.cancel()
        self.tell(self._told(source, index, len(leaf), seconds))
        await asyncio.to_thread(self.kept.keep, self.work, index, chunk)

    def _told(self, source: Source, index: int, size: int, seconds: float) -> events.ChunkFetched:
        return events.ChunkFetched(
            round=self.work.round,
            index=index,
            done=len(self._done),
            chunks=leaf_count(self.work.size),
            peer=source.peer.hex(),
            name=name_of(source.peer),
            bytes=size,
            seconds=seconds,
        )

    def _leave_out(self, source: Source, reason: str) -> None:
        if self._sources.pop(source.peer, None) is None:
            return
        peer, name = source.peer.hex(), name_of(source.peer)
        event = events.SourceReplaced(round=self.work.round, peer=peer, name=name, reason=reason)
        self.tell(event)
