"""Relaying for peers that nobody can dial: bytes passed between two connections that came in.

A peer behind a router registers and waits on that connection. Whoever calls it names it; the relay
tells it of the call, it comes with the call's token on a connection of its own, and from then on
the relay copies bytes both ways. What it copies is TLS between the two, of which it has no key: it
sees who talks with whom, when, and how much. It relays only if its operator consents, only for
peers of its own swarm, and within `RelayLimits`, also over a day.

It knows no message of the protocol and keeps nothing.
"""

import asyncio
import contextlib
import secrets
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from peerformer.node.connection import Budget
from peerformer.node.limits import RelayLimits
from peerformer.node.streams import Streams
from peerformer.node.transfer import ACCEPTED
from peerformer.node.uplink import Uplink

REGISTER, CALL, ANSWER = b"R", b"C", b"A"  # what a connection with a relay is for
ALIVE, CALLED = b".", b"c"  # what a relay says to a registered peer
READY = b"!"  # the called peer's: from here on, all bytes are the two peers'
ABSENT, FULL, SPENT, STRANGER = b"a", b"f", b"q", b"s"
TOKEN_SIZE_BYTES, KEY_SIZE_BYTES = 16, 32
PIECE_BYTES = 16 * 1024
DAY_SECONDS = 86_400.0


class QuotaSpent(Exception):
    """The day's bytes are used up."""


@dataclass(slots=True)
class Quota:
    """The bytes of a day; the day begins with the first of them."""

    bytes_max: float
    used: float = 0.0
    begun_at: float | None = None

    def left(self, now: float) -> bool:
        """Whether anything may be passed on."""
        if self.begun_at is None or now - self.begun_at >= DAY_SECONDS:
            self.begun_at, self.used = now, 0.0
        return self.used < self.bytes_max

    def use(self, size: int, now: float) -> None:
        """Note bytes to be passed on.

        Raises:
            QuotaSpent: if they may not.
        """
        if not self.left(now):
            raise QuotaSpent
        self.used += size


@dataclass(slots=True)
class Call:
    """One call: whom it is for, and who came for it; `over` when its bytes have been passed."""

    peer: bytes
    came: asyncio.Future[Streams]
    over: asyncio.Event = field(default_factory=asyncio.Event)


