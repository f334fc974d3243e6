"""Encrypted connections with peers: TLS 1.3 over TCP, both ends proved by their Ed25519 keys.

A connection begins with one byte that says what it is for, messages, blobs or another service, and
counts as up when the server has answered: in TLS 1.3 a client believes that it is connected before
the server has looked at its certificate. Half-open connections are capped in all and per address,
before any is given memory of its own; nothing that a peer sends is acted on before its key is
known.
"""

import asyncio
import contextlib
import socket
import ssl
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from peerformer.node.blobs import BlobStore
from peerformer.node.certificate import CertificateRefused, Group, tls_contexts
from peerformer.node.coming import COME, Coming
from peerformer.node.connection import Budget, Connection, ConnectionClosed, Traffic
from peerformer.node.dialling import DialError, connected_socket, first_of
from peerformer.node.limits import TransportLimits
from peerformer.node.listening import open_listeners, source_of
from peerformer.node.relay import CALL
from peerformer.node.relaying import REFUSALS, call
from peerformer.node.streams import SERVER_NAME, Streams, proved_key, stream_protocol
from peerformer.node.transfer import ACCEPTED, BlobReceiver, FetchError, Server, Servings
from peerformer.protocol.addresses import IROH, through_relay
from peerformer.protocol.identity import KeyPair

__all__ = ["Connection", "ConnectionClosed", "DialError", "FetchError", "Streams", "Transport"]

MESSAGES, BLOBS = b"M", b"B"
ACCEPT_PAUSE_SECONDS = 0.1
OTHER_GROUP = "its certificate is of another authority: one of us belongs to a private group"


Reach = Callable[[str, asyncio.BaseProtocol], Awaitable[Any]]  # returns a connected transport
Service = Callable[[bytes, Streams], Awaitable[None]]  # of a peer, until its connection ends


