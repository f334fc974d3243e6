"""What a node sends a second, capped: a token bucket that all its connections share.

Messages go first: a vote waits for no contribution, only for votes. What is granted may exceed what
is in the bucket by one piece, and is owed: so a piece larger than the bucket still goes, and over
time no more leaves than the cap says. Without a cap nothing waits. (Token bucket: Tanenbaum and
Wetherall, "Computer Networks", 5.4.2.) It counts what TLS is given, not the few per cent that TLS,
TCP and IP add; it knows no peer. A relay's flows, and what strangers send to a node, go through one
of their own.
"""

import asyncio
from collections import deque
from dataclasses import dataclass

BURST_SECONDS = 0.1  # of the cap may go at once after a pause
BURST_BYTES_MIN = 16 * 1024  # one TLS record


@dataclass(slots=True)
class Bucket:
    """Tokens in bytes: they flow in at `bytes_per_second`, and may go below zero once."""

    bytes_per_second: float
    tokens: float = 0.0
    filled_at: float | None = None

    @property
    def bytes_max(self) -> float:
        """How much it holds."""
        return max(BURST_BYTES_MIN, self.bytes_per_second * BURST_SECONDS)

    def fill(self, now: float) -> None:
        """Let in what has flowed since the last time; the first time it is full."""
        since = now - self.filled_at if self.filled_at is not None else float("inf")
        self.tokens = min(self.bytes_max, self.tokens + since * self.bytes_per_second)
        self.filled_at = now

    def wait_seconds(self) -> float:
        """Return how long after the last filling something can be taken."""
        return max(0.0, -self.tokens / self.bytes_per_second)


class Uplink:
    """The one way out of a node: `take` before sending."""

    def __init__(self) -> None:
        self._bucket: Bucket | None = None
        self._messages: deque[tuple[asyncio.Future[None], int]] = deque()
        self._bulk: deque[tuple[asyncio.Future[None], int]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    @property
    def bytes_per_second(self) -> float | None:
        """The cap, or None; it may be changed at any time, on the loop."""
        return self._bucket.bytes_per_second if self._bucket else None

    @bytes_per_second.setter
    def bytes_per_second(self, cap: float | None) -> None:
        assert cap is None or cap > 0
        self._bucket = Bucket(cap) if cap is not None else None
        if self._messages or self._bulk:
            self._grant()

    def piece_bytes(self, most: int) -> int:
        """Return how much of a blob to take at once, so that a message behind it waits little."""
        return most if self._bucket is None else min(most, int(self._bucket.bytes_max))

    def take_at_once(self, size: int) -> bool:
        """Take for a message if it need not wait; else False."""
        bucket = self._bucket
        if bucket is None:
            return True
        bucket.fill(asyncio.get_running_loop().time())
        if self._messages or bucket.tokens <= 0:
            return False
        bucket.tokens -= size
        return True

    async def take(self, size: int, *, message: bool) -> None:
        """Wait until `size` bytes may leave; messages before all else, else in order."""
        if self._bucket is None:
            return
        waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        (self._messages if message else self._bulk).append((waiting, size))
        if self._timer is None:
            self._grant()
        await waiting

    def _grant(self) -> None:
        loop, bucket = asyncio.get_running_loop(), self._bucket
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if bucket is not None:
            bucket.fill(loop.time())
        while self._messages or self._bulk:
            if bucket is not None and bucket.tokens <= 0:
                self._timer = loop.call_later(bucket.wait_seconds() + 1e-3, self._grant)
                return
            waiting, size = (self._messages or self._bulk).popleft()
            if not waiting.done():  # whoever waited may have gone
                waiting.set_result(None)
                if bucket is not None:
                    bucket.tokens -= size
