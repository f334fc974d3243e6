"""iroh as the second transport, where it is asked for: QUIC over UDP, for peers that punch holes.

It carries what TLS over TCP carries, stream by stream, under the same limits: messages, blobs and
every other service. The seed of a peer's identity is its secret key there too, so the same key is
proved. It is slow (its Python binding copies byte by byte), it lets a stranger make it hold
buffers before anything here is asked, and it opens a wildcard IPv6 socket beside the address that
it is told; so nobody gets it unasked, and TLS is dialled first. Nothing of iroh's makers is
contacted: no relay but one that is named, no discovery.
"""

import asyncio
from typing import Any

from peerformer.errors import ConfigError, SwarmError
from peerformer.node.dialling import DialError, joined, parted
from peerformer.node.iroh_streams import QuicTransport
from peerformer.node.listening import source_of
from peerformer.node.streams import Streams, stream_protocol
from peerformer.node.transport import Transport
from peerformer.protocol.addresses import iroh_address, through_iroh

ALPN = b"peerformer/1"
WINDOW_BYTES = 2 * 1024 * 1024  # of one connection, not yet read
HTTPS = "https://"


class Iroh:
    """The iroh endpoint of one transport."""

    def __init__(self, transport: Transport, endpoint: Any, relay: str | None) -> None:
        self._transport, self._endpoint, self._relay = transport, endpoint, relay
        self._dialled: dict[bytes, Any] = {}

    @classmethod
    async def open(
        cls, transport: Transport, seed: bytes, place: tuple[str, int], relay: str | None
    ) -> "Iroh":
        """Listen, by UDP, and let a transport dial iroh addresses.

        Args:
            transport: whose connections it carries.
            seed: of the identity, the same as the transport's.
            place: host and port to bind.
            relay: URL of an iroh relay through which holes are punched; None: no relay.

        Raises:
            ConfigError: if the library is missing, or the relay is no URL.
            SwarmError: if the port is taken.
        """
        iroh = _library()
        try:
            mode = iroh.RelayMode
            options = iroh.EndpointOptions(
                preset=iroh.preset_minimal(),
                bind_addr=joined(*place),
                secret_key=seed,
                alpns=[ALPN],
                relay_mode=mode.custom_from_urls([relay]) if relay else mode.disabled(),
            )
            endpoint = await iroh.Endpoint.bind(options)
        except iroh.IrohError as error:
            raise SwarmError(
                f"iroh cannot listen on {joined(*place)}, by UDP",
                why=error.message(),
                hint="choose another --port, or leave --iroh out",
            ) from error
        made = cls(transport, endpoint, relay)
        transport.iroh = made.reach
        transport.spawn(made._accept())
        return made

    def addresses(self, hosts: tuple[str, ...]) -> tuple[str, ...]:
        """Return where this peer is reached by iroh: at hosts of this machine, and by the relay."""
        ports = [parted(bound)[1] for bound in self._endpoint.bound_sockets()]
        places = [joined(host, ports[0]) for host in hosts if ":" not in host]
        if self._relay:
            places.append(self._relay.rstrip("/"))
        return tuple(iroh_address(place, self._transport.peer_id) for place in places)

    # --- outgoing ------------------------------------------------------------------------------

    async def reach(self, address: str, protocol: asyncio.BaseProtocol) -> Any:
        """Return a connected transport to whoever is at an iroh address.

        Raises:
            DialError: if nobody answers.
        """
        iroh = _library()
        through = through_iroh(address)
        if through is None:
            raise DialError(f"{address!r:.80} is not iroh:PLACE/PEER")
        place, peer = through
        try:
            async with asyncio.timeout(2 * self._transport.limits.handshake_seconds_max):
                connection = self._dialled.get(peer)
                if connection is None or connection.close_reason() is not None:
                    connection = await self._endpoint.connect(_whereabouts(place, peer), ALPN)
                    self._dialled[peer] = connection
                streams = await connection.open_bi()
        except (iroh.IrohError, TimeoutError, ValueError) as error:
            self._dialled.pop(peer, None)
            told = error.message() if isinstance(error, iroh.IrohError) else str(error)
            raise DialError(f"iroh: {told or 'no answer in time'}") from error
        proved = connection.remote_id().to_bytes()
        return QuicTransport(streams, protocol, proved, ("iroh", 0))

    # --- incoming ------------------------------------------------------------------------------

    async def _accept(self) -> None:
        try:
            while (incoming := await self._endpoint.accept_next()) is not None:
                source = source_of(_host_of(await incoming.remote_addr()))
                if self._transport.is_crowded(source):
                    await incoming.refuse()
                else:
                    self._transport.spawn(self._take_in(incoming, source))
        finally:
            await self._endpoint.close()

    async def _take_in(self, incoming: Any, source: str) -> None:
        """Serve each stream of a connection as if it were a connection."""
        iroh, limits = _library(), self._transport.limits
        try:
            async with asyncio.timeout(limits.handshake_seconds_max):
                connection = await (await incoming.accept()).connect()
            connection.set_receive_window(WINDOW_BYTES)
            connection.set_max_concurrent_bi_streams(limits.connections_per_key_max)
            connection.set_max_concurrent_uni_streams(0)
            peer = connection.remote_id().to_bytes()
            while True:
                streams = await connection.accept_bi()
                if self._transport.is_crowded(source):
                    connection.close(0, b"crowded")
                    return

                async def opened(streams: Any = streams) -> Streams:
                    reader, protocol = stream_protocol(limits.stream_bytes_max)
                    carried = QuicTransport(streams, protocol, peer, ("iroh", 0))
                    loop = asyncio.get_running_loop()
                    return Streams(reader, asyncio.StreamWriter(carried, protocol, reader, loop))

                self._transport.spawn(self._transport.serve(opened, source, lambda: None))
        except (iroh.IrohError, TimeoutError):
            return  # it has ended, or never was


def _whereabouts(place: str, peer: bytes) -> Any:
    iroh = _library()
    known = iroh.EndpointId.from_bytes(peer)
    if place.startswith(HTTPS):
        return iroh.EndpointAddr(known, place, [])
    parted(place)  # raises DialError
    return iroh.EndpointAddr(known, None, [place])


def _host_of(remote: Any) -> str:
    """Return whose share a connection takes: an address, or the relay's for all it brings."""
    if remote.is_ip():
        return parted(remote.addr)[0]
    return "iroh relay"


def _library() -> Any:
    """Return iroh's Python binding.

    Raises:
        ConfigError: if it is not installed.
    """
    try:
        import iroh
    except ImportError as error:
        raise ConfigError(
            "--iroh needs the iroh library", hint="pip install 'peerformer[iroh]'"
        ) from error
    return iroh
