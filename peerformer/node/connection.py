"""A framed connection with one authenticated peer: length, then bytes; never blocks the sender.

An empty frame is a keep-alive: each side sends one when it has been idle, and a connection on which
nothing has come for a while is closed as silent (`silence.py` states how fast). So is one whose
peer takes nothing of what waits for it. A stranger may send small frames only, and all strangers
together so many a second: each waits for its turn. What all connections of a transport may hold
together is the `Budget`'s to say.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from peerformer.node.dialling import joined
from peerformer.node.limits import FRAME_COST_BYTES, QUEUE_EXEMPT_BYTES, TransportLimits
from peerformer.node.silence import Silence
from peerformer.node.uplink import Uplink

COME_WORD = 0xFFFF_FFFF  # in place of a length: come, I want blobs of you (`coming.py`)
READ_BYTES = 64 * 1024
WHOLE_BYTES = 1024  # a frame so small is read in one go: most are


class ConnectionClosed(Exception):
    """The connection has ended; the message says why."""


@dataclass(slots=True)
class Traffic:
    """Bytes that crossed the wire, all connections of a transport together."""

    sent: int = 0
    received: int = 0


@dataclass(slots=True)
class Budget:
    """What the connections of one transport share: their limits, the way out, and their memory."""

    limits: TransportLimits
    traffic: Traffic = field(default_factory=Traffic)
    uplink: Uplink = field(default_factory=Uplink)
    strangers: Uplink = field(default_factory=Uplink)  # the way in that they share
    connections: set["Connection"] = field(default_factory=set)

    def __post_init__(self) -> None:
        """Limit the strangers."""
        self.strangers.bytes_per_second = self.limits.strangers_bytes_per_second_max

    def may_queue(self, more: int, queued: int) -> bool:
        """Whether a connection that holds `queued` unsent bytes may hold `more`."""
        if queued + more <= QUEUE_EXEMPT_BYTES:
            return True
        if queued + more > self.limits.queue_bytes_max:
            return False
        return self.queued_bytes() + more <= self.limits.queues_bytes_max

    def queued_bytes(self) -> int:
        """Return what all connections hold unsent."""
        return sum(connection.queued_bytes for connection in self.connections)

    def largest_partial(self) -> "Connection | None":
        """Return whose unfinished frame is the largest, if all together are too much."""
        if sum(c.partial_bytes for c in self.connections) <= self.limits.frames_bytes_max:
            return None
        return max(self.connections, key=lambda connection: connection.partial_bytes)


class Connection:
    """One long-lived connection for messages."""

    def __init__(
        self,
        peer_id: bytes,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        budget: Budget,
        *,
        inbound: bool,
        relayed_at: str = "",
    ) -> None:
        """Begin; `relayed_at` is the relayed address, where this goes through a relay."""
        host, port = writer.get_extra_info("peername")[:2]
        self.peer_id = peer_id
        here = writer.get_extra_info("sockname")
        self.local_host = str(here[0]) if here else ""  # "": of no address of this machine's
        self.address = relayed_at or joined(host, port)
        self.relayed = bool(relayed_at)
        self.inbound = inbound
        self.on_asked: Callable[[Connection], None] = lambda _: None  # to come
        self.frames_dropped = 0
        self.partial_bytes = 0  # of a frame that is not yet whole
        self.waits_its_turn = False  # with all other strangers
        self._reader, self._writer = reader, writer
        self._budget, self._limits = budget, budget.limits
        self._frame_max = self._limits.stranger_frame_bytes_max
        self._reason: str | None = None
        self._held: deque[bytes] = deque()  # until the uplink lets them go
        self._held_bytes = 0
        self._pump: asyncio.Task[None] | None = None
        self._written = self._taken = 0
        loop = asyncio.get_running_loop()
        self._spoke_at = self._taken_at = loop.time()
        self.silence = Silence.begin(
            self._limits.silence_seconds_max, self._limits.look_seconds, loop.time()
        )
        self._over: asyncio.Future[None] = loop.create_future()
        self._over.add_done_callback(lambda _: budget.connections.discard(self))
        budget.connections.add(self)
        self._keeper = loop.create_task(self._keep())

    @property
    def ended(self) -> bool:
        """Whether the connection is closed or closing."""
        return self._writer.transport.is_closing()

    @property
    def queued_bytes(self) -> int:
        """What waits to be sent."""
        return self._held_bytes + self._writer.transport.get_write_buffer_size()

    def allow_large_frames(self) -> None:
        """Accept frames of a member's size from now on."""
        self._frame_max = self._limits.frame_bytes_max

    # --- sending -------------------------------------------------------------------------------

    def send(self, frame: bytes) -> bool:
        """Queue a frame; False if the queue is full or the connection closed. Never blocks."""
        if self.ended:
            return False
        if not self._budget.may_queue(len(frame), self.queued_bytes):
            self.frames_dropped += 1
            return False
        data = len(frame).to_bytes(4, "little") + frame
        if self._held or not self._budget.uplink.take_at_once(len(data)):
            self._held.append(data)
            self._held_bytes += len(data)
            if self._pump is None:
                self._pump = asyncio.get_running_loop().create_task(self._let_go())
        else:
            self._write(data)
        return True

    def ask_to_come(self) -> None:
        """Ask the peer to dial a connection on which it serves blobs."""
        if not self.ended:
            self._write(COME_WORD.to_bytes(4, "little"))

    async def _let_go(self) -> None:
        """Write what is held as the uplink allows."""
        try:
            while self._held and not self.ended:
                await self._budget.uplink.take(len(self._held[0]), message=True)
                data = self._held.popleft()
                self._held_bytes -= len(data)
                if not self.ended:
                    self._write(data)
        finally:
            self._pump = None

    def _write(self, data: bytes) -> None:
        self._spoke_at = asyncio.get_running_loop().time()
        self._budget.traffic.sent += len(data)
        self._written += len(data)
        self._writer.write(data)

    # --- receiving -----------------------------------------------------------------------------

    async def receive(self) -> bytes:
        """Return the next frame.

        Raises:
            ConnectionClosed: if there will be none.
        """
        reader, silence, clock = self._reader, self.silence, asyncio.get_running_loop().time
        try:
            while True:
                size = int.from_bytes(await reader.readexactly(4), "little")
                if self.waits_its_turn:  # what is only announced takes nothing from others
                    await self._budget.strangers.take(FRAME_COST_BYTES, message=True)
                if size == COME_WORD:
                    silence.heard(clock())
                    self.on_asked(self)
                    continue
                if size > self._frame_max:
                    await self.close(f"a frame of {size} bytes")
                    break
                if size <= WHOLE_BYTES:
                    frame = await reader.readexactly(size)
                else:
                    silence.heard(clock())
                    frame = await self._read(size)
                silence.heard(clock())
                self._budget.traffic.received += 4 + size
                if self.waits_its_turn and frame:
                    await self._budget.strangers.take(size, message=True)
                if frame:
                    return frame
        except (asyncio.IncompleteReadError, OSError) as error:
            ended = isinstance(error, asyncio.IncompleteReadError)
            await self.close("the peer closed it" if ended else f"broken: {error}")
        raise ConnectionClosed(self._reason or "closed")

    async def _read(self, size: int) -> bytes:
        """Return a large frame; each byte that comes is a sign of life, however slowly they come.

        Memory is taken as they come, not as they are announced.
        """
        loop = asyncio.get_running_loop()
        data = bytearray()
        try:
            while len(data) < size:
                piece = await self._reader.read(min(READ_BYTES, size - len(data)))
                if not piece:
                    raise asyncio.IncompleteReadError(bytes(data), size)
                self.silence.heard(loop.time())
                data += piece
                self.partial_bytes = len(data)
                largest = self._budget.largest_partial()
                if largest is not None:
                    await largest.close("too much of unfinished frames")
        finally:
            self.partial_bytes = 0
        return bytes(data)

    # --- the end -------------------------------------------------------------------------------

    async def _keep(self) -> None:
        """Look again and again whether the peer lives, takes what it is sent, and hears of me."""
        limits, loop = self._limits, asyncio.get_running_loop()
        while not self.ended:
            await asyncio.sleep(limits.look_seconds)
            now = loop.time()
            if self.silence.is_gone(now):
                self.cut("silent")
            elif self._is_stalled(now):
                self.cut("it takes nothing of what it is sent")
            elif now - self._spoke_at >= limits.idle_seconds_max and not self.ended:
                self._write(bytes(4))
        self._is_over()

    def _is_stalled(self, now: float) -> bool:
        self._taken_at += self.silence.asleep_seconds
        waiting = self._writer.transport.get_write_buffer_size()
        taken = self._written - waiting
        if taken > self._taken or not waiting:
            self._taken, self._taken_at = taken, now
        return now - self._taken_at > self._limits.stall_seconds_max

    def cut(self, reason: str) -> None:
        """End at once: whoever is gone or takes nothing would not take a farewell either."""
        self._reason = self._reason or reason
        self._writer.transport.abort()

    def _end(self, reason: str) -> None:
        if self._reason is None:
            self._reason = reason
        if not self.ended:
            self._writer.close()

    async def close(self, reason: str = "") -> None:
        """Close; what was queued is still sent if the peer takes it."""
        if self._pump is not None and not self._reason:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._limits.close_seconds_max):
                    await asyncio.shield(self._pump)
        self._end(reason or "closed here")
        if self._keeper is not asyncio.current_task():
            self._keeper.cancel()
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(self._limits.close_seconds_max):
                # Shielded: what it waits for is shared by all who close, and dies with the first.
                await asyncio.shield(self._writer.wait_closed())
        self._writer.transport.abort()
        self._is_over()

    def _is_over(self) -> None:
        if not self._over.done():
            self._over.set_result(None)

    async def until_over(self) -> None:
        """Wait until the connection has ended and what was queued has left, or could not."""
        await asyncio.shield(self._over)
