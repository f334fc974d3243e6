"""Encrypted connections with peers: TLS 1.3 over TCP, both ends proved by their Ed25519 keys.

A connection begins with one byte that says what it is for, messages or blobs, and counts as up
when the server has answered: in TLS 1.3 a client believes that it is connected before the server
has looked at its certificate. Half-open connections are capped in all and per address, before any
is given memory of its own; nothing that a peer sends is acted on before its key is known.
"""

import asyncio
import contextlib
import socket
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any

from peerformer.errors import SwarmError
from peerformer.node.blobs import BlobStore
from peerformer.node.certificate import CertificateRefused, peer_key, tls_contexts
from peerformer.node.connection import Connection, ConnectionClosed, Traffic
from peerformer.node.limits import TransportLimits
from peerformer.node.transfer import ACCEPTED, BlobReceiver, FetchError, serve_blobs
from peerformer.protocol.identity import KeyPair

__all__ = ["Connection", "ConnectionClosed", "DialError", "FetchError", "Transport"]

MESSAGES, BLOBS = b"M", b"B"
ACCEPT_PAUSE_SECONDS = 0.1


class DialError(Exception):
    """A peer that could not be reached, or was not the one meant; the message says why."""


class Transport:
    """The connections of one identity."""

    def __init__(self, seed: bytes, *, limits: TransportLimits | None = None) -> None:
        self.peer_id = KeyPair.from_seed(seed).peer_id
        self.limits = limits or TransportLimits()
        self.traffic = Traffic()
        self.store: BlobStore | None = None
        self.may_fetch: Callable[[bytes], bool] = lambda _: False
        private_key = KeyPair.from_seed(seed).private_key
        self._server_context, self._client_context = tls_contexts(private_key)
        self._on_connection: Callable[[Connection], None] = lambda _: None
        self._listener: socket.socket | None = None
        self._half_open: Counter[str] = Counter()
        self._inbound: Counter[bytes] = Counter()
        self._idle: dict[tuple[str, bytes], list[BlobReceiver]] = {}
        self._connections: set[Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = False

    # --- incoming ------------------------------------------------------------------------------

    async def listen(
        self, host: str, port: int, on_connection: Callable[[Connection], None]
    ) -> tuple[str, int]:
        """Accept connections; returns the address listened on.

        Raises:
            SwarmError: if the port is taken or the address is not this machine's.
        """
        self._on_connection = on_connection
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            listener = socket.create_server((host, port), family=family, backlog=256)
        except (OSError, OverflowError) as error:
            raise SwarmError(
                f"cannot listen on {host}, port {port}",
                why=getattr(error, "strerror", None) or str(error),
                hint=f"stop what uses it, or choose another: --port {port + 1}",
            ) from error
        listener.setblocking(False)
        self._listener = listener
        self._spawn(self._accept(listener))
        name = listener.getsockname()
        return str(name[0]), int(name[1])

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self, listener: socket.socket) -> None:
        """Accept for ever; a connection too many is dropped before TLS takes memory for it."""
        loop, limits = asyncio.get_running_loop(), self.limits
        while True:
            try:
                tcp, address = await loop.sock_accept(listener)
            except OSError:  # out of descriptors, or it was gone already
                await asyncio.sleep(ACCEPT_PAUSE_SECONDS)
                continue
            host = str(address[0])
            crowded = (
                self._half_open.total() >= limits.half_open_max
                or self._half_open[host] >= limits.half_open_per_address_max
                or len(self._tasks) + len(self._connections) >= limits.connections_max
            )
            if crowded:
                tcp.close()
            else:
                self._half_open[host] += 1
                self._spawn(self._serve(tcp, host))

    async def _serve(self, tcp: socket.socket, host: str) -> None:
        """Carry one incoming connection to its end; whatever a stranger does ends here."""
        writer: asyncio.StreamWriter | None = None
        try:
            try:
                async with asyncio.timeout(2 * self.limits.handshake_seconds_max):
                    reader, writer = await self._secure(tcp)
                    kind = await reader.readexactly(1)
            finally:
                self._half_open[host] -= 1
                if not self._half_open[host]:
                    del self._half_open[host]
            peer = peer_key(writer.get_extra_info("ssl_object"))
            if kind in (MESSAGES, BLOBS):
                await self._serve_peer(peer, kind, reader, writer)
        except (OSError, EOFError, TimeoutError, CertificateRefused):
            pass  # whatever it was, it ends with the connection
        finally:
            if writer is None:
                tcp.close()
            elif not any(connection.holds(writer) for connection in self._connections):
                writer.transport.abort()

    async def _secure(
        self, tcp: socket.socket
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=self.limits.stream_bytes_max, loop=loop)
        protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
        tls, _ = await loop.connect_accepted_socket(  # uvloop returns a protocol of its own
            lambda: protocol,
            tcp,
            ssl=self._server_context,
            ssl_handshake_timeout=self.limits.handshake_seconds_max,
        )
        return reader, asyncio.StreamWriter(tls, protocol, reader, loop)

    async def _serve_peer(
        self, peer: bytes, kind: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._connections = {c for c in self._connections if not c.ended}
        held = sum(c.peer_id == peer for c in self._connections) + self._inbound[peer]
        if held >= self.limits.connections_per_key_max or self._closing:
            return
        writer.write(ACCEPTED)
        if kind == MESSAGES:
            self._on_connection(self._connect(peer, reader, writer, inbound=True))
            return
        self._inbound[peer] += 1
        try:
            await serve_blobs(
                reader,
                writer,
                self.store,
                allowed=lambda: self.may_fetch(peer),
                limits=self.limits,
                traffic=self.traffic,
            )
        finally:
            self._inbound[peer] -= 1
            if not self._inbound[peer]:
                del self._inbound[peer]

    def _connect(
        self,
        peer: bytes,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        inbound: bool,
    ) -> Connection:
        connection = Connection(
            peer, reader, writer, inbound=inbound, limits=self.limits, traffic=self.traffic
        )
        self._connections.add(connection)
        return connection

    # --- outgoing ------------------------------------------------------------------------------

    async def _reach(self, address: str, protocol: Callable[[], Any]) -> tuple[Any, Any]:
        host, _, port = address.rpartition(":")
        try:
            async with asyncio.timeout(2 * self.limits.handshake_seconds_max):
                return await asyncio.get_running_loop().create_connection(
                    protocol,
                    host.strip("[]"),
                    int(port),
                    ssl=self._client_context,
                    server_hostname="peerformer",
                    ssl_handshake_timeout=self.limits.handshake_seconds_max,
                )
        except (OSError, ValueError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise DialError(reason) from error

    async def dial(self, address: str, *, expect: bytes | None) -> Connection:
        """Connect to "host:port" or "[v6]:port" for messages.

        Args:
            address: where.
            expect: the key that must be there; None takes whoever answers.

        Raises:
            DialError: if nobody answers, or somebody else does.
        """
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=self.limits.stream_bytes_max, loop=loop)
        protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
        tls, _ = await self._reach(address, lambda: protocol)
        writer = asyncio.StreamWriter(tls, protocol, reader, loop)
        try:
            peer = self._checked_key(tls, expect)
            writer.write(MESSAGES)
            async with asyncio.timeout(self.limits.handshake_seconds_max):
                if await reader.readexactly(1) != ACCEPTED:
                    raise DialError("it does not speak this protocol")
        except DialError:
            tls.abort()
            raise
        except (OSError, EOFError, TimeoutError) as error:
            tls.abort()
            raise DialError("it closed the connection, or did not answer") from error
        return self._connect(peer, reader, writer, inbound=False)

    @staticmethod
    def _checked_key(tls: Any, expect: bytes | None) -> bytes:
        try:
            peer = peer_key(tls.get_extra_info("ssl_object"))
        except CertificateRefused as error:
            raise DialError(str(error)) from error
        if expect is not None and peer != expect:
            raise DialError("it holds another key than the one meant")
        return peer

    async def fetch(
        self,
        address: str,
        expect: bytes,
        key: bytes,
        into: memoryview,
        *,
        deadline_seconds: float,
        rate_min_bytes_per_second: float,
        wait: bool = True,
    ) -> None:
        """Fetch the blob under `key`, of exactly the length of `into`, into it.

        `wait` lets the source hold the request for a moment if it has no such blob yet.

        Raises:
            FetchError: absent, timeout, slow, closed, refused or length.
        """
        allowed = self.limits.hold_seconds_max + self.limits.handshake_seconds_max
        allowed += len(into) / max(rate_min_bytes_per_second, 1.0)
        receiver: BlobReceiver | None = None
        try:
            async with asyncio.timeout(min(deadline_seconds, allowed)):
                receiver = await self._receiver(address, expect)
                receiver.request(key, into, wait=wait)
                await receiver.until_done()
        except TimeoutError as error:
            started = receiver is not None and receiver.received > 0
            raise FetchError("slow" if started else "timeout") from error
        except DialError as error:
            raise FetchError("closed") from error
        finally:
            if receiver is not None:
                self._give_back((address, expect), receiver)

    async def _receiver(self, address: str, expect: bytes) -> BlobReceiver:
        idle = self._idle.get((address, expect), [])
        while idle:
            receiver = idle.pop()
            if receiver.usable:
                return receiver
        receiver = BlobReceiver(self.traffic)
        tls, _ = await self._reach(address, lambda: receiver)
        try:
            self._checked_key(tls, expect)
            tls.write(BLOBS)
            await receiver.until_done()
        except BaseException:
            tls.abort()
            raise
        return receiver

    def _give_back(self, place: tuple[str, bytes], receiver: BlobReceiver) -> None:
        idle = self._idle.setdefault(place, [])
        if receiver.usable and len(idle) < self.limits.idle_fetchers_max and not self._closing:
            idle.append(receiver)
        elif receiver.transport is not None:
            receiver.transport.abort()

    async def close(self) -> None:
        """Close everything."""
        self._closing = True
        for receivers in self._idle.values():
            for receiver in receivers:
                if receiver.transport is not None:
                    receiver.transport.abort()
        await asyncio.gather(*(connection.close("stopping") for connection in self._connections))
        for task in list(self._tasks):
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._listener is not None:
            self._listener.close()
