"""Being reachable through a relay: registered there, and coming when it calls.

The connection is dialled out, so no router is in its way. It is kept alive from both ends; when it
ends, for whatever reason, the registration is over and whoever made it looks for another relay.
"""

import asyncio
from functools import partial

from peerformer.node.relay import ALIVE, ANSWER, CALLED, KEY_SIZE_BYTES, REGISTER, TOKEN_SIZE_BYTES
from peerformer.node.relaying import come
from peerformer.node.streams import Streams, stream_protocol
from peerformer.node.transport import Transport
from peerformer.protocol.addresses import relayed_address


class Registration:
    """One registration at one relay."""

    def __init__(self, transport: Transport, relay: str, peer: bytes, streams: Streams) -> None:
        self.relay = relay  # host:port
        self.peer = peer  # the relay's key
        self.address = relayed_address(relay, transport.peer_id)
        self._transport, self._streams = transport, streams

    @classmethod
    async def make(cls, transport: Transport, relay: str, peer: bytes) -> "Registration":
        """Register at a relay.

        Raises:
            DialError: if it cannot be reached, does not relay, or will not.
        """
        streams = await transport.open(relay, REGISTER, peer)
        return cls(transport, relay, peer, streams)

    async def keep(self) -> None:
        """Come when called, until the connection with the relay ends or is silent."""
        limits, reader = self._transport.limits, self._streams.reader
        keeping = asyncio.ensure_future(self._keep_alive())
        try:
            while True:
                async with asyncio.timeout(limits.silence_seconds_max):
                    word = await reader.readexactly(1)
                    if word == CALLED:
                        token = await reader.readexactly(TOKEN_SIZE_BYTES)
                        self._on_call(token, await reader.readexactly(KEY_SIZE_BYTES))
                    elif word != ALIVE:
                        return
        except (OSError, EOFError, TimeoutError):
            return
        finally:
            keeping.cancel()
            self.end()

    def end(self) -> None:
        """Register no longer."""
        self._streams.writer.transport.abort()

    async def _keep_alive(self) -> None:
        while not self._streams.writer.transport.is_closing():
            self._streams.writer.write(ALIVE)
            await asyncio.sleep(self._transport.limits.idle_seconds_max)

    def _on_call(self, token: bytes, caller: bytes) -> None:
        """Come, unless the relay calls too often; who it is, TLS will prove, not the relay."""
        source = f"relay {self.peer.hex()}"
        if self._transport.is_crowded(source):
            return
        place = relayed_address(self.relay, caller)
        self._transport.spawn(
            self._transport.serve(partial(self._come, token), source, lambda: None, place)
        )

    async def _come(self, token: bytes) -> Streams:
        transport = self._transport
        carrier = await transport.open(self.relay, ANSWER, self.peer)
        reader, protocol = stream_protocol(transport.limits.stream_bytes_max)
        try:
            tls = await come(
                carrier,
                token,
                protocol,
                transport.server_context,
                transport.limits.handshake_seconds_max,
            )
        except BaseException:
            carrier.writer.transport.abort()
            raise
        return Streams(
            reader, asyncio.StreamWriter(tls, protocol, reader, asyncio.get_running_loop())
        )