class Relay:
    """What one node relays."""

    def __init__(
        self, budget: Budget, limits: RelayLimits, is_welcome: Callable[[bytes], bool]
    ) -> None:
        """Relay for whoever `is_welcome`; `services` is what a transport must serve for it."""
        self.limits = limits
        self.registered: dict[bytes, asyncio.StreamWriter] = {}
        self.flows: Counter[bytes] = Counter()
        self.quota = Quota(limits.bytes_per_day_max)
        self.bytes_passed = 0
        self._is_welcome = is_welcome
        self._budget = budget
        self._rate = Uplink()
        self._rate.bytes_per_second = limits.bytes_per_second_max
        self._calls: dict[bytes, Call] = {}
        self.services: dict[bytes, Callable[[bytes, Streams], Awaitable[None]]] = {
            REGISTER: self._register,
            CALL: self._call,
            ANSWER: self._answer,
        }

    def is_open(self) -> bool:
        """Whether another peer may register today."""
        return self.quota.left(_now())

    def status(self) -> dict[str, float]:
        """Return what is relayed, for a status object."""
        return {
            "registered": len(self.registered),
            "flows": self.flows.total(),
            "bytes_passed": self.bytes_passed,
            "bytes_used_today": self.quota.used,
            "bytes_per_day_max": self.limits.bytes_per_day_max,
            "bytes_per_second_max": self.limits.bytes_per_second_max,
        }

    # --- those who wait for calls --------------------------------------------------------------

    async def _register(self, peer: bytes, streams: Streams) -> None:
        refusal = self._refusal_of(peer)
        streams.writer.write(refusal or ACCEPTED)
        if refusal:
            await streams.writer.drain()
            return
        before = self.registered.get(peer)
        if before is not None:
            before.transport.abort()
        self.registered[peer] = streams.writer
        limits = self._budget.limits
        keeping = asyncio.ensure_future(self._keep_alive(streams.writer))
        try:
            while True:
                async with asyncio.timeout(limits.silence_seconds_max):
                    await streams.reader.readexactly(1)
        finally:
            keeping.cancel()
            if self.registered.get(peer) is streams.writer:
                del self.registered[peer]

    def _refusal_of(self, peer: bytes) -> bytes | None:
        if not self._is_welcome(peer):
            return STRANGER
        if len(self.registered) >= self.limits.registered_max and peer not in self.registered:
            return FULL
        return None if self.is_open() else SPENT

    async def _keep_alive(self, writer: asyncio.StreamWriter) -> None:
        while not writer.transport.is_closing():
            writer.write(ALIVE)
            await asyncio.sleep(self._budget.limits.idle_seconds_max)

    # --- calls ---------------------------------------------------------------------------------

    async def _call(self, caller: bytes, streams: Streams) -> None:
        streams.writer.write(ACCEPTED)
        async with asyncio.timeout(self.limits.call_seconds_max):
            peer = await streams.reader.readexactly(KEY_SIZE_BYTES)
        waiting, limits = self.registered.get(peer), self.limits
        refusal = None
        if waiting is None:
            refusal = ABSENT
        elif not self.is_open():
            refusal = SPENT
        elif (
            self.flows.total() >= limits.flows_max or self.flows[peer] >= limits.flows_per_peer_max
        ):
            refusal = FULL
        if refusal or waiting is None:
            streams.writer.write(refusal or ABSENT)
            await streams.writer.drain()
            return
        token = secrets.token_bytes(TOKEN_SIZE_BYTES)
        call = Call(peer, asyncio.get_running_loop().create_future())
        self._calls[token] = call
        self.flows[peer] += 1
        try:
            waiting.write(CALLED + token + caller)
            await self._connect(call, streams)
        finally:
            del self._calls[token]
            call.over.set()
            self.flows[peer] -= 1
            if not self.flows[peer]:
                del self.flows[peer]

    async def _connect(self, call: Call, caller: Streams) -> None:
        try:
            async with asyncio.timeout(self.limits.call_seconds_max):
                called = await call.came
        except TimeoutError:
            caller.writer.write(ABSENT)
            await caller.writer.drain()
            return
        caller.writer.write(ACCEPTED)
        await self._splice(caller, called)

    async def _answer(self, peer: bytes, streams: Streams) -> None:
        streams.writer.write(ACCEPTED)
        async with asyncio.timeout(self.limits.call_seconds_max):
            token = await streams.reader.readexactly(TOKEN_SIZE_BYTES)
            ready = await streams.reader.readexactly(len(READY))
        call = self._calls.get(token)
        if call is None or call.peer != peer or call.came.done() or ready != READY:
            return
        call.came.set_result(streams)
        await call.over.wait()

    async def _splice(self, one: Streams, other: Streams) -> None:
        """Pass bytes both ways until a side ends; then both have ended."""
        ways = [
            asyncio.ensure_future(self._pass_on(one.reader, other.writer)),
            asyncio.ensure_future(self._pass_on(other.reader, one.writer)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            for streams in (one, other):
                streams.writer.close()
                with contextlib.suppress(OSError, TimeoutError):
                    async with asyncio.timeout(self._budget.limits.close_seconds_max):
                        await streams.writer.wait_closed()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(PIECE_BYTES):
            await self._rate.take(len(data), message=False)
            await self._budget.uplink.take(len(data), message=False)
            self.quota.use(len(data), _now())
            self.bytes_passed += len(data)
            self._budget.traffic.sent += len(data)
            writer.write(data)
            async with asyncio.timeout(self.limits.flow_stall_seconds_max):
                await writer.drain()


def _now() -> float:
    return asyncio.get_running_loop().time()
