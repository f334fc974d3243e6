"""Both directions of an encrypted channel, and how a second TLS begins inside one.

Two peers that both dialled a relay speak TLS with each other inside the TLS that each speaks with
the relay; then one of them is a server on a connection that it dialled itself.
"""

import asyncio
import ssl
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from peerformer.node.certificate import peer_key

SERVER_NAME = "peerformer"  # TLS wants one; nobody looks at it

# A `StreamWriter` that nobody holds closes its transport: those below are held as long as those
# above them live.
_carriers: "weakref.WeakKeyDictionary[asyncio.BaseProtocol, Streams]" = weakref.WeakKeyDictionary()


@dataclass(frozen=True, slots=True)
class Streams:
    """Both directions of an encrypted channel whose other end has proved its key."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    @property
    def peer(self) -> bytes:
        """The other end's key."""
        return proved_key(self.writer.transport)


def proved_key(transport: Any) -> bytes:
    """Return the key that the other end of an encrypted transport proved to hold.

    Raises:
        CertificateRefused: if it is not an Ed25519 key.
    """
    key = transport.get_extra_info("peer_key")
    return key if isinstance(key, bytes) else peer_key(transport.get_extra_info("ssl_object"))


def stream_protocol(
    bytes_max: int,
) -> tuple[asyncio.StreamReader, asyncio.StreamReaderProtocol]:
    """Return a reader, and the protocol that fills it."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=bytes_max, loop=loop)
    return reader, asyncio.StreamReaderProtocol(reader, loop=loop)


class Carrier(asyncio.Transport):
    """The outer TLS as a transport that can carry an inner one, under `asyncio`'s own loop.

    Up to Python 3.11 an inner TLS that fails ends the outer one by a call that raises TypeError;
    this one ends it by `abort`, and hands everything else on. (uvloop's needs none.)
    """

    _start_tls_compatible = True

    def __init__(self, outer: asyncio.Transport) -> None:
        super().__init__()
        self._outer = outer

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """What the outer one says of itself."""
        return self._outer.get_extra_info(name, default)

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Give what comes to another protocol."""
        self._outer.set_protocol(protocol)

    def is_closing(self) -> bool:
        """Whether it is closed or closing."""
        return self._outer.is_closing()

    def is_reading(self) -> bool:
        """Whether anything is taken in."""
        return self._outer.is_reading()

    def pause_reading(self) -> None:
        """Take nothing in."""
        self._outer.pause_reading()

    def resume_reading(self) -> None:
        """Take in again."""
        self._outer.resume_reading()

    def get_write_buffer_size(self) -> int:
        """What waits to be sent."""
        return self._outer.get_write_buffer_size()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send."""
        self._outer.write(data)

    def close(self) -> None:
        """End when all is sent."""
        self._outer.close()

    def abort(self) -> None:
        """End now."""
        self._outer.abort()

    def _force_close(self, _: BaseException | None) -> None:
        self._outer.abort()


async def begin_inner_tls(
    carrier: Streams,
    protocol: asyncio.BaseProtocol,
    context: ssl.SSLContext,
    *,
    as_server: bool,
    handshake_seconds_max: float,
    before: Callable[[], None] = lambda: None,
) -> Any:
    """Begin TLS inside `carrier`; returns the inner transport, to which `protocol` is connected.

    `before` runs in the same turn of the loop as the change of hands: what the other end sends in
    answer to it finds the new protocol, never the old reader.
    """
    _carriers[protocol] = carrier
    before()
    outer: Any = carrier.writer.transport
    inner = await asyncio.get_running_loop().start_tls(
        Carrier(outer) if isinstance(outer, asyncio.Transport) else outer,
        protocol,
        context,
        server_side=as_server,
        server_hostname=None if as_server else SERVER_NAME,
        ssl_handshake_timeout=handshake_seconds_max,
    )
    assert inner is not None
    protocol.connection_made(inner)
    return inner
