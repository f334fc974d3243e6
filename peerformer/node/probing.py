"""Can others reach this peer? It asks those whom it has reached to dial back.

What is dialled is the address that the question came from, at the port that it names, and the key
must be the asker's: so nobody can be made to dial a third party (as AutoNAT of libp2p found it must
be). An answer counts for the network that it was given in.
"""

import asyncio
import struct
from collections import OrderedDict
from collections.abc import Awaitable, Callable

from peerformer.node.dialling import DialError, joined
from peerformer.node.listening import source_of
from peerformer.node.streams import Streams
from peerformer.node.transfer import ACCEPTED
from peerformer.node.transport import Transport

PROBE = b"P"
REACHED, MISSED = b"y", b"n"
PORT = struct.Struct("<H")
PROBES_AT_ONCE_MAX = 8
PAUSE_SECONDS = 5.0  # between two probes for one source
SOURCES_KEPT_MAX = 1_024


class Prober:
    """The answering end."""

    def __init__(self, transport: Transport) -> None:
        """`services` is what the transport must serve for it."""
        self.services: dict[bytes, Callable[[bytes, Streams], Awaitable[None]]] = {
            PROBE: self._probe
        }
        self._transport = transport
        self._under_way = 0
        self._last: OrderedDict[str, float] = OrderedDict()  # by source, oldest first

    async def _probe(self, peer: bytes, streams: Streams) -> None:
        host = str(streams.writer.get_extra_info("peername")[0])
        if self._under_way >= PROBES_AT_ONCE_MAX or not self._may(source_of(host)):
            return
        streams.writer.write(ACCEPTED)
        async with asyncio.timeout(self._transport.limits.handshake_seconds_max):
            (port,) = PORT.unpack(await streams.reader.readexactly(PORT.size))
        self._under_way += 1
        try:
            await self._transport.knock(joined(host, port), peer)
        except DialError:
            streams.writer.write(MISSED)
        else:
            streams.writer.write(REACHED)
        finally:
            self._under_way -= 1
        await streams.writer.drain()
        async with asyncio.timeout(self._transport.limits.close_seconds_max):
            await streams.reader.read(1)  # until the asker has it, and closes

    def _may(self, source: str) -> bool:
        now = asyncio.get_running_loop().time()
        if now - self._last.pop(source, -PAUSE_SECONDS) < PAUSE_SECONDS:
            self._last[source] = now
            return False
        self._last[source] = now
        while len(self._last) > SOURCES_KEPT_MAX:
            self._last.popitem(last=False)
        return True


async def is_reached_from(transport: Transport, address: str, peer: bytes, port: int) -> bool:
    """Ask the peer at `address` to dial back to `port` here.

    Raises:
        DialError: if it gives no answer.
    """
    streams = await transport.open(address, PROBE, peer)
    try:
        streams.writer.write(PORT.pack(port))
        async with asyncio.timeout(4 * transport.limits.handshake_seconds_max):
            return await streams.reader.readexactly(1) == REACHED
    except (OSError, EOFError, TimeoutError) as error:
        raise DialError("it gave no answer") from error
    finally:
        streams.writer.transport.abort()
