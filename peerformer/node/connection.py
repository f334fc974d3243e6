"""A framed connection with one authenticated peer: length, then bytes; never blocks the sender.

An empty frame is a keep-alive: each side sends one when it has been idle, and a connection on which
nothing has come for a while is closed as silent, so a peer that is gone is noticed within
`silence_seconds_max`. A stranger may send small frames only.
"""

import asyncio
import contextlib
from dataclasses import dataclass

from peerformer.node.limits import TransportLimits


class ConnectionClosed(Exception):
    """The connection has ended; the message says why."""


@dataclass(slots=True)
class Traffic:
    """Bytes that crossed the wire, all connections of a transport together."""

    sent: int = 0
    received: int = 0


class Connection:
    """One long-lived connection for messages."""

    def __init__(
        self,
        peer_id: bytes,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        inbound: bool,
        limits: TransportLimits,
        traffic: Traffic,
    ) -> None:
        host, port = writer.get_extra_info("peername")[:2]
        self.peer_id = peer_id
        self.address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self.inbound = inbound
        self.frames_dropped = 0
        self._reader, self._writer = reader, writer
        self._limits, self._traffic = limits, traffic
        self._frame_max = limits.stranger_frame_bytes_max
        self._reason: str | None = None
        loop = asyncio.get_running_loop()
        self._heard_at = self._spoke_at = loop.time()
        self._keeper = loop.create_task(self._keep_alive())

    @property
    def ended(self) -> bool:
        """Whether the connection is closed or closing."""
        return self._writer.transport.is_closing()

    def holds(self, writer: asyncio.StreamWriter) -> bool:
        """Whether this connection writes through `writer`."""
        return self._writer is writer

    def allow_large_frames(self) -> None:
        """Accept frames of a member's size from now on."""
        self._frame_max = self._limits.frame_bytes_max

    def send(self, frame: bytes) -> bool:
        """Queue a frame; False if the queue is full or the connection closed. Never blocks."""
        transport = self._writer.transport
        if transport.is_closing():
            return False
        if transport.get_write_buffer_size() + len(frame) > self._limits.queue_bytes_max:
            self.frames_dropped += 1
            return False
        self._write(len(frame).to_bytes(4, "little") + frame)
        return True

    def _write(self, data: bytes) -> None:
        self._spoke_at = asyncio.get_running_loop().time()
        self._traffic.sent += len(data)
        self._writer.write(data)

    async def receive(self) -> bytes:
        """Return the next frame.

        Raises:
            ConnectionClosed: if there will be none.
        """
        try:
            while True:
                size = int.from_bytes(await self._reader.readexactly(4), "little")
                self._heard_at = asyncio.get_running_loop().time()
                if size > self._frame_max:
                    await self.close(f"a frame of {size} bytes")
                    break
                frame = await self._reader.readexactly(size)
                self._heard_at = asyncio.get_running_loop().time()
                self._traffic.received += 4 + size
                if frame:
                    return frame
        except (asyncio.IncompleteReadError, OSError) as error:
            ended = isinstance(error, asyncio.IncompleteReadError)
            await self.close("the peer closed it" if ended else f"broken: {error}")
        raise ConnectionClosed(self._reason or "closed")

    async def _keep_alive(self) -> None:
        limits, loop = self._limits, asyncio.get_running_loop()
        while not self.ended:
            await asyncio.sleep(limits.idle_seconds_max / 2)
            if loop.time() - self._heard_at > limits.silence_seconds_max:
                self._reason = self._reason or "silent"
                self._writer.transport.abort()  # it would not answer a farewell either
            elif loop.time() - self._spoke_at >= limits.idle_seconds_max and not self.ended:
                self._write(bytes(4))

    def _end(self, reason: str) -> None:
        if self._reason is None:
            self._reason = reason
        if not self.ended:
            self._writer.close()

    async def close(self, reason: str = "") -> None:
        """Close; what was queued is still sent if the peer takes it."""
        self._end(reason or "closed here")
        if self._keeper is not asyncio.current_task():
            self._keeper.cancel()
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(self._limits.close_seconds_max):
                await self._writer.wait_closed()
        self._writer.transport.abort()
