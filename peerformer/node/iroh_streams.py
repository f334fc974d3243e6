"""A QUIC stream of iroh as an `asyncio` transport, so that all that runs over TLS runs over it.

Two pumps: one reads and gives to the protocol, and pauses when it is asked to; one writes what has
been queued, and tells the protocol when that is too much. What is encrypted and to whom is iroh's
affair, which proves the same Ed25519 key as TLS does.
"""

import asyncio
import contextlib
from collections import deque
from typing import Any

READ_BYTES = 64 * 1024
QUEUE_HIGH_BYTES, QUEUE_LOW_BYTES = 256 * 1024, 64 * 1024
RESET_CODE = 0
FAREWELL_SECONDS_MAX = 1.0


class QuicTransport(asyncio.Transport):
    """One bidirectional stream with one peer."""

    def __init__(
        self, streams: Any, protocol: asyncio.BaseProtocol, peer: bytes, place: tuple[str, int]
    ) -> None:
        super().__init__({"peer_key": peer, "peername": place})
        self._loop = asyncio.get_running_loop()
        self._receiving, self._sending = streams.recv(), streams.send()
        self._protocol = protocol
        self._queue: deque[bytes] = deque()
        self._queued = 0
        self._wanted, self._reading = asyncio.Event(), asyncio.Event()
        self._reading.set()
        self._closing = self._lost = self._paused = False
        self._writing = False  # a piece that is under way may be cut anywhere
        protocol.connection_made(self)
        self._tasks = [self._loop.create_task(pump) for pump in (self._read(), self._write())]

    # --- reading -------------------------------------------------------------------------------

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Give what comes to another protocol."""
        self._protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        """Who is given what comes."""
        return self._protocol

    def is_reading(self) -> bool:
        """Whether anything is taken in."""
        return self._reading.is_set()

    def pause_reading(self) -> None:
        """Take nothing in."""
        self._reading.clear()

    def resume_reading(self) -> None:
        """Take in again."""
        self._reading.set()

    async def _read(self) -> None:
        from iroh import IrohError

        try:
            while True:
                await self._reading.wait()
                data = await self._receiving.read(READ_BYTES)
                if not data:
                    break
                self._give(data)
        except IrohError as error:
            self._end(ConnectionResetError(error.message()))
            return
        if isinstance(self._protocol, asyncio.Protocol | asyncio.BufferedProtocol):
            self._protocol.eof_received()
        self.close()

    def _give(self, data: bytes) -> None:
        protocol = self._protocol
        if not isinstance(protocol, asyncio.BufferedProtocol):
            assert isinstance(protocol, asyncio.Protocol)
            protocol.data_received(data)
            return
        rest = memoryview(data)
        while rest and not self._closing:
            buffer = memoryview(protocol.get_buffer(len(rest)))
            size = min(len(buffer), len(rest))
            buffer[:size] = rest[:size]
            protocol.buffer_updated(size)
            rest = rest[size:]

    # --- writing -------------------------------------------------------------------------------

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Queue bytes."""
        if self._closing or not data:
            return
        self._queue.append(bytes(data))
        self._queued += len(data)
        self._wanted.set()
        if self._queued > QUEUE_HIGH_BYTES and not self._paused:
            self._paused = True
            self._protocol.pause_writing()

    def get_write_buffer_size(self) -> int:
        """What waits to be sent."""
        return self._queued

    async def _write(self) -> None:
        from iroh import IrohError

        try:
            while True:
                while self._queue:
                    data, self._writing = self._queue.popleft(), True
                    await self._sending.write_all(data)
                    self._queued, self._writing = self._queued - len(data), False
                    if self._paused and self._queued <= QUEUE_LOW_BYTES:
                        self._paused = False
                        self._protocol.resume_writing()
                if self._closing:
                    break
                self._wanted.clear()
                await self._wanted.wait()
        except IrohError as error:
            self._end(ConnectionResetError(error.message()))
            return
        self._end(None)

    # --- the end -------------------------------------------------------------------------------

    def is_closing(self) -> bool:
        """Whether it is closed or closing."""
        return self._closing

    def close(self) -> None:
        """End when all is sent."""
        self._closing = True
        self._wanted.set()

    def abort(self) -> None:
        """End now; what little is queued still leaves, as from a socket's own buffer."""
        self._end(None)

    def _end(self, error: Exception | None) -> None:
        self._closing = True
        if self._lost:
            return
        self._lost = True
        self._loop.call_soon(self._protocol.connection_lost, error)
        mine = asyncio.current_task(self._loop)
        for task in self._tasks:
            if task is not mine:
                task.cancel()
        little = error is None and not self._writing and self._queued <= QUEUE_LOW_BYTES
        rest = b"".join(self._queue) if little else b""
        self._queue.clear()
        self._queued = 0
        self._tasks = [self._loop.create_task(self._farewell(rest))]

    async def _farewell(self, rest: bytes) -> None:
        from iroh import IrohError

        with contextlib.suppress(IrohError, TimeoutError):
            async with asyncio.timeout(FAREWELL_SECONDS_MAX):
                if rest:
                    await self._sending.write_all(rest)
                await self._sending.finish()
        with contextlib.suppress(IrohError):
            await self._receiving.stop(RESET_CODE)