class Transport:
    """The connections of one identity."""

    def __init__(
        self, seed: bytes, *, limits: TransportLimits | None = None, group: Group | None = None
    ) -> None:
        self.peer_id = KeyPair.from_seed(seed).peer_id
        self.limits = limits or TransportLimits()
        self.budget = Budget(self.limits)
        self.servings = Servings(self.limits)
        self.store: BlobStore | None = None
        self.may_fetch: Callable[[bytes], bool] = lambda _: False
        self.is_member: Callable[[bytes], bool] = lambda _: False
        self._coming = Coming(self.budget, self.open, self.spawn, self._server_for)
        # Beside messages:
        self.services: dict[bytes, Service] = {BLOBS: self._blobs, COME: self._coming.on_come}
        self.iroh: Reach = no_iroh  # dials what the optional second transport leads to
        self.listening: tuple[tuple[str, int], ...] = ()
        private_key = KeyPair.from_seed(seed).private_key
        self.server_context, self.client_context = tls_contexts(private_key, group)
        self._on_connection: Callable[[Connection], None] = lambda _: None
        self._listeners: list[socket.socket] = []
        self._half_open: Counter[str] = Counter()
        self._sources: Counter[str] = Counter()
        self._inbound: Counter[bytes] = Counter()
        self._idle: dict[bytes, list[BlobReceiver]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = False

    @property
    def traffic(self) -> Traffic:
        """Bytes that crossed the wire."""
        return self.budget.traffic

    @property
    def upload_bytes_per_second(self) -> float | None:
        """The cap on what is sent, messages first; None is none. It may change at any time."""
        return self.budget.uplink.bytes_per_second

    @upload_bytes_per_second.setter
    def upload_bytes_per_second(self, cap: float | None) -> None:
        self.budget.uplink.bytes_per_second = cap

    def status(self) -> dict[str, object]:
        """Return what is held and what is granted, for a status object."""
        return {
            "connections_in": self._sources.total(),
            "half_open": self._half_open.total(),
            "queued_bytes": self.budget.queued_bytes(),
            "blobs_on_their_way": self.servings.under_way,
            "upload_bytes_per_second": self.upload_bytes_per_second,
            "limits": asdict(self.limits),
        }

    # --- incoming ------------------------------------------------------------------------------

    async def listen(
        self, hosts: str | Sequence[str], port: int, on_connection: Callable[[Connection], None]
    ) -> tuple[str, int]:
        """Accept connections at one host or several; returns the first address listened on.

        No host at all is allowed: of a peer that only dials out, relays pass on the calls.

        Raises:
            SwarmError: if the port is taken or an address is not this machine's.
        """
        self.take_in(on_connection)
        self._listeners = open_listeners([hosts] if isinstance(hosts, str) else hosts, port)
        names = [listener.getsockname() for listener in self._listeners]
        self.listening = tuple((str(name[0]), int(name[1])) for name in names)
        for listener in self._listeners:
            self.spawn(self._accept(listener))
        return self.listening[0] if self.listening else ("", 0)

    @property
    def port(self) -> int:
        """The port listened on; 0 where it listens nowhere."""
        return self.listening[0][1] if self.listening else 0

    def take_in(self, on_connection: Callable[[Connection], None]) -> None:
        """Say what becomes of connections for messages, also of those not from a listener."""
        self._on_connection = on_connection

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Run a task that ends with this transport."""
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self, listener: socket.socket) -> None:
        """Accept until it closes; a connection too many is dropped before it costs any TLS."""
        loop = asyncio.get_running_loop()
        while not self._closing:
            try:
                tcp, address = await loop.sock_accept(listener)
            except OSError:  # out of descriptors, or it was gone already
                await asyncio.sleep(ACCEPT_PAUSE_SECONDS)
                continue
            source = source_of(str(address[0]))
            if self.is_crowded(source):
                tcp.close()
            else:
                self.spawn(self.serve(partial(self._secure, tcp), source, tcp.close))

    def is_crowded(self, source: str) -> bool:
        """Whether another connection from a source would be one too many."""
        limits = self.limits
        return (
            self._half_open.total() >= limits.half_open_max
            or self._half_open[source] >= limits.half_open_per_address_max
            or self._sources.total() >= limits.connections_max
            or self._sources[source] >= limits.connections_per_address_max
        )

    async def serve(
        self,
        secure: Callable[[], Awaitable[Streams]],
        source: str,
        drop: Callable[[], None],
        relayed_from: str = "",
    ) -> None:
        """Carry one incoming connection to its end; whatever a stranger does ends here.

        Args:
            secure: does the handshake.
            source: whose share of the limits it takes.
            drop: ends it if there was no handshake.
            relayed_from: the relay that it came through.
        """
        streams: Streams | None = None
        with _counted(self._sources, source):
            try:
                with _counted(self._half_open, source):
                    async with asyncio.timeout(2 * self.limits.handshake_seconds_max):
                        streams = await secure()
                        kind = await streams.reader.readexactly(1)
                await self._serve_peer(streams, kind, relayed_from)
            except (OSError, EOFError, TimeoutError, CertificateRefused, DialError):
                pass  # whatever it was, it ends with the connection
            finally:
                if streams is None:
                    drop()
                else:
                    streams.writer.transport.abort()

    async def _secure(self, tcp: socket.socket) -> Streams:
        loop = asyncio.get_running_loop()
        reader, protocol = stream_protocol(self.limits.stream_bytes_max)
        tls, _ = await loop.connect_accepted_socket(  # uvloop returns a protocol of its own
            lambda: protocol,
            tcp,
            ssl=self.server_context,
            ssl_handshake_timeout=self.limits.handshake_seconds_max,
        )
        return Streams(reader, asyncio.StreamWriter(tls, protocol, reader, loop))

    async def _serve_peer(self, streams: Streams, kind: bytes, relayed_from: str) -> None:
        peer = streams.peer
        if self._inbound[peer] >= self.limits.connections_per_key_max or self._closing:
            return
        with _counted(self._inbound, peer):
            if kind == MESSAGES:
                await self._messages(peer, streams, relayed_from)
            elif kind in self.services:
                await self.services[kind](peer, streams)

    async def _messages(self, peer: bytes, streams: Streams, relayed_from: str) -> None:
        streams.writer.write(ACCEPTED)
        connection = self._connect(peer, streams, inbound=True, relayed_at=relayed_from)
        self._on_connection(connection)
        await connection.until_over()

    async def _blobs(self, peer: bytes, streams: Streams) -> None:
        streams.writer.write(ACCEPTED)
        await self._server_for(peer).serve(streams.reader, streams.writer)

    def _server_for(self, peer: bytes) -> Server:
        return Server(
            peer,
            self.store,
            self.budget,
            self.servings,
            allowed=lambda: self.may_fetch(peer),
            is_stranger=lambda: not self.is_member(peer),
        )

    def _connect(
        self, peer: bytes, streams: Streams, *, inbound: bool, relayed_at: str = ""
    ) -> Connection:
        connection = Connection(
            peer,
            streams.reader,
            streams.writer,
            self.budget,
            inbound=inbound,
            relayed_at=relayed_at,
        )
        connection.on_asked = self._coming.on_asked
        return connection

    # --- outgoing ------------------------------------------------------------------------------

    async def _reach(self, address: str, protocol: asyncio.BaseProtocol) -> Any:
        """Return an encrypted transport to whoever is at an address, directly or by a relay."""
        through = through_relay(address)
        if through is not None:
            return await self._call(*through, protocol)
        if address.startswith(IROH):
            return await self.iroh(address, protocol)
        seconds_max = self.limits.handshake_seconds_max
        tcp: socket.socket | None = None
        try:
            async with asyncio.timeout(2 * seconds_max):
                async with asyncio.timeout(self.limits.connect_seconds_max):
                    tcp = await connected_socket(address)
                tls, _ = await asyncio.get_running_loop().create_connection(
                    lambda: protocol,
                    sock=tcp,
                    ssl=self.client_context,
                    server_hostname=SERVER_NAME,
                    ssl_handshake_timeout=seconds_max,
                )
        except BaseException as error:
            if tcp is not None:
                tcp.close()
            if not isinstance(error, OSError | ValueError):
                raise
            if isinstance(error, ssl.SSLCertVerificationError):
                raise DialError(OTHER_GROUP) from error
            if isinstance(error, TimeoutError):
                raise DialError("no answer in time") from error
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise DialError(reason) from error
        return tls

    async def _call(self, relay: str, peer: bytes, protocol: asyncio.BaseProtocol) -> Any:
        """Return an encrypted transport to a peer that waits at a relay."""
        seconds_max = self.limits.handshake_seconds_max
        carrier = await self.open(relay, CALL, None)  # whoever relays: the peer's key is checked
        try:
            async with asyncio.timeout(2 * seconds_max):
                tls = await call(carrier, peer, protocol, self.client_context, seconds_max)
                self._check_key(tls, peer)
        except (OSError, EOFError, TimeoutError) as error:
            carrier.writer.transport.abort()
            raise DialError("the relay closed the connection, or nobody came") from error
        except BaseException:
            carrier.writer.transport.abort()
            raise
        return tls

    async def dial(self, addresses: str | Sequence[str], *, expect: bytes | None) -> Connection:
        """Connect to "host:port" or "[v6]:port" for messages.

        Args:
            addresses: where; of several of one peer, the first that answers.
            expect: the key that must be there; None takes whoever answers.

        Raises:
            DialError: if nobody answers, or somebody else does.
        """
        places = [addresses] if isinstance(addresses, str) else addresses
        return await first_of(
            [partial(self._dial, place, expect) for place in places],
            lambda late: late.cut("another address answered first"),
        )

    async def _dial(self, address: str, expect: bytes | None) -> Connection:
        streams = await self.open(address, MESSAGES, expect)
        relayed_at = address if through_relay(address) else ""
        return self._connect(streams.peer, streams, inbound=False, relayed_at=relayed_at)

    async def open(self, address: str, kind: bytes, expect: bytes | None) -> Streams:
        """Ask whoever is at an address for a service.

        Raises:
            DialError: if nobody answers, or somebody else than expected, or it is refused.
        """
        reader, protocol = stream_protocol(self.limits.stream_bytes_max)
        tls = await self._reach(address, protocol)
        writer = asyncio.StreamWriter(tls, protocol, reader, asyncio.get_running_loop())
        try:
            self._check_key(tls, expect)
            writer.write(kind)
            async with asyncio.timeout(self.limits.handshake_seconds_max):
                answer = await reader.readexactly(1)
            if answer != ACCEPTED:
                raise DialError(REFUSALS.get(answer, "it does not speak this protocol"))
        except (OSError, EOFError, TimeoutError) as error:
            tls.abort()
            raise DialError("it closed the connection, or did not answer") from error
        except BaseException:
            tls.abort()
            raise
        return Streams(reader, writer)

    @staticmethod
    def _check_key(tls: Any, expect: bytes | None) -> None:
        try:
            peer = proved_key(tls)
        except CertificateRefused as error:
            raise DialError(str(error)) from error
        if expect is not None and peer != expect:
            raise DialError("it holds another key than the one meant")

    async def fetch(
        self,
        addresses: str | Sequence[str],
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
                receiver = await self._receiver(addresses, expect)
                receiver.request(key, into, wait=wait)
                await receiver.until_done()
        except TimeoutError as error:
            started = receiver is not None and receiver.received > 0
            raise FetchError("slow" if started else "timeout") from error
        except DialError as error:
            raise FetchError("closed") from error
        finally:
            if receiver is not None:
                self._give_back(expect, receiver)

    async def _receiver(self, addresses: str | Sequence[str], expect: bytes) -> BlobReceiver:
        idle = self._idle.get(expect, [])
        while idle:
            receiver = idle.pop()
            if receiver.usable:
                return receiver
        places = [addresses] if isinstance(addresses, str) else addresses
        relayed = [place for place in places if through_relay(place)]
        direct = [place for place in places if place not in relayed]
        ways = [
            *(partial(self._new_receiver, place, expect) for place in direct),
            partial(self._coming.invite, expect),
            *(partial(self._new_receiver, place, expect) for place in relayed),
        ]
        return await first_of(ways, lambda late: late.abort())

    async def _new_receiver(self, address: str, expect: bytes) -> BlobReceiver:
        receiver = BlobReceiver(self.traffic)
        tls = await self._reach(address, receiver)
        try:
            self._check_key(tls, expect)
            tls.write(BLOBS)
            await receiver.until_done()
        except FetchError as error:
            raise DialError(str(error)) from error
        except BaseException:
            tls.abort()
            raise
        return receiver

    async def knock(self, address: str, expect: bytes) -> None:
        """Find out whether a peer is reached at an address, without saying anything there.

        Raises:
            DialError: if it is not, or somebody else is.
        """
        (await self._new_receiver(address, expect)).abort()

    def _give_back(self, peer: bytes, receiver: BlobReceiver) -> None:
        idle = self._idle.setdefault(peer, [])
        if receiver.usable and len(idle) < self.limits.idle_fetchers_max and not self._closing:
            idle.append(receiver)
        else:
            receiver.abort()

    async def close(self) -> None:
        """Close everything."""
        self._closing = True
        for receivers in self._idle.values():
            for receiver in receivers:
                receiver.abort()
        for listener in self._listeners:
            listener.close()
        connections = list(self.budget.connections)
        await asyncio.gather(*(connection.close("stopping") for connection in connections))
        for task in list(self._tasks):
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*self._tasks, return_exceptions=True)


async def no_iroh(address: str, _: asyncio.BaseProtocol) -> Any:
    """Dial nothing: iroh was not asked for."""
    raise DialError(f"{address:.40}… is reached by iroh only, which was not asked for: --iroh")


@contextlib.contextmanager
def _counted(counter: Counter[Any], key: object) -> Any:
    counter[key] += 1
    try:
        yield
    finally:
        counter[key] -= 1
        if not counter[key]:
            del counter[key]
