"""Blobs on connections of their own, so that a contribution never delays a vote.

A request is key, offset, length, and whether to wait for a blob that is not there yet; the answer
a status, a length, and raw bytes, received straight into the buffer of the length that a signed
message stated (copying through a stream reader costs three times as much CPU as TLS itself).
"""

import asyncio
import contextlib
import struct
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import cast

from peerformer.node.blobs import READ_BYTES, Blob, BlobStore
from peerformer.node.connection import Budget, Traffic
from peerformer.node.limits import TransportLimits

REQUEST = struct.Struct("<32sQQ?")
ANSWER = struct.Struct("<BQ")
GIVEN, ABSENT, REFUSED = 0, 1, 2
ACCEPTED = b"+"  # the server's first application byte: only now is the connection up


class FetchError(Exception):
    """A fetch that failed.

    The message is one word: absent, timeout, slow, closed, refused or length.
    """


class BlobReceiver(asyncio.BufferedProtocol):
    """The fetching end of a blob connection: one request at a time."""

    def __init__(self, traffic: Traffic) -> None:
        self.transport: asyncio.Transport | None = None
        self.received = 0  # bytes of the body in hand
        self._traffic = traffic
        self._accepted = False
        self._lost = asyncio.Event()
        self._header = bytearray(ANSWER.size)
        self._header_size = 0
        self._into: memoryview | None = None
        self._scratch = bytearray(4_096)
        self._future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The TLS handshake is over on this side."""
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass

    def take_over(self, transport: asyncio.WriteTransport) -> None:
        """Fetch on a connection that the other end dialled to serve on: it is up already."""
        self._accepted = True
        self._future.set_result(None)
        self.connection_made(transport)
        transport.set_protocol(self)

    async def until_lost(self) -> None:
        """Wait until the connection has ended."""
        await self._lost.wait()

    async def until_done(self) -> None:
        """Wait for the server's acceptance, or for the answer to the request in hand."""
        await self._future

    def request(self, key: bytes, into: memoryview, *, wait: bool) -> None:
        """Ask for a blob of exactly the length of `into`; `wait` for it if it is not there yet."""
        assert self.transport is not None and self._accepted
        self._into, self.received, self._header_size = into, 0, 0
        self._future = asyncio.get_running_loop().create_future()
        self.transport.write(REQUEST.pack(key, 0, len(into), wait))

    def get_buffer(self, sizehint: int) -> bytearray | memoryview:
        """Say where the next bytes go; what was not asked for goes nowhere."""
        if not self._accepted:
            return memoryview(self._scratch)[:1]
        if self._into is None:
            return self._scratch
        if self._header_size < ANSWER.size:
            return memoryview(self._header)[self._header_size :]
        rest = self._into[self.received :]
        return rest if len(rest) else self._scratch

    def buffer_updated(self, nbytes: int) -> None:
        """Note what came."""
        self._traffic.received += nbytes
        if not self._accepted:
            self._accepted = self._scratch[:1] == ACCEPTED
            self._finish(None if self._accepted else "refused")
        elif self._into is None or self._future.done():
            self._finish("length")  # bytes that nobody asked for
        elif self._header_size < ANSWER.size:
            self._header_size += nbytes
            if self._header_size == ANSWER.size:
                self._on_header()
        else:
            self.received += nbytes
            if self.received == len(self._into):
                self._finish(None)

    def _on_header(self) -> None:
        assert self._into is not None
        status, length = ANSWER.unpack(self._header)
        if status != GIVEN:
            self._finish("absent" if status == ABSENT else "refused", keep=length == 0)
        elif length != len(self._into):
            self._finish("length")
        elif length == 0:
            self._finish(None)

    def _finish(self, fault: str | None, *, keep: bool = False) -> None:
        if not self._future.done():
            if fault is None:
                self._future.set_result(None)
            else:
                self._future.set_exception(FetchError(fault))
        self._into = None
        if fault is not None and not keep and self.transport is not None:
            self.transport.abort()

    def connection_lost(self, error: Exception | None) -> None:
        """Fail what is in hand."""
        self._lost.set()
        self._finish("closed")
        if self._future.done() and not self._future.cancelled():
            self._future.exception()  # nobody may be waiting for it any more

    def abort(self) -> None:
        """End it; nobody needs it any more."""
        if self.transport is not None:
            self.transport.abort()

    @property
    def usable(self) -> bool:
        """Whether another request can be made."""
        idle = self._accepted and self._into is None
        return idle and self.transport is not None and not self.transport.is_closing()


class Servings:
    """Who may have a blob on its way at once: so many in all, a few of one peer or of strangers."""

    def __init__(self, limits: TransportLimits) -> None:
        self._limits = limits
        self._by_peer: Counter[bytes] = Counter()
        self._strangers = 0
        self._freed = asyncio.Condition()

    @property
    def under_way(self) -> int:
        """How many are being served."""
        return self._by_peer.total()

    @contextlib.asynccontextmanager
    async def turn(self, peer: bytes, *, stranger: bool) -> AsyncIterator[None]:
        """Wait for a turn and hold it."""
        limits = self._limits

        def free() -> bool:
            return (
                self.under_way < limits.served_at_once_max
                and self._by_peer[peer] < limits.served_per_peer_max
                and not (stranger and self._strangers >= limits.served_to_strangers_max)
            )

        async with self._freed:
            await self._freed.wait_for(free)
            self._by_peer[peer] += 1
            self._strangers += stranger
        try:
            yield
        finally:
            self._by_peer[peer] -= 1
            if not self._by_peer[peer]:
                del self._by_peer[peer]
            self._strangers -= stranger
            async with self._freed:
                self._freed.notify_all()


@dataclass(frozen=True, slots=True)
class Server:
    """The serving end of the blob connections of one peer."""

    peer: bytes
    store: BlobStore | None
    budget: Budget
    servings: Servings
    allowed: Callable[[], bool]
    is_stranger: Callable[[], bool]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of one connection until it ends, or idles or crawls for too long.

        Raises:
            TimeoutError, OSError, EOFError: the connection is over.
        """
        limits = self.budget.limits
        while True:
            async with asyncio.timeout(limits.fetcher_idle_seconds_max):
                request = await reader.readexactly(REQUEST.size)
            key, offset, length, wait = REQUEST.unpack(request)
            if self.store is None or not self.allowed():
                writer.write(ANSWER.pack(REFUSED, 0))
                await writer.drain()
                return
            hold_seconds = limits.hold_seconds_max if wait else 0.0
            blob = await self.store.await_served(key, hold_seconds)
            if blob is None or offset + length > blob.size:
                writer.write(ANSWER.pack(ABSENT, 0))
                await writer.drain()
                continue
            async with self.servings.turn(self.peer, stranger=self.is_stranger()):
                writer.write(ANSWER.pack(GIVEN, length))
                await self._give(blob, range(offset, offset + length), writer)

    async def _give(self, blob: Blob, span: range, writer: asyncio.StreamWriter) -> None:
        uplink, start = self.budget.uplink, span.start
        slowest = self.budget.limits.serve_bytes_per_second_min
        while start < span.stop:
            size = min(uplink.piece_bytes(READ_BYTES), span.stop - start)
            await uplink.take(size, message=False)
            piece = blob.read(start, size)
            self.budget.traffic.sent += len(piece)
            writer.write(piece)
            async with asyncio.timeout(self.budget.limits.close_seconds_max + size / slowest):
                await writer.drain()
            start += size
